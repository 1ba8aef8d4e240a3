"""Differences and errors against sums by hand; a miniature study, stopped and gone on with."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from minidsv3 import config, device
from minidsv3.command import UserError
from minidsv3.measure import plots
from minidsv3.study import compare as study
from minidsv3.study import compare_results as results
from minidsv3.study import pool
from minidsv3.train import recipe, report
from minidsv3.train.step import Diverged, Step
from minidsv3.train.trainer import Trainer
from tests.conftest import MINIATURE


def a_run(seed, score, curve=((1, 3.0), (2, 2.0))):
    """What read_run() returns."""
    return {"seed": seed, "val_bits_per_byte": score, "tokens_per_s": 1000.0 * (seed + 1),
            "max_vio": 0.5 + seed, "dtype": "float32", "curve": [list(point) for point in curve]}


# ---- arithmetic ----

def test_differences_are_taken_by_seed():
    """Oracle: by hand. Differences 0.1, 0.2, 0.6: mean 0.3, squares 0.04 + 0.01 + 0.09 = 0.14,
    variance 0.07, standard error sqrt(0.07 / 3)."""
    found = results.paired([1.1, 2.2, 3.6], [1.0, 2.0, 3.0])
    assert found["by_seed"] == pytest.approx([0.1, 0.2, 0.6])
    assert found["mean"] == pytest.approx(0.3)
    assert found["standard_error"] == pytest.approx((0.07 / 3) ** 0.5)
    apart = results.paired([1.1, 2.1], [1.0, 2.0])       # seeds far apart, pairs alike
    assert apart["standard_error"] == pytest.approx(0, abs=1e-12)


def test_one_seed_has_no_error_and_a_run_that_diverged_no_difference():
    """Oracle: None where nothing can be known."""
    assert results.paired([1.5], [1.0]) == {"by_seed": [0.5], "mean": 0.5, "standard_error": None}
    assert results.paired([1.5, None], [1.0, 2.0]) == {
        "by_seed": [0.5, None], "mean": None, "standard_error": None}
    assert results.paired([1.0], [None])["by_seed"] == [None]


@pytest.mark.parametrize("by_seed, mean, error, words", [
    ([0] * 6, -0.012, 0.004, "better by 0.0120 ± 0.0040 bits per byte: more than twice its error"),
    ([0] * 3, 0.012, 0.004, "worse by 0.0120 ± 0.0040 bits per byte: more than twice its error (as "
     "chance alone gives in 18% of studies of 3 seeds)"),
    ([0] * 3, 0.008, 0.004, "no difference beyond the error: +0.0080 ± 0.0040 bits per byte"),
    ([0] * 2, 0.0, 0.0, "no difference beyond the error: +0.0000 ± 0.0000 bits per byte"),
    ([0], -0.012, None, "better by 0.0120 bits per byte in one seed: no error is stated, which "
     "takes two seeds or more"),
    ([None, 0, None], None, None, "no difference is stated, because a run diverged (seed 0, 2)")])
def test_the_verdict_in_words(by_seed, mean, error, words):
    """Oracle: the sentences; exactly twice the error is no difference."""
    assert results.verdict({"by_seed": by_seed, "mean": mean, "standard_error": error}) == words


def test_the_chances_are_those_of_random_numbers():
    """Oracle: 100,000 studies of a change that changes nothing; and the closed form of two."""
    generator = torch.Generator().manual_seed(0)
    for seeds, chance in results.CHANCE.items():
        differences = torch.randn(100_000, seeds, generator=generator)
        beyond = differences.mean(1).abs() > 2 * differences.std(1) / seeds ** 0.5
        assert beyond.double().mean().item() == pytest.approx(chance, abs=0.006)
    assert 1 - 2 / math.pi * math.atan(2) == pytest.approx(results.CHANCE[2], abs=0.006)


def test_the_table_has_each_run_and_the_means():
    """Oracle: lines by hand."""
    found = results.summarise({"default": [a_run(0, 1.0), a_run(1, 2.0)],
                               "gamma=0": [a_run(0, 1.25), a_run(1, 2.75)],
                               "x=1": [a_run(0, 1.5), None]})
    lines = results.as_text(found).splitlines()
    assert lines[2:] == [
        "| default | 0 | 1.0000 | - | 1,000 | 0.50 |",
        "| default | 1 | 2.0000 | - | 2,000 | 1.50 |",
        "| **default** | mean of 2 | 1.5000 | - | 1,500 | 1.00 |",
        "| gamma=0 | 0 | 1.2500 | +0.2500 | 1,000 | 0.50 |",
        "| gamma=0 | 1 | 2.7500 | +0.7500 | 2,000 | 1.50 |",
        "| **gamma=0** | mean of 2 | 2.0000 | +0.5000 ± 0.2500 | 1,500 | 1.00 |",
        "| x=1 | 0 | 1.5000 | +0.5000 | 1,000 | 0.50 |", "| x=1 | 1 | diverged | - | - | - |",
        "| **x=1** | mean of 2 | diverged | - | - | - |", "",
        "gamma=0: no difference beyond the error: +0.5000 ± 0.2500 bits per byte.",
        "x=1: no difference is stated, because a run diverged (seed 1)."]


def test_the_picture_shows_means_bands_and_differences(tmp_path):
    """Oracle: the points by hand; a variant without any curve leaves the others."""
    found = results.summarise({
        "default": [a_run(0, 1.0, [(1, 3.0), (2, 2.0)]), a_run(1, 2.0, [(1, 5.0), (2, 3.0)])],
        "gamma=0 window=9": [a_run(0, 1.5), a_run(1, 2.25)], "x=1": [None, None]})
    figure = results.picture(found)
    left, middle, right = figure.axes
    assert left.lines[0].get_xydata().tolist() == [[1, 4.0], [2, 2.5]]
    band = left.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (2.0, 5.0) and len(left.lines) == 2
    assert middle.lines[0].get_xdata().tolist() == [0.5, 0.25]
    assert middle.lines[1].get_xdata().tolist() == [0.375]
    assert [label.get_text() for label in middle.get_yticklabels()] == [
        "default", "gamma=0\nwindow=9", "x=1\n(diverged)"]
    assert [line.get_xydata().tolist() for line in right.lines] == [
        [[0.5, 0], [1.5, 0]], [[0.5, 1], [1.5, 1]], []]
    assert middle.get_ylim() == right.get_ylim()         # the rows are side by side
    assert "bits per byte" in left.get_ylabel() and "bits per byte" in middle.get_xlabel()
    assert "MaxVio" in right.get_xlabel()
    plots.save(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_variant_without_experts_has_no_load(tmp_path):
    """Oracle: a dash in the table and no point in the picture, not 0, which means equal loads."""
    without = {**a_run(0, 1.5), "max_vio": None}
    found = results.summarise({"default": [a_run(0, 1.0)] * 2, "x=1": [without] * 2})
    assert results.as_markdown(found).splitlines()[-2:] == [
        "| x=1 | 1 | 1.5000 | +0.5000 | 1,000 | - |",
        "| **x=1** | mean of 2 | 1.5000 | +0.5000 ± 0.0000 | 1,000 | - |"]
    assert [len(line.get_xdata()) for line in results.picture(found).axes[2].lines] == [2, 0]
    (tmp_path / "summary.json").write_text(json.dumps(
        {"seed": 0, "val_bits_per_byte": 1.5, "tokens_per_s": 1.0, "max_vio": [], "dtype": "x"}))
    assert study.read_run(tmp_path, layers=0)["max_vio"] is None


# ---- what is compared ----

@pytest.mark.parametrize("options, words", [
    ([], "there is nothing to compare"),
    (["--variant", " "], "there is nothing to compare"),
    (["--set", "gamma=0", "--seeds", "0"], "--seeds 0 must be at least 1"),
    (["--set", "gamma=0", "--jobs", "0"], "--jobs 0 must be at least 1"),
    (["--set", "gamma=0", "--steps", "0"], "steps=0 must be at least 1"),
    (["--set", "gama=0"], "did you mean gamma?"),
    (["--set", "gamma"], "write --set gamma=VALUE"),
    (["--set", "gamma=fast"], "gamma='fast' is a str; give float"),
    (["--set", "gamma=0.004"], "gamma=0.004 changes nothing: it is the same as default"),
    (["--set", "gamma=0", "--variant", "gamma=0.0"], "it is the same as gamma=0"),
    (["--set", "seed=3"], "seed=3: all runs have the same seed; give --seeds"),
    (["--both", "steps=3", "--set", "gamma=0"], "all runs have the same steps; give --steps"),
    (["--variant", "gamma=0 data=x"], "data=x: all runs have the same data; give --data"),
    (["--set", "gamma=0", "--preset", "v3-671b"], "no training recipe for preset"),
    (["--set", "gamma=0", "--device", "tpu"], "device 'tpu' is unknown"),
    (["--set", "gamma=0", "--out", "{text}"], "is a file; name a folder"),
    (["--set", "gamma=0", "--out", "{folder}"], "holds files that are no study")])
def test_bad_input_ends_in_one_line(options, words, small_text, tmp_path, capsys):
    """Oracle: exit code 2, the value, no traceback; what was there is still there."""
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    names = {"text": small_text, "folder": tmp_path}
    code = study.main(["--data", str(small_text), *(each.format(**names) for each in options)])
    error = capsys.readouterr().err
    assert code == 2 and words in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_sides_differ_in_the_change_alone():
    """Oracle: the fields of both configurations, compared one by one."""
    arguments = study.parse_arguments(["--set", "gamma=0", "--set", "n_group=2", "--both",
                                       "window=128", "--variant", "mtp_weight=0", "--steps", "60"])
    configs = study.configure(arguments)
    assert list(configs) == ["default", "gamma=0 n_group=2", "mtp_weight=0"]
    base, *others = [{**model.to_dict(), **training.to_dict()}
                     for model, training in configs.values()]
    assert (base["window"], base["steps"], base["eval_every"], base["gamma"]) == (128, 60, 5, 4e-3)
    changed = [{name: value for name, value in each.items() if value != base[name]}
               for each in others]
    assert changed == [{"gamma": 0, "n_group": 2}, {"mtp_weight": 0}]


@pytest.mark.parametrize("changes", [
    "balance_weight=0", "gamma=0", "gamma=0 balance_weight=0",                         # Table 5
    "num_nextn_predict_layers=0", "mtp_weight=0 mtp_weight_late=0.3 mtp_drop_at=0.5"])  # Table 4
def test_the_ablations_of_the_report_are_variants(changes):
    """Oracle: the two configurations accept these fields."""
    assert changes in study.configure(study.parse_arguments(["--variant", changes]))


def test_the_folder_is_named_after_the_change():
    """Oracle: names that every file system takes."""
    named = study.parse_arguments(["--set", 'optimizer="adamw"', "--variant", "gamma=0 window=9"])
    assert named.out.as_posix() == "runs/compare/optimizer=-adamw-_gamma=0-window=9"
    assert study.file_name("x:" * 99 + ".").isascii() and len(study.file_name("a" * 99)) == 60


def test_a_value_may_hold_spaces():
    """Oracle: what train_tiny.py makes of the same word."""
    parsed = study.parse_arguments(["--set", "eos_token_id=[1, 5]",
                                    "--variant", "gamma=0 fim_rate=0"])
    assert parsed.variants == [["eos_token_id=[1, 5]"], ["gamma=0", "fim_rate=0"]]
    assert [*study.configure(parsed).values()][1][0].eos_token_id == (1, 5)


@pytest.mark.parametrize("system, asked", [("linux", 1), ("win32", 0)])
def test_on_windows_processes_are_left_to_their_own_ctrl_c(system, asked, monkeypatch):
    """There terminate() kills at once; the console has told them to stop, and they save."""
    told = []
    child = SimpleNamespace(terminate=lambda: told.append(1))
    monkeypatch.setattr(pool.multiprocessing, "active_children", lambda: [child])
    monkeypatch.setattr(pool.sys, "platform", system)
    with pytest.raises(KeyboardInterrupt):
        pool.StopAll().note(2, None)
    assert len(told) == asked


def test_other_tokens_are_told(capsys):
    """Oracle: the product of windows, sequences and steps, by hand; nothing for equal ones."""
    configs = study.configure(study.parse_arguments(
        ["--set", "window=128", "--variant", "gamma=0", "--steps", "10"]))
    study.tell_of_other_tokens(configs)
    assert capsys.readouterr().err == ("window=128 reads 10,240 tokens, the default 20,480: steps "
                                       "are matched, tokens are not.\n")


def test_a_folder_takes_one_study(tmp_path):
    """Oracle: the same study is let in, another or a damaged one is named and left alone."""
    study.claim(tmp_path / "a", {"steps": 3, "variants": ["x"]})
    study.claim(tmp_path / "a", {"steps": 3, "variants": ["x"]})
    with pytest.raises(UserError, match="holds another study, with steps=3, not 4; name another"):
        study.claim(tmp_path / "a", {"steps": 4, "variants": ["x"]})
    path = tmp_path / "a" / "study.json"
    assert json.loads(path.read_text(encoding="utf-8")) == {"steps": 3, "variants": ["x"]}
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="study.json is not JSON"):
        study.claim(tmp_path / "a", {"steps": 3, "variants": ["x"]})
    assert path.read_text(encoding="utf-8") == "{"


def test_a_study_keeps_the_precision_of_its_machine(monkeypatch):
    """Oracle: the same command on a machine with bfloat16 instructions and on one without."""
    configs = study.configure(study.parse_arguments(["--set", "gamma=0"]))
    found = []
    for fast in (True, False):
        monkeypatch.setattr(device, "has_fast_bf16", lambda _, fast=fast: fast)
        found.append(study.describe(configs, torch.device("cpu"), "hash"))
    assert [each.pop("activations") for each in found] == ["torch.bfloat16", "torch.float32"]
    assert found[0] == found[1]


# ---- the runs ----

@pytest.fixture
def miniature_study(small_text, monkeypatch, tmp_path):
    """Arguments of a study of miniature models, which runs in this process."""
    shape = {name: value for name, value in MINIATURE.items()
             if name in config.ModelConfig.__dataclass_fields__}
    training = {name: value for name, value in MINIATURE.items() if name not in shape}
    for presets, fields in ((config.PRESETS, shape),
                            (recipe.PRESETS, {**training, "precision": "fp32"})):
        monkeypatch.setitem(presets, "tiny", {**presets["tiny"], **fields})
    for name in ("draw", "sample"):              # which take most of the time of so small a run
        monkeypatch.setattr(report, name, lambda *_: "")
    monkeypatch.setattr(plots, "png", lambda fig, dpi: b"\x89PNG")
    monkeypatch.setattr(pool, "run_all",
                        lambda function, tasks, jobs: [function(*task) for task in tasks])
    threads = torch.get_num_threads()
    yield ["--set", "gamma=0", "--seeds", "2", "--steps", "4", "--data", str(small_text),
           "--device", "cpu", "--out", str(tmp_path / "out")]
    torch.set_num_threads(threads)


def scores(folder):
    """{variant: validation by seed} of a finished study."""
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {name: [run["val_bits_per_byte"] for run in each["runs"]]
            for name, each in stored["variants"].items()}


def test_a_stopped_study_goes_on_where_it_stopped(miniature_study, tmp_path, monkeypatch, capsys):
    """Oracle: the figures of a study that was never stopped; finished runs are not touched."""
    whole = [*miniature_study, "--seeds", "1", "--out", str(tmp_path / "whole")]
    assert study.main(whole) == 0
    made, step = [], Trainer.train_step

    def stopped(trainer):
        made.append(trainer.folder.path.parent.name)
        trainer.interrupted = len(made) == 6     # Ctrl-C in the second step of the second run
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", stopped)
    assert study.main(miniature_study) == 130
    assert made == ["0-default"] * 4 + ["1-gamma=0"] * 2
    first = tmp_path / "out" / "0-default" / "seed-0" / "model.safetensors"
    before = first.stat().st_mtime_ns
    assert not (tmp_path / "out" / "results.json").exists()
    capsys.readouterr()
    assert study.main(miniature_study) == 0
    assert made[6:] == ["1-gamma=0"] * 2 + ["0-default"] * 4 + ["1-gamma=0"] * 4
    assert first.stat().st_mtime_ns == before
    assert {name: each[:1] for name, each in scores(tmp_path / "out").items()} == scores(
        tmp_path / "whole")
    assert "3 of 4 runs to train, 4 steps each" in capsys.readouterr().out


def test_more_seeds_may_be_asked_for_and_nothing_else(miniature_study, tmp_path, capsys):
    """Oracle: the first seed's figures stay; another change or length is refused."""
    miniature_study[3] = "1"
    assert study.main(miniature_study) == 0
    assert "in one seed: no error is stated" in capsys.readouterr().out
    one = scores(tmp_path / "out")
    miniature_study[3] = "2"
    assert study.main(miniature_study) == 0
    two = scores(tmp_path / "out")
    assert {name: each[:1] for name, each in two.items()} == one
    assert two["default"] != two["gamma=0"] and two["default"][0] != two["default"][1]
    assert (tmp_path / "out" / "compare.png").read_bytes() == b"\x89PNG"
    for more, words in ((["--steps", "5"], "steps=4, not 5"),
                        (["--set", "gamma=1"], "variants=['gamma=0'], not ['gamma=0 gamma=1']")):
        assert study.main([*miniature_study, *more]) == 2
        assert f"holds another study, with {words}" in capsys.readouterr().err
    assert scores(tmp_path / "out") == two


