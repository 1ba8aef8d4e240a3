"""Whatever stops a run: it finishes its step and saves. What nobody can read ends nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

import train_tiny
from minidsv3.command import SafeStream
from minidsv3.train import report
from minidsv3.train.checkpoint import RunFolder
from minidsv3.train.stop import SIGNALS
from minidsv3.train.trainer import Trainer
from tests.conftest import MINIATURE
from tests.train.test_trainer import metrics

pytestmark = pytest.mark.usefixtures("short_end")
ROOT = Path(__file__).resolve().parents[2]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal or terminal")


@pytest.fixture
def in_step_three(monkeypatch):
    """A function; what it is given is called within the third step of every run."""
    def arrange(action):
        real = Trainer.train_step

        def train_step(self):
            if self.step == 2:
                action()
            return real(self)

        monkeypatch.setattr(Trainer, "train_step", train_step)
    return arrange


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("times", [1, 3])
def test_a_signal_ends_the_run_after_its_step(
        finished_run, miniature, tmp_path, monkeypatch, in_step_three, number, times):
    """Oracle: the uninterrupted run, bit for bit; a shell's exit codes; the handlers of before.

    A terminal that closes sends several SIGHUPs. Only a second Ctrl-C ends a run at once.
    """
    if number == signal.SIGINT and times > 1:
        pytest.skip("is tested in test_trainer.py")
    handlers = [signal.getsignal(each) for each in SIGNALS]
    in_step_three(lambda: [signal.raise_signal(number) for _ in range(times)])
    folder = tmp_path / "run"
    code = train_tiny.main([*miniature, "--save-every", "9", "--out", str(folder)])
    assert code == {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}.get(number.name, 128 + number)
    assert RunFolder(folder, resume=True).load_state()["step"] == 3
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    monkeypatch.undo()
    assert train_tiny.main(["--out", str(folder), "--resume", "--device", "cpu"]) == 0
    assert metrics(folder) == metrics(finished_run)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(miniature, tmp_path, in_step_three, request, number):
    """As under `nohup`, or behind `&` in a script. Oracle: the run ends with its last step."""
    before = signal.signal(number, signal.SIG_IGN)
    request.addfinalizer(lambda: signal.signal(number, before))
    in_step_three(lambda: signal.raise_signal(number))
    assert train_tiny.main([*miniature, "--out", str(tmp_path / "run")]) == 0
    assert signal.getsignal(number) == signal.SIG_IGN


def test_a_run_in_another_thread_sets_no_handler(finished_run, miniature, tmp_path):
    """Oracle: the run in the main thread."""
    codes = []
    arguments = [*miniature, "--out", str(tmp_path / "run")]
    thread = threading.Thread(target=lambda: codes.append(train_tiny.main(arguments)))
    thread.start()
    thread.join()
    assert codes == [0] and metrics(tmp_path / "run") == metrics(finished_run)


class Broken:
    """A stream that fails with this error from its third write on."""

    def __init__(self, error):
        self.error, self.writes = error, 0

    def write(self, text):
        self.writes += 1
        if self.writes > 2:
            raise self.error

    def flush(self):
        self.write("")

    def fileno(self):
        raise ValueError("no file")


@pytest.mark.parametrize("stream", [
    None, Broken(BrokenPipeError(32, "Broken pipe")), Broken(OSError(5, "Input/output error")),
    Broken(ValueError("I/O operation on closed file"))], ids=["none", "pipe", "terminal", "closed"])
def test_a_bar_that_cannot_be_written_ends_nothing(
        finished_run, miniature, tmp_path, monkeypatch, stream):
    """Oracle: the run with a bar."""
    monkeypatch.setattr(sys, "stderr", stream)
    assert train_tiny.main([*miniature, "--out", str(tmp_path / "run")]) == 0
    assert metrics(tmp_path / "run") == metrics(finished_run)
    assert stream is None or stream.writes > 2
    assert sys.stderr is stream


@pytest.mark.slow
def test_a_reader_that_goes_ends_nothing(miniature, tmp_path):
    """`train_tiny.py 2>&1 | head -2`. Oracle: a finished run; exit code 141, as in a shell."""
    arguments = [*miniature, "--out", str(tmp_path / "run")]
    process = subprocess.Popen([sys.executable, str(ROOT / "train_tiny.py"), *arguments],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert b"device cpu" in process.stdout.readline()
    assert b"output in" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=100) == 141
    assert json.loads((tmp_path / "run" / "summary.json").read_bytes())["steps"] == 6


@pytest.mark.slow
@POSIX
def test_a_terminal_that_closes_leaves_a_state(miniature, tmp_path):
    """Oracle: the state of the last step in the log, though states are saved every 100,000."""
    folder = tmp_path / "run"
    terminal, its_end = os.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_tiny.py"), *miniature, "--steps", "100000",
         "--save-every", "100000", "--out", str(folder)], stdin=its_end, stdout=its_end,
        stderr=its_end, start_new_session=True)
    try:
        os.close(its_end)
        while not (folder / "metrics.jsonl").exists() or len(metrics_so_far(folder)) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        os.close(terminal)                       # from here on all that it prints fails
        process.send_signal(signal.SIGHUP)
        process.wait(timeout=100)
    finally:
        process.kill()
    state = RunFolder(folder, resume=True).load_state()
    assert state["step"] == len(metrics(folder)) >= 2
    assert not (folder / "run.lock").exists()


def metrics_so_far(folder):
    """The whole lines of a log that is being written."""
    return (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]


def test_what_a_stream_still_holds_is_not_written_at_exit():
    """Oracle: a pipe without a reader, behind a buffer that would fail when it is flushed."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as stream:
        silent = SafeStream(stream)
        silent.write("text")
        silent.flush()
        silent.write("more")
        silent.flush()


