"""The second part of benchmarks/train.py: what is planned, made, kept and left out.

Only the test marked `multi` starts processes; the others make a few steps in this one, or none.
"""

import json

import learning
import learning_results
import pytest
import torch
import train
from contender import DENSE, MODELS, WITH_MTP, WITHOUT_MTP

from minidsv3.measure import plots
from minidsv3.measure.plots import png
from minidsv3.study.pool import run_all
from tests.benchmarks.conftest import OURS, RECIPE

CONFIG = OURS.replace(vocab_size=300)
RECIPES = dict.fromkeys(MODELS, RECIPE)
SPEED = {WITH_MTP: {"tokens_per_s": 440, "at_work": 30},
         WITHOUT_MTP: {"tokens_per_s": 660, "at_work": 20},
         DENSE: {"tokens_per_s": 880, "at_work": 20}}


# ---- what is planned ----

def test_steps_fill_the_minutes():
    """Oracle: by hand. 2 minutes at 440 tokens per second are 1,200 steps of 4 * 11 tokens."""
    assert learning.plan_steps(2, 440, RECIPE) == 1200
    assert learning.plan_steps(0.001, 1, RECIPE) == 1


def test_a_plan_holds_every_model_length_and_seed():
    """Oracle: by hand. FLOPs are 6 for each token and parameter at work."""
    runs = learning.plan({1: 1, 2: 2}, SPEED, RECIPES)
    assert [(run["minutes"], run["seed"], run["model"]) for run in runs] == [
        (minutes, seed, model) for minutes, seed in ((1, 0), (2, 0), (2, 1)) for model in MODELS]
    assert runs[0] == {"model": WITH_MTP, "minutes": 1, "seed": 0, "steps": 600, "tokens": 26400,
                       "flops": 6 * 30 * 26400, "seconds": 60.0}
    assert [run["steps"] for run in runs[-3:]] == [1200, 1800, 2400]
    later = learning.plan({1: 2}, SPEED, dict.fromkeys(MODELS, RECIPE.replace(seed=7)))
    assert {run["seed"] for run in later} == {7, 8}


def test_minutes_are_read_with_their_seeds():
    """Oracle: written out, the shortest first."""
    assert list(learning.read_minutes(["15:3", "0.5", "1:1"]).items()) == [
        (0.5, 1), (1.0, 1), (15.0, 3)]


@pytest.mark.parametrize("words", [["0"], ["-1"], ["nan"], ["inf"], ["five"], ["5:0"], ["5:x"],
                                   ["5:"], [":3"], ["5:1.5"], ["5:1:2"], ["5", "5:3"]])
