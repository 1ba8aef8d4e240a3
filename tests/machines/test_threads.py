"""Threads: any number gives the same losses, a slow run gives advice, the user's settings stay."""

import os
import subprocess
import sys

import pytest
import torch

import generate
import train_tiny
from minidsv3.device import choose_threads
from minidsv3.train import pace
from minidsv3.train.checkpoint import RunFolder
from minidsv3.train.options import configure, parse_arguments
from train_tiny import make_trainer

SHOW = "import os, minidsv3; print(os.environ.get('GOMP_SPINCOUNT'))"
linux = pytest.mark.skipif(sys.platform != "linux", reason="libgomp's setting is made on Linux")


def child(settings):
    """A process with these variables: its output, with libgomp's report of its settings."""
    clean = {name: value for name, value in os.environ.items()
             if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    return subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True,
                          env={**clean, "OMP_DISPLAY_ENV": "verbose", **settings})


@linux
@pytest.mark.slow
def test_threads_that_wait_soon_sleep():
    """Oracle: libgomp's own report of its settings, printed when torch loads it."""
    done = child({})
    assert done.stdout.strip().isdecimal()
    assert f"GOMP_SPINCOUNT = '{done.stdout.strip()}'" in done.stderr


@linux
@pytest.mark.slow
@pytest.mark.parametrize("settings, expected", [
    ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "None"),
    ({"OMP_WAIT_POLICY": "active"}, "None")])
def test_a_users_own_setting_stays(settings, expected):
    """Oracle: the variables that were given."""
    assert child(settings).stdout.strip() == expected


@pytest.fixture
def threads():
    """torch's number of threads, put back afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_any_number_of_threads_gives_the_same_losses(miniature, tmp_path, threads):
    """Oracle: the losses of one thread, up to the order of float32 sums."""
    losses = []
    for count in (1, 2, 4):
        choose_threads(count)
        assert torch.get_num_threads() == count
        arguments = parse_arguments([*miniature, "--out", str(tmp_path / str(count))])
        run = make_trainer(*configure(arguments), RunFolder(tmp_path / str(count)),
                           torch.device("cpu"))
        losses.append([run.train_step()[0]["loss"] for _ in range(4)])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)


def test_the_option_reaches_torch(threads, capsys):
    """Oracle: torch's own number of threads; a number out of range is one line and exit code 2."""
    assert train_tiny.main(["--threads", "1", "--steps", "0"]) == 2
    assert torch.get_num_threads() == 1
    assert train_tiny.main(["--threads", "100000"]) == 2
    assert train_tiny.main(["--threads", "0"]) == 2
    assert "--threads 0 must be 1 to" in capsys.readouterr().err.splitlines()[-1]
    assert generate.main(["--threads", "1", "--prompt", "a", "--max-new-tokens", "1"]) == 0
    assert generate.main(["--threads", "-2", "--prompt", "a"]) == 2
    assert "--threads -2 must be 1 to" in capsys.readouterr().err.splitlines()[-1]


class Run:
    """The part of a Trainer that Pace reads: steps of 8 sequences."""

    def __init__(self, steps):
        self.sizes, self.step, self.device = [8] * steps, 0, torch.device("cpu")

    def lines(self, seconds):
        """The messages of a run whose steps take these numbers of seconds."""
        watch, said = pace.Pace(self), []
        for each in seconds:
            self.step += 1
            said.append(watch.note(each))
        return said


@pytest.fixture
def quiet(monkeypatch):
    """A machine on which no other program runs."""
    monkeypatch.setattr(pace, "disturbance", lambda device: 1.1)


def test_a_run_says_once_how_long_it_will_take(quiet):
    """Oracle: by hand, after ten steps: 590 more of 2 s each."""
    said = Run(600).lines([2.0] * 200)
    assert [n for n, line in enumerate(said, 1) if line] == [10]
    assert said[9] == "2 s a step: about 20 min of training to go"
    assert not any(Run(15).lines([2.0] * 15))              # it ends at once


def test_smaller_steps_at_the_beginning_are_no_reason_to_complain(quiet):
    """Oracle: by hand, for steps that grow from 1 to 8 sequences at one second per sequence."""
    run = Run(600)
    run.sizes[:20] = [1] * 20
    said = run.lines([1.0] * 20 + [8.0] * 60)
    assert [n for n, line in enumerate(said, 1) if line] == [10]
    assert said[9] == "1 s a step: about 78 min of training to go"     # 10 + 580 * 8 seconds


def test_a_slow_run_is_told_what_helps_once(quiet, threads):
    """Oracle: the ratio to the run's best ten steps, by hand; one thread cannot become fewer."""
    torch.set_num_threads(2)
    said = Run(600).lines([2.0] * 30 + [5.0] * 60)
    assert [n for n, line in enumerate(said, 1) if line] == [10, 40]
    assert "2.5 times as long as they did before" in said[39] and "--threads 1" in said[39]
    assert not any(Run(600).lines([2.0] * 30 + [3.9] * 60)[10:])
    torch.set_num_threads(1)
    assert Run(600).lines([2.0] * 30 + [5.0] * 60)[39].endswith("probably busy; close it.")


def test_a_run_that_is_disturbed_from_the_start_is_told_too(monkeypatch):
    """Oracle: the ratio measured with matrix products, set by hand."""
    monkeypatch.setattr(pace, "disturbance", lambda device: 2.25)
    said = Run(600).lines([4.0] * 60)
    assert [n for n, line in enumerate(said, 1) if line] == [10]
    assert "about 39 min" in said[9] and "2.2 times as long as it does undisturbed" in said[9]


@pytest.mark.parametrize("seconds, text", [(40, "40 s"), (720, "12 min"), (12600, "3.5 h")])
def test_times_as_people_say_them(seconds, text):
    """Oracle: three durations in the unit that people would use."""
    assert pace.duration(seconds) == text