def test_a_run_that_diverges_is_a_result(miniature_study, tmp_path, monkeypatch, capsys):
    """Oracle: the note in its folder; it is not tried again, and the study ends well."""
    read, tried = Step.read, []

    def diverges(step, figures):
        if step.recipe.gamma == 0:
            tried.append(step.recipe.seed)
            raise Diverged("the loss is nan")
        return read(step, figures)

    monkeypatch.setattr(Step, "read", diverges)
    assert study.main(miniature_study) == study.main(miniature_study) == 0
    assert tried == [0, 1]
    assert "| gamma=0 | 1 | diverged | - | - | - |" in capsys.readouterr().out
    note = (tmp_path / "out" / "1-gamma=0" / "seed-1" / "diverged.txt").read_text(encoding="utf-8")
    assert "the loss is nan, at step 1 of seed 1" in note


@pytest.mark.multi
def test_runs_in_processes_of_their_own_are_the_same(miniature_study, tmp_path, monkeypatch):
    """Oracle: the figures of the study in one process."""
    assert study.main(miniature_study) == 0
    monkeypatch.undo()                           # run_all, and the presets, in no other process
    fields = [f"--both={name}={value}" for name, value in MINIATURE.items()]
    miniature_study[-1] = str(tmp_path / "two")
    assert study.main([*miniature_study, *fields, "--both=precision=fp32", "--jobs", "2"]) == 0
    assert scores(tmp_path / "two") == scores(tmp_path / "out")
