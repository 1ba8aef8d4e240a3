"""A run owns its folder: a second one is refused, and nothing of the first is touched."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import train_tiny
from minidsv3.command import UserError
from minidsv3.context import extend
from minidsv3.files import LOCK
from minidsv3.study import pool
from minidsv3.train.options import configure, parse_arguments
from minidsv3.train.owner import owned
from minidsv3.train.step import Step

ROOT = Path(__file__).resolve().parents[2]


def listing(folder):
    """{path: bytes} of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [[], ["--overwrite"], ["--resume"]])
def test_a_second_run_is_refused_in_one_line(miniature, tmp_path, capsys, options):
    """Oracle: exit code 2 and the bytes of the folder while the first run owns it."""
    with owned(tmp_path / "run"):
        (tmp_path / "run" / "state.pt.tmp").write_text("half a state of the first run")
        before = listing(tmp_path)
        assert train_tiny.main([*miniature, "--out", str(tmp_path / "run"), *options]) == 2
        line, = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: another run writes to {tmp_path / 'run'}; wait")
        assert listing(tmp_path) == before


def test_of_runs_that_start_at_one_moment_one_owns_the_folder(tmp_path):
    """Oracle: one owner in each round, and five refusals in one line."""
    together, said = threading.Barrier(6), []

    def start():
        together.wait(60)
        try:
            with owned(tmp_path / "new" / "run"):
                said.append("owned")
                together.wait(60)                # until all others are refused
        except Exception as error:               # of any kind: the others must not wait for ever
            said.append(str(error))
            together.wait(60)

    for _ in range(20):
        said.clear()
        threads = [threading.Thread(target=start) for _ in range(6)]
        for act in (threading.Thread.start, threading.Thread.join):
            for thread in threads:
                act(thread)
        assert said.count("owned") == 1, said
        assert sum(text.startswith("another run writes to ") for text in said) == 5, said


@pytest.mark.slow
def test_a_running_process_owns_its_folder_until_it_is_killed(miniature, tmp_path, capsys):
    """Oracle: two processes. After a kill, the lock file that is left stands in nobody's way."""
    folder = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train_tiny.py"), *miniature, "--steps", "100000",
               "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (folder / "metrics.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.01)
        assert train_tiny.main([*miniature, "--out", str(folder), "--overwrite"]) == 2
        assert "another run writes to" in capsys.readouterr().err
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert (folder / LOCK).exists()
    assert train_tiny.main([*miniature, "--steps", "1", "--out", str(folder), "--overwrite"]) == 0
    assert json.loads((folder / "summary.json").read_bytes())["steps"] == 1
    assert not (folder / LOCK).exists()


def test_the_runs_of_a_study_and_an_extension_own_theirs(miniature, finished_run, tmp_path, capsys):
    """Oracle: the same refusal by the commands that train without train_tiny.py."""
    model, recipe = configure(parse_arguments(miniature))
    with owned(tmp_path / "run"):
        with pytest.raises(UserError, match="another run writes to .*run; wait"):
            pool.train(model, recipe, tmp_path / "run")
        assert extend.main([str(finished_run), "--out", str(tmp_path / "run")]) == 2
        assert "another run writes to" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_empty_folders_are_not_left_behind(tmp_path):
    """Oracle: the folders that were there; one that got a file stays, without the lock."""
    with pytest.raises(UserError, match="bad"):
        with owned(tmp_path / "new" / "run"):
            raise UserError("bad")
    assert list(tmp_path.iterdir()) == []
    with owned(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "a").write_text("text")
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["a"]


def out_of_memory(*_):
    raise RuntimeError("not enough memory")


@pytest.mark.parametrize("options", [
    ["--data", "nowhere.txt"], ["--from", "nowhere"], ["--set", "window=300"],
    ["--set", "num_experts_per_tok=7"], []], ids=" ".join)
def test_an_old_run_stays_until_the_new_one_can_begin(
        miniature, finished_run, tmp_path, monkeypatch, options):
    """Oracle: the bytes of the old run. Without options, the first pass has too little memory."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    before = listing(run)
    if options:
        assert train_tiny.main([*miniature, "--out", str(run), "--overwrite", *options]) == 2
    else:
        monkeypatch.setattr(Step, "gradients", out_of_memory)
        assert train_tiny.main([*miniature, "--out", str(run), "--overwrite"]) == 2
    assert listing(run) == before


@pytest.mark.parametrize("options", [["--windows", "64", "100000"], ["--data", "nowhere"], []],
                         ids=" ".join)
def test_an_old_extension_stays_until_the_new_one_can_begin(
        finished_run, tmp_path, monkeypatch, options):
    """Oracle: the bytes of the old one, of which all files are made up."""
    out = tmp_path / "out"
    (out / "phase1").mkdir(parents=True)
    for folder in (out, out / "phase1"):
        for name in ("state.pt", "summary.json", "lineage.json", "model.safetensors"):
            (folder / name).write_text(f"old {name}")
    before = listing(out)
    arguments = [str(finished_run), "--out", str(out), "--overwrite", "--steps", "2", "--device",
                 "cpu", *options]
    if options:
        assert extend.main(arguments) == 2
    else:
        monkeypatch.setattr(Step, "gradients", out_of_memory)
        assert extend.main(arguments) == 2
    assert listing(out) == before


class Team:
    """Stands for one of two processes; any() knows what the other one answers."""

    def __init__(self, first, other=False):
        self.first, self.other = first, other

    def any(self, flag):
        return flag or self.other


def test_of_several_processes_the_first_holds_the_lock(tmp_path):
    """Oracle: the others make no file, and are refused if the first one is."""
    with owned(tmp_path / "run", Team(first=False)):
        assert not (tmp_path / "run").exists()
    with owned(tmp_path / "run", Team(first=True)):
        assert (tmp_path / "run" / LOCK).exists()
        for team in (Team(first=True), Team(first=False, other=True)):
            with pytest.raises(UserError, match="run"):
                with owned(tmp_path / "run", team):
                    pytest.fail("two owners")
        assert (tmp_path / "run" / LOCK).exists()


@pytest.mark.parametrize("name", ["sample.txt", "metrics.jsonl"])
def test_a_file_of_the_old_run_is_not_read_and_then_removed(
        miniature, finished_run, small_text, tmp_path, capsys, name):
    """The text of the new run lies in the old one's file. Oracle: the bytes of the old run."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    shutil.copy(small_text, run / name)
    before = listing(run)
    assert train_tiny.main([*miniature, "--data", str(run / name), "--out", str(run),
                            "--overwrite"]) == 2
    assert f"{name} is a file of the run in {run}, which goes" in capsys.readouterr().err
    assert listing(run) == before
