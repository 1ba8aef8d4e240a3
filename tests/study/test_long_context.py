"""The long-context study: its means against sums by hand; one small study, run and gone on with."""

import json
from pathlib import Path

import pytest
import torch

from minidsv3 import config, hf
from minidsv3.context import needle
from minidsv3.data import corpus
from minidsv3.study import long_context as study
from minidsv3.study import long_context_results as results
from minidsv3.train import recipe
from tests.conftest import MINIATURE


def figures(rows, inside=1.5, tasks=("single",)):
    """What measure() returns, of it what the summary reads: lengths 64, 2048 and 2560."""
    return {"window": 64, "depths": [0.0, 1.0], "lengths": [64, 2048, 2560],
            "maps": dict.fromkeys(tasks, rows), "bits_per_byte_inside": inside,
            "bits_by_position": {"64": inside, "2048": inside / 2, "2560": 9.0},
            "trained_s": 10.0, "measured_s": 2.0}


def test_the_mean_of_a_map_ends_at_32_windows():
    """Oracle: four cells added by hand; the column of 2,560 tokens counts nowhere."""
    run = figures([[1.0, 0.2, 0.0], [0.8, 0.6, 0.0]])
    assert results.mean_accuracy(run) == pytest.approx((1 + 0.2 + 0.8 + 0.6) / 4)
    near = results.mean_accuracy(run, part=lambda distance, length: distance <= 64)
    assert near == pytest.approx((1 + 0.8 + 0.6) / 3)      # depth 1 is near at any length


def test_the_summary_is_the_mean_over_seeds():
    """Oracle: sums by hand of two seeds and one ablation."""
    runs = {(name, seed): figures([[1, share, 0], [1, share, 0]], 2.0 + seed,
                                  needle.TASKS if name in results.HARD else ("single",))
            for name, share in zip(results.MAIN, (0.0, 0.5, 0.75, 1.0)) for seed in (0, 1)}
    runs["plain", 0] = figures([[1, 0.25, 0], [1, 0.25, 0]])
    found = results.summarise(runs)
    assert found["needle_accuracy"] == {"before": 0.5, "yarn_untrained": 0.75, "phase1": 0.875,
                                        "phase2": 1.0, "plain": 0.625}
    assert found["bits_per_byte_inside"]["phase2"] == 2.5
    assert found["bits_per_byte_inside"]["plain"] == 1.5
    assert found["before_inside"] == 1 and found["before_beyond"] == 0
    assert found["harder_tasks"] == {task: {"before": 0.5, "phase2": 1.0}
                                     for task in ("several", "last")}
    assert found["window"] == 64 and found["seeds"] == 2 and found["chance"] == 1 / 1024
    assert found["seconds"] == 9 * 12
    assert "| plain | 62.5% | 1.500 | 1.500 | 0.750 |" in results.as_markdown(found)


def test_yarn_without_its_temperature_changes_the_frequencies_alone():
    """Oracle: the softmax scale and the amplitude of plain rotary positions."""
    from minidsv3.model import rope
    plain = config.ModelConfig.preset("short")
    changed = plain.replace(rope_scaling=study.without_mscale(64, 2048))
    assert rope.softmax_scale(changed) == pytest.approx(rope.softmax_scale(plain), rel=1e-7)
    assert rope.rope_amplitude(changed.rope_scaling) == 1
    full = plain.replace(rope_scaling=study.yarn(64, 2048))
    assert torch.equal(rope.rope_frequencies(changed), rope.rope_frequencies(full))