def test_minutes_that_mean_nothing_end_in_one_line(words, tmp_path, capsys):
    """Oracle: exit code 2, one line that names the option, no folder made."""
    assert train.main(["--out", str(tmp_path / "out"), "--minutes", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "--minutes" in error
    assert not (tmp_path / "out").exists()


# ---- a run ----

@pytest.fixture
def one_run(small_text, monkeypatch):
    """A function that makes one run of the dense GPT in this process -> its figures."""
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    planned = learning.plan({0.002: 1}, SPEED, RECIPES)[-1]

    def make(seed, **changes):
        recipe = RECIPE.replace(data=str(small_text), **changes)
        return learning.learn(planned | {"seed": seed}, CONFIG, recipe, torch.device("cpu"))

    return make


def test_a_run_depends_on_its_seed_and_on_nothing_else(one_run):
    """Oracle: the same run again, and one of another seed."""
    first, other, again = one_run(0), one_run(1), one_run(0)
    assert set(first) == learning.FIGURES and (first["seed"], other["seed"]) == (0, 1)
    assert first["val_bits_per_byte"] == again["val_bits_per_byte"] != other["val_bits_per_byte"]


def test_a_run_that_diverges_is_named(one_run):
    """Oracle: a learning rate that no weight survives."""
    with pytest.raises(FloatingPointError, match="dense GPT, 0.002 min, seed 3, step 2: the loss"):
        one_run(3, optimizer="adamw", learning_rate=1e38, clip_norm=1e38)


# ---- going on ----

def pretend(planned, *_):
    """Stands for learn."""
    return planned | {"val_bits_per_byte": 1 + 0.1 * planned["seed"] + 1 / planned["steps"],
                      "real_seconds": 1.0}


@pytest.fixture
def bench(small_text, tmp_path, monkeypatch):
    """A function that starts the benchmark on a miniature in this process -> runs that it made.

    Its picture is empty unless `draws` is set: to draw it takes most of the time.
    """
    made = []

    def run_here(function, tasks, jobs, keep):
        for task in tasks:
            if len(made) == start.limit:
                raise KeyboardInterrupt
            made.append(task[0])
            keep(pretend(*task))

    def start(*words, limit=None):
        made.clear()
        start.limit = limit
        start.code = train.main(["--rounds", "1", "--steps", "1", "--device", "cpu",
                                 "--out", str(tmp_path / "out"), *words])
        return [(run["minutes"], run["seed"], run["model"]) for run in made]

    start.path, start.draws = tmp_path / "out/train.json", False
    monkeypatch.setattr(plots, "png",
                        lambda fig, dpi: png(fig, dpi) if start.draws else b"\x89PNG")
    monkeypatch.setattr(train.ModelConfig, "preset", lambda name: CONFIG)
    monkeypatch.setattr(train.TrainConfig, "preset",
                        lambda name: RECIPE.replace(data=str(small_text)))
    monkeypatch.setattr(learning, "run_all", run_here)
    return start


def stored(path):
    """The results in the file."""
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_stopped_benchmark_goes_on_where_it_was(bench, capsys):
    """Oracle: the runs made before and after; the speeds and the finished runs stay."""
    assert len(bench("--minutes", "0.001:2", "0.002", limit=4)) == 4
    assert bench.code == 130
    before = stored(bench.path)
    assert len(before["learning"]) == 4
    assert bench("--minutes", "0.001:2", "0.002") == [
        (0.001, 1, WITHOUT_MTP), (0.001, 1, DENSE), *((0.002, 0, model) for model in MODELS)]
    after, printed = stored(bench.path), capsys.readouterr().out
    assert "4 of 9 runs are in" in printed and "left out" in printed
    assert after["speed"] == before["speed"] and after["learning"][:4] == before["learning"]
    assert bench("--minutes", "0.001:2", "0.002") == [] and bench.code == 0
    assert bench("--minutes", "0.001:3") == [(0.001, 2, model) for model in MODELS]
    assert len(stored(bench.path)["learning"]) == 12       # none is forgotten
    assert bench("--speed-only") == [] and len(stored(bench.path)["learning"]) == 12


def test_other_settings_are_refused(bench, capsys):
    """Oracle: exit code 2, one line that names the setting; the file stays as it was."""
    bench("--minutes", "0.001")
    before = bench.path.read_bytes()
    capsys.readouterr()
    for words, named in [
            ("--seed 1", "seed 0, not 1"), ("--rounds 2", "rounds 1, not 2"),
            ("--learning-rates 0.5 0.01", "recipe of ours: muon_learning_rate 0.01, not 0.5"),
            ("--optimizers muon adamw", "recipe of dense GPT: optimizer muon, not adamw")]:
        assert bench("--minutes", "0.001", *words.split()) == [] and bench.code == 2, words
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and named in error and "--out" in error, words
        assert bench.path.read_bytes() == before, words


def test_a_file_of_something_else_is_refused(bench, capsys):
    """Oracle: exit code 2 and one line. The results of older versions have no settings."""
    bench("--speed-only")
    results = stored(bench.path)
    capsys.readouterr()
    for spoilt in ("no JSON", "[]", '{"speed": {}}',
                   json.dumps(results | {"learning": [{"model": "ours", "minutes": 1}]}),
                   json.dumps(results | {"speed": {}})):
        bench.path.write_text(spoilt, encoding="utf-8")
        bench("--minutes", "0.001")
        error = capsys.readouterr().err
        assert bench.code == 2 and error.count("\n") == 1, spoilt
        assert "nothing that can be continued" in error, spoilt


def test_a_run_of_other_steps_is_refused(bench, capsys):
    """Oracle: exit code 2 and one line with both numbers of steps."""
    bench("--minutes", "0.001")
    results = stored(bench.path)
    results["learning"][0]["steps"] = 123_456
    bench.path.write_text(json.dumps(results), encoding="utf-8")
    bench("--minutes", "0.001")
    error = capsys.readouterr().err
    assert bench.code == 2 and "has 123,456 steps" in error


def test_the_results_name_machine_and_settings(bench, capsys):
    """Oracle: the file and the printed lines."""
    bench.draws = True
    bench("--minutes", "0.001:2", "0.002:2")
    results, printed = stored(bench.path), capsys.readouterr().out
    machine = results["machine"]
    assert isinstance(machine["bfloat16_instructions"], bool)
    words = "with" if machine["bfloat16_instructions"] else "without"
    assert f"{machine['cpu']}, {words} bfloat16 instructions" in printed
    assert set(results["learning"][0]) == learning.FIGURES
    assert results["summary"]["differences"][0]["seeds"] == 2
    assert learning_results.tables(results["learning"]) in printed
    assert (bench.path.parent / "train.png").stat().st_size > 5000


@pytest.mark.multi
def test_runs_in_processes_give_the_same_results_as_one_after_another(small_text):
    """Oracle: the same runs in other processes; bits per byte are equal to the last digit."""
    recipe, device = RECIPE.replace(data=str(small_text)), torch.device("cpu")
    planned, found = learning.plan({0.005: 1}, SPEED, RECIPES), []
    for jobs in (1, 2):
        runs = []
        run_all(learning.learn, [(run, CONFIG, recipe, device) for run in planned], jobs,
                runs.append)
        found.append({run["model"]: run["val_bits_per_byte"] for run in runs})
        assert all(set(run) == learning.FIGURES for run in runs)
    assert found[0] == found[1] and set(found[0]) == set(MODELS)
    assert all(0 < bits < 20 for bits in found[0].values())
