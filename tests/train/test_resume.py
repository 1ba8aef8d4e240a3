"""--resume: what defines a run must agree; where its files are, and what fits the machine, may not.

Oracle of all that goes on: the uninterrupted run.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train_tiny
from minidsv3 import config
from minidsv3.context import extend
from minidsv3.data import dataset
from minidsv3.data.tokenizer import Tokenizer
from minidsv3.train import recipe
from minidsv3.train.checkpoint import RunFolder
from tests.train.test_trainer import ctrl_c_in_the_third_step, metrics

pytestmark = pytest.mark.usefixtures("short_end")
ROOT = Path(__file__).resolve().parents[2]


def with_text(miniature, data):
    """The arguments of the miniature run on another text."""
    return [*miniature, "--data", str(data)]


@pytest.fixture
def texts(small_text, tmp_path, monkeypatch):
    """tmp_path/here is the working directory; texts/ in it holds the text of the miniature run."""
    (tmp_path / "here" / "texts").mkdir(parents=True)
    shutil.copy(small_text, tmp_path / "here" / "texts")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here" / "texts"


@pytest.fixture
def stopped(miniature, texts, monkeypatch):
    """The folder of a run on `texts`, by its relative name, that was stopped after three steps."""
    with ctrl_c_in_the_third_step(monkeypatch):
        assert train_tiny.main([*with_text(miniature, "texts"), "--out", "run"]) == 130
    return Path("run").resolve()


def go_on(folder, *options):
    """Resume -> exit code."""
    return train_tiny.main(["--out", str(folder), "--resume", "--device", "cpu", *options])


def test_a_text_goes_by_any_name(finished_run, stopped, texts):
    """The same folder in another spelling; the figures are those of the unbroken run."""
    assert go_on(stopped, "--data", "../here/texts/") == 0
    assert metrics(stopped) == metrics(finished_run)


def test_a_text_may_move(finished_run, stopped, texts):
    """The old place is gone, and the new one is named."""
    texts.rename(texts.parent / "moved")
    assert go_on(stopped, "--data", "moved", "--preset", "tiny") == 0
    assert metrics(stopped) == metrics(finished_run)
    assert json.loads((stopped / "train.json").read_bytes())["data"] == "moved"


@pytest.mark.parametrize("decoy", [False, True])
def test_a_run_goes_on_in_another_working_directory(
        finished_run, stopped, tmp_path, monkeypatch, decoy):
    """There a folder may have the same relative name and hold another text."""
    (tmp_path / "there" / "texts").mkdir(parents=True)
    if decoy:
        (tmp_path / "there" / "texts" / "a.txt").write_text("another text\n" * 2000)
    monkeypatch.chdir(tmp_path / "there")
    assert go_on(stopped) == 0
    assert metrics(stopped) == metrics(finished_run)


def test_run_and_text_may_move_together(finished_run, stopped, tmp_path, monkeypatch):
    """The name of the text is a relative one, and their folder was renamed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").rename(tmp_path / "renamed")
    monkeypatch.chdir(tmp_path / "renamed")
    assert go_on("run") == 0
    assert metrics(tmp_path / "renamed" / "run") == metrics(finished_run)


def test_a_text_that_is_another_is_refused_by_its_hash(stopped, texts, capsys):
    """One line names it; the state is unchanged."""
    before = (stopped / "state.pt").read_bytes()
    (texts / "more.txt").write_text("one more file\n")
    assert go_on(stopped) == 2
    assert "the text 'texts' has changed since this run began, or is another one" in (
        capsys.readouterr().err)
    assert (stopped / "state.pt").read_bytes() == before


@pytest.mark.parametrize("setting", [
    "micro_batch=2", "save_every=1", "eval_every=2", "recompute=true"])
def test_what_fits_the_machine_may_change(finished_run, stopped, setting):
    """Losses to float32 rounding; the weights bit for bit where the micro-batch is the same."""
    assert go_on(stopped, "--set", setting) == 0
    assert [line["loss"] for line in metrics(stopped)] == pytest.approx(
        [line["loss"] for line in metrics(finished_run)], rel=1e-5)
    if "micro_batch" not in setting:
        assert (stopped / "model.safetensors").read_bytes() == (
            finished_run / "model.safetensors").read_bytes()
    name, _, value = setting.partition("=")
    assert json.loads((stopped / "train.json").read_bytes())[name] == json.loads(value)


@pytest.mark.parametrize("options, words", [
    (["--preset", "small"], "began with preset='tiny', not 'small'"),
    (["--set", "batch_size=8"], "began with batch_size=6, not 8"),
    (["--from", "x"], "began with start='', not 'x'"),
    (["--set", "kv_lora_rank=16"], "began with kv_lora_rank=24, not 16")])
def test_what_defines_the_run_may_not_change(stopped, capsys, options, words):
    """One line names the field and both values."""
    assert go_on(stopped, *options) == 2
    line, = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: --resume: the run ") and words in line


def test_the_tokenizer_is_not_learnt_again(finished_run, stopped, monkeypatch):
    """Oracle: training one fails; without tokenizer.json, the text gives the same one again."""
    def fail(*_):
        raise AssertionError("learnt again")

    with monkeypatch.context() as patch:
        patch.setattr(dataset.Tokenizer, "train", fail)
        with ctrl_c_in_the_third_step(monkeypatch):
            assert go_on(stopped) == 0
    assert metrics(stopped) == metrics(finished_run)
    assert Tokenizer.load(stopped).token_bytes == Tokenizer.load(finished_run).token_bytes