@pytest.fixture
def small_study(small_text, monkeypatch, tmp_path):
    """Arguments of a study of miniature models, which runs in this process."""
    fields = {name: value for name, value in MINIATURE.items() if name != "window"}
    shape = {name: value for name, value in fields.items()
             if name in config.ModelConfig.__dataclass_fields__}
    training = {name: value for name, value in fields.items() if name not in shape}
    monkeypatch.setitem(config.PRESETS, "short", {
        **shape, "vocab_size": 700, "rope_scaling": None, "max_position_embeddings": 64,
        "num_nextn_predict_layers": 0})
    monkeypatch.setitem(recipe.PRESETS, "short", {
        **training, "window": 64, "data": str(small_text), "retrieval": 0.5})
    monkeypatch.setattr(needle, "unseen_documents",
                        lambda: corpus.split(corpus.load(str(small_text)).documents)[1] * 9)
    monkeypatch.setattr(study, "LENGTHS", (1, 2))
    monkeypatch.setattr(study, "GROWTH", (2, 4))
    monkeypatch.setattr(study, "run_all",
                        lambda function, tasks, jobs: [function(*task) for task in tasks])
    return ["--seeds", "2", "--steps", "2", "--phase-steps", "1", "--trials", "1",
            "--out", str(tmp_path / "out"), "--models", str(tmp_path / "models")]


@pytest.mark.slow
def test_a_study_runs_is_kept_and_goes_on(small_study, tmp_path, capsys):
    """Oracle: the files of the models; a second run trains and measures nothing."""
    assert study.main(small_study) == 0
    out, models = tmp_path / "out", tmp_path / "models"
    names = {path.name for path in (out / "runs").iterdir()}
    assert names == {f"{name}-{seed}.json" for name in study.MAIN for seed in (0, 1)} | {
        f"{name}-0.json" for name in study.ABLATIONS}
    assert hf.read_config(models / "main-1").rope_scaling.factor == 5
    assert hf.read_config(models / "plain-0").rope_scaling is None
    assert hf.read_json(models / "no_notes-0" / "train.json")["retrieval"] == 0
    assert not (models / "one_phase-0" / "phase1").exists()
    assert hf.read_json(models / "one_phase-0" / "train.json")["steps"] == 2
    stored = json.loads((out / "results.json").read_text())
    assert set(stored["needle_accuracy"]) == {*study.MAIN, *study.ABLATIONS}
    before = {path: path.stat().st_mtime_ns for path in [*out.rglob("*.json"),
                                                         *models.rglob("*.safetensors")]}
    assert study.main(small_study) == 0
    assert all(path.stat().st_mtime_ns == before[path] for path in before
               if path.name != "results.json")
    said = capsys.readouterr().out
    assert "| phase2 |" in said and "0 of 6 extensions are missing" in said
    for option, name, value in (("--steps", "steps", 2), ("--phase-steps", "phase_steps", 1),
                                ("--trials", "trials", 1)):
        assert study.main([*small_study, option, "3"]) == 2
        assert f"holds another study, with {name}={value}, not 3; name" in capsys.readouterr().err
    other = [*small_study, "--out", str(tmp_path / "new"), "--phase-steps", "2"]
    assert study.main(other) == 2                # with models of other phases
    assert "phase_steps=1, not 2; name another folder with --models" in capsys.readouterr().err


def test_a_reduced_study_is_not_mixed_with_the_stored_one():
    """Oracle: the folders by hand."""
    whole, reduced = (study.parse_arguments(words) for words in ([], ["--reduced"]))
    assert (whole.out, whole.models) == (Path("studies/long-context"), Path("runs/long-context"))
    assert reduced.out == Path("runs/long-context-reduced")
    assert reduced.models == reduced.out / "models"


def test_the_stored_figures_are_those_that_the_command_would_make():
    """Oracle: the settings beside them; only the text depends on the Python that runs this."""
    folder = Path(__file__).resolve().parents[2] / "studies/long-context"
    stored, usual = hf.read_json(folder / "study.json"), study.parse_arguments([])
    assert all(stored[name] == getattr(usual, name) for name in ("steps", "phase_steps", "trials"))
    assert {hf.read_json(path)["trials"] for path in (folder / "runs").iterdir()} == {20}


@pytest.mark.parametrize("options, words", [
    (["--seeds", "0"], "--seeds 0 must be at least 1"),
    (["--phase-steps", "0"], "--phase-steps 0 must be at least 1"),
    (["--out", "{file}"], "is a file; name a folder"),
    (["--out", "{file}/x"], "is a file; name a folder")])
def test_bad_input_ends_in_one_line(options, words, small_text, capsys):
    assert study.main([option.format(file=small_text) for option in options]) == 2
    assert words in capsys.readouterr().err