@pytest.mark.slow
def test_a_run_without_a_reader_from_its_beginning_is_trained(miniature, tmp_path):
    """Oracle: a finished run; exit code 141, as in a shell."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "old.txt").write_bytes(b"\xff")       # of which the first line tells
    (tmp_path / "texts" / "a.txt").write_bytes(Path(miniature[1]).read_bytes())
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_tiny.py"), *miniature, "--data",
         str(tmp_path / "texts"), "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdout.close()
    assert process.wait(timeout=100) == 141
    assert json.loads((tmp_path / "run" / "summary.json").read_bytes())["steps"] == 6


@pytest.mark.parametrize("place, words, code", [
    ("evaluate", "--resume goes on from the last checkpoint", 0), ("sample", "is finished", 2)])
def test_ctrl_c_after_the_last_step_says_what_is_left(
        miniature, tmp_path, monkeypatch, capsys, place, words, code):
    """Before the summary is written the evaluation is missing, after it nothing that is needed.

    Oracle: the exit code of --resume.
    """
    def ctrl_c(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "draw", lambda *_: None)         # which takes most of the time
    with monkeypatch.context() as patch:
        patch.setattr(report, place, ctrl_c)
        assert train_tiny.main([*miniature, "--out", str(tmp_path / "run")]) == 130
    assert words in capsys.readouterr().out.splitlines()[-1]
    assert train_tiny.main(["--resume", "--out", str(tmp_path / "run"), "--device", "cpu"]) == code


@pytest.mark.slow
@POSIX
def test_a_study_that_is_stopped_stops_its_runs(small_text, tmp_path):
    """Oracle: its exit code, and the state of the last step in the log, which no longer grows."""
    words = [word for name, value in MINIATURE.items() if name != "eval_every"
             for word in ("--both", f"{name}={value}")]
    process = subprocess.Popen(
        [sys.executable, "-m", "minidsv3.study.compare", "--set", "gamma=0", "--seeds", "1",
         "--steps", "100000", "--data", str(small_text), "--device", "cpu", "--jobs", "1",
         "--out", str(tmp_path / "out"), *words], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True)
    folder = tmp_path / "out" / "0-default" / "seed-0"
    try:
        while not (folder / "metrics.jsonl").exists() or len(metrics_so_far(folder)) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        assert process.wait(timeout=100) == 143
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert RunFolder(folder, resume=True).load_state()["step"] == len(metrics(folder)) >= 2
    assert not (folder / "run.lock").exists()
