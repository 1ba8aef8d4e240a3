"""--minutes: the plan is made from a few trial steps, which have no effect on the run."""

import json

import pytest
import torch

import train_tiny
from minidsv3.train import pace
from minidsv3.train.checkpoint import RunFolder
from minidsv3.train.options import configure, parse_arguments
from tests.train.test_trainer import ctrl_c_in_the_third_step, metrics

pytestmark = pytest.mark.usefixtures("short_end")


def without_steps(miniature, *more):
    """The arguments of the miniature run without its number of steps."""
    place = miniature.index("--steps")
    return [*miniature[:place], *miniature[place + 2:], *more]


@pytest.fixture
def six_steps(monkeypatch):
    """Make the plan as usual, but then take six steps, whatever the speed of this machine."""
    real, planned = train_tiny.plan_steps, []

    def plan(*arguments):
        planned.append(real(*arguments))
        return 6

    monkeypatch.setattr(train_tiny, "plan_steps", plan)
    return planned


def test_the_steps_thrown_away_leave_no_trace(finished_run, miniature, tmp_path, six_steps):
    """Oracle: the same run with --steps 6: losses, raw and averaged weights, bit for bit."""
    folder = tmp_path / "run"
    assert train_tiny.main(without_steps(miniature, "--minutes", "1", "--out", str(folder))) == 0
    assert len(six_steps) == 1 and six_steps[0] > 10
    assert metrics(folder) == metrics(finished_run)
    for name in ("model.safetensors", "ema.safetensors", "train.json"):
        assert (folder / name).read_bytes() == (finished_run / name).read_bytes()


def test_a_planned_run_resumes_with_its_plan(finished_run, miniature, tmp_path, monkeypatch,
                                             six_steps):
    """Oracle: the uninterrupted run. The plan is in train.json and is not made again."""
    folder = tmp_path / "run"
    with ctrl_c_in_the_third_step(monkeypatch):
        planned = without_steps(miniature, "--minutes", "1", "--out", str(folder))
        assert train_tiny.main(planned) == 130
    assert json.loads((folder / "train.json").read_text(encoding="utf-8"))["steps"] == 6
    assert train_tiny.main(["--out", str(folder), "--resume", "--device", "cpu"]) == 0
    assert len(six_steps) == 1 and metrics(folder) == metrics(finished_run)


@pytest.fixture
def planned(miniature, tmp_path, monkeypatch):
    """A Trainer and plan(minutes, begin), on a simulated machine: a step and a measured evaluation
    take 0.5 s each, and the current time is always 100 s.
    """
    arguments = parse_arguments([*miniature, "--out", str(tmp_path), "--set=mtp_every=1",
                                 "--set=expert_every=1"])
    ticks = [0]
    trainer = train_tiny.make_trainer(*configure(arguments), RunFolder(tmp_path),
                                      torch.device("cpu"))

    def clock(device):
        ticks[0] += 0.5
        return ticks[0]

    monkeypatch.setattr(pace, "clock", clock)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: 100.0)
    return trainer, lambda minutes, begin: pace.plan_steps(trainer, minutes, begin)


def test_the_plan_by_hand(planned):
    """Oracle: by hand. 3 minutes, minus 20 s already spent, minus the evaluation of all windows
    and 5 s, divided by the seconds per step; the first step is shorter (sizes 4 6 6 6 6 6).
    """
    trainer, plan = planned
    windows = len(trainer.data.inputs)
    window = 0.5 / min(32, windows)
    step = 0.5 * 34 / 36 + window / 2 * min(96, windows) / trainer.config.eval_every
    left = 180 - 20 - window * windows - 5
    assert plan(3, 80.0) == int(left / step)


def test_micro_batches_count_as_often_as_they_are_taken(planned):
    """Oracle: by hand. Three micro-batches cost one whole step and two more gradients."""
    trainer, _ = planned
    trainer.set_recipe(trainer.config.replace(micro_batch=2))
    assert pace.seconds_a_step(trainer, until=101.0) == pytest.approx(0.5 + 2 * 0.5)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert not any(router.load.any() for router in trainer.model.routers())


def test_a_slow_machine_is_not_held_up_by_planning(planned, monkeypatch):
    """Oracle: the number of trial steps; after the moment `until` no other one begins."""
    trainer, _ = planned
    taken, real = [], trainer.update
    trainer.update = lambda *arguments: taken.append(real(*arguments))
    pace.seconds_a_step(trainer, until=100.0)
    assert len(taken) == 1
    pace.seconds_a_step(trainer, until=101.0)
    assert len(taken) == 11


def test_steps_that_differ_count_alike(planned):
    """Oracle: by hand. MTP rests in every second step, experts in two of three: six differ."""
    trainer, _ = planned
    trainer.set_recipe(trainer.config.replace(mtp_every=2, expert_every=3))
    numbers, real = [], trainer.update
    trainer.update = lambda *arguments: numbers.append(arguments[2]) or real(*arguments)
    assert pace.seconds_a_step(trainer, until=100.0) == pytest.approx(0.5 / 6)
    assert numbers == [0, 1, 2, 3, 4, 5]


def test_too_few_minutes_are_refused_with_enough(planned):
    """The error names a number of minutes, and that number is then accepted."""
    _, plan = planned
    with pytest.raises(ValueError, match="--minutes 0.1 leave no time to train") as error:
        plan(0.1, 80.0)
    enough = float(str(error.value).split()[-1].rstrip("."))
    assert plan(enough, 80.0) >= 10


@pytest.mark.parametrize("arguments, words", [
    (["--minutes", "3", "--resume"], "leave one of them out"),
    (["--minutes", "3", "--set", "steps=7"], "leave one of them out"),
    (["--minutes", "1e308"], "--minutes 1e+308 must be above 0 and up to 10,000"),
    (["--minutes", "3", "--steps", "5"], "not allowed with"),
    (["--minutes", "-1"], "--minutes -1 must be above 0"),
    (["--minutes", "nan"], "--minutes nan must be above 0"),
    (["--minutes", "soon"], "invalid float value")])
def test_bad_minutes_are_one_line(arguments, words, tmp_path, capsys):
    """Oracle: the words of the error, exit code 2, and no folder."""
    assert train_tiny.main([*arguments, "--out", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err.splitlines()
    assert len(line) == 1 and words in line[0] and not (tmp_path / "run").exists()