@pytest.mark.slow
def test_what_a_run_began_from_is_never_read_again(finished_run, miniature, tmp_path, capsys,
                                                   monkeypatch):
    """It is gone, and the command names it once more, then another one, which gives a notice."""
    source = shutil.copytree(finished_run, tmp_path / "source")
    model = {"--set", "window=32", "batch_size=6", "batch_start=4", "micro_batch=6"}
    arguments = [each for each in miniature if "=" not in each or each in model]
    arguments = ["--from", str(source), "--data", miniature[1], "--device", "cpu", "--precision",
                 "fp32", "--steps", "4"] + [word for each in sorted(model - {"--set"})
                                            for word in ("--set", each)]
    assert train_tiny.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    with ctrl_c_in_the_third_step(monkeypatch):
        assert train_tiny.main([*arguments, "--out", str(tmp_path / "half")]) == 130
    shutil.rmtree(source)
    shutil.copytree(tmp_path / "half", tmp_path / "copy")
    assert train_tiny.main([*arguments, "--resume", "--out", str(tmp_path / "half")]) == 0
    assert "not read" not in capsys.readouterr().err
    assert go_on(tmp_path / "copy", "--from", "elsewhere") == 0
    assert "--from elsewhere is not read: the run goes on" in capsys.readouterr().err
    for name in ("half", "copy"):
        assert metrics(tmp_path / name) == metrics(tmp_path / "whole")
        recipe = json.loads((tmp_path / name / "train.json").read_bytes())
        assert recipe["start"] == str(source)


def test_a_state_of_an_older_version_goes_on(finished_run, stopped):
    """It does not know the working directory of its run."""
    state = RunFolder(stopped, resume=True).load_state()
    del state["directory"]
    torch.save(state, stopped / "state.pt")
    assert go_on(stopped) == 0
    assert metrics(stopped) == metrics(finished_run)


@pytest.mark.slow
def test_an_extension_goes_on_with_a_run_that_moved(
        finished_run, small_text, tmp_path, monkeypatch, capsys):
    """It is known by its weights, and the text by its hash; others of either kind are refused."""
    source, moved = tmp_path / "source", tmp_path / "moved"
    shutil.copytree(finished_run, source)
    arguments = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    with ctrl_c_in_the_third_step(monkeypatch):
        assert extend.main([str(source), *arguments, "--steps", "3"]) == 130
    source.rename(moved)
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"other weights")
    (tmp_path / small_text.name).write_text("another text\n" * 3000)
    for bad, words in (([str(other)], "of .*source, and the weights in .*other are others"),
                       ([str(tmp_path)], "model.safetensors is missing; give the folder"),
                       ([str(moved), "--data", str(tmp_path / small_text.name)],
                        "is another one")):
        assert extend.main([*bad, *arguments, "--resume"]) == 2
        assert re.search(words, capsys.readouterr().err.splitlines()[-1])
    copy = shutil.copytree(small_text.parent, tmp_path / "copy") / small_text.name
    assert extend.main([str(moved), *arguments, "--resume", "--data", str(copy)]) == 0
    assert (tmp_path / "out" / "summary.json").exists()


def wait_for_lines(folder, count, process):
    """Until the log has so many lines."""
    log = folder / "metrics.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < count:
        assert process.poll() is None
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_killed_terminated_cut_off_moved_and_with_half_the_micro_batch(
        miniature, texts, tmp_path, rounding):
    """All that can befall a run, one after the other. Oracle: the losses of the unbroken run.

    Bit for bit until the micro-batch is halved, then to rounding. The waiting is for steps,
    so that a slow machine does not matter.
    """
    arguments = [*with_text(miniature, "texts"), "--steps", "40", "--set", "eval_every=1000"]
    assert train_tiny.main([*arguments, "--out", "whole"]) == 0
    folder, done, words = Path("run"), 0, arguments
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train_tiny.py"), *words, "--out", str(folder)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.stderr.close()               # its terminal is gone
            wait_for_lines(folder, done + 3, process)
            process.send_signal(number)
            process.wait(timeout=100)
        finally:
            process.kill()
        done = RunFolder(folder, resume=True).load_state()["step"]
        words = ["--resume", "--device", "cpu"]
    assert 3 <= done < 40
    moved, there = tmp_path / "moved", tmp_path / "text"
    folder.rename(moved)
    texts.rename(there)
    assert go_on(moved, "--data", str(there), "--set", "micro_batch=3") == 0
    ours, whole = ([line["loss"] for line in metrics(each)] for each in (moved, Path("whole")))
    assert ours[:done] == whole[:done] and ours == pytest.approx(whole, rel=rounding)


def test_the_same_command_goes_on_whatever_it_changed(miniature, tmp_path, monkeypatch, capsys):
    """A run of one preset may have nearly all fields of another. Oracle: exit codes.

    The same preset without its changes is another run, and so is another preset with them.
    """
    base = {**recipe.PRESETS["tiny"], **config.PRESETS["tiny"]}
    other = {**base, **recipe.PRESETS["short"], **config.PRESETS["short"], "batch_size": 4,
             "batch_start": 4, "micro_batch": 4, "steps": 6, "retrieval": 0.0, "vocab_size": 300}
    del other["max_position_embeddings"]         # is the window, if nobody names it
    changes = [word for name, value in other.items() if value != base.get(name)
               for word in ("--set", f"{name}={json.dumps(value)}")]
    files = ["--data", miniature[1], "--out", str(tmp_path / "run"), "--device", "cpu"]
    with ctrl_c_in_the_third_step(monkeypatch):
        assert train_tiny.main(["--preset", "tiny", *changes, *files]) == 130
    for bad in (["--preset", "tiny"], ["--preset", "small", *changes]):
        assert train_tiny.main([*bad, *files, "--resume"]) == 2
        assert "began with preset='short'" in capsys.readouterr().err or "small" in bad
    assert train_tiny.main(["--preset", "tiny", *changes, *files, "--resume"]) == 0
