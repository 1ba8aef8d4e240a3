"""Run folders survive failing writes, kills and foreign files; no file stays half-written."""

import io
import json
import os
import pickle

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig, hf
from minidsv3.train.checkpoint import EXPORTS, STATE, RunFolder


def state(number):
    """A complete state, which can be recognised by its number."""
    return {name: {} for name in STATE} | {"step": number, "model": {"w": torch.full((9,), number)}}


def listing(folder):
    """{name: bytes} of everything in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_half(error):
    """A torch.save that writes something and then fails, as on a full disk."""
    def save(_, file):
        file.write(b"half a state")
        raise error
    return save


@pytest.mark.parametrize("error", [
    OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_failing_write_keeps_the_old_state(tmp_path, monkeypatch, error):
    """Oracle: the folder's bytes before, and one line that names the file, reason and remedy."""
    folder = RunFolder(tmp_path)
    folder.start(state(1))
    before = listing(tmp_path)
    monkeypatch.setattr(torch, "save", write_half(error))
    with pytest.raises(OSError) as caught:
        folder.save_state(state(2))
    message = str(caught.value)
    assert "state.pt" in message and str(error).split("\n")[0] in message and "\n" not in message
    assert "make room" in message
    assert listing(tmp_path) == before
    monkeypatch.undo()
    folder.save_state(state(3))
    assert folder.load_state()["step"] == 3


class SmallDisk(io.BytesIO):
    """A file on a disk with room for so many bytes, as a buffered file tells of it."""

    room = 500

    def write(self, data):
        """Write all of the data, or raise."""
        if self.tell() + len(data) > self.room:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_a_disk_that_fills_up_within_a_state_keeps_the_old_one(tmp_path, monkeypatch):
    """Oracle: the folder's bytes before. torch itself writes, and turns the error into its own."""
    folder = RunFolder(tmp_path)
    folder.start(state(1))
    before = listing(tmp_path)
    monkeypatch.setattr(type(tmp_path), "open", lambda self, mode: SmallDisk())
    with pytest.raises(OSError, match="cannot write .*state.pt .*No space left.*make room"):
        folder.save_state(state(2))
    monkeypatch.undo()
    assert listing(tmp_path) == before


def test_a_mistake_while_saving_is_not_called_a_full_disk(tmp_path, monkeypatch):
    """Oracle: the very RuntimeError, and the folder's bytes before."""
    folder = RunFolder(tmp_path)
    folder.start(state(1))
    before = listing(tmp_path)
    monkeypatch.setattr(torch, "save", write_half(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="^a bug$"):
        folder.save_state(state(2))
    assert listing(tmp_path) == before


def test_ctrl_c_within_a_write_keeps_the_old_state(tmp_path, monkeypatch):
    """Oracle: the folder's bytes before. KeyboardInterrupt is raised unchanged."""
    folder = RunFolder(tmp_path)
    folder.start(state(1))
    before = listing(tmp_path)
    monkeypatch.setattr(torch, "save", write_half(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        folder.save_state(state(2))
    assert listing(tmp_path) == before


def test_a_failing_rename_keeps_the_old_file(tmp_path, monkeypatch):
    """Oracle: the bytes before. On Windows a rename fails while a program reads the old file."""
    model = DeepSeekV3(ModelConfig.preset("tiny").replace(vocab_size=8, num_hidden_layers=1))
    hf.save(model, tmp_path)
    before = listing(tmp_path)
    monkeypatch.setattr(type(tmp_path), "replace", lambda *_: (_ for _ in ()).throw(
        PermissionError(13, "file in use")))
    with pytest.raises(OSError, match="config.json .*file in use"):
        hf.save(model, tmp_path)
    with pytest.raises(OSError, match="model.safetensors .*file in use"):
        hf.write_tensors(tmp_path / "model.safetensors", {"w": torch.zeros(3)})
    assert listing(tmp_path) == before


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else(tmp_path):
    """Oracle: the file names. A .tmp file that no run has written is kept."""
    folder = RunFolder(tmp_path / "run")
    folder.start(state(4))
    for name in ("state.pt.tmp", "model.safetensors.tmp", "metrics.jsonl.tmp", "notes.tmp"):
        (folder.path / name).write_text("half")
    folder.start()
    assert {path.name for path in folder.path.iterdir()} == {"state.pt", "notes.tmp"}
    assert folder.load_state()["step"] == 4


def test_an_older_run_goes_only_when_the_new_state_is_safe(tmp_path, monkeypatch):
    """Oracle: the old run's bytes after a failed start; only the new state after a good one."""
    old = RunFolder(tmp_path)
    old.start(state(1))
    for name in EXPORTS:
        (tmp_path / name).write_text("old")
    before = listing(tmp_path)
    new = RunFolder(tmp_path, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", write_half(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            new.start(state(0))
    assert listing(tmp_path) == before
    new.start(state(0))
    assert list(listing(tmp_path)) == ["state.pt"] and new.load_state()["step"] == 0


def test_a_folder_that_cannot_be_filled_is_not_left_behind(tmp_path, monkeypatch):
    """After a failed start, a new folder is removed and a folder that existed before is kept."""
    monkeypatch.setattr(torch, "save", write_half(OSError(28, "No space left on device")))
    (tmp_path / "mine").mkdir()
    for name in ("new", "mine"):
        with pytest.raises(OSError, match="No space left"):
            RunFolder(tmp_path / name).start(state(0))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_parent_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    """The error has path, reason and remedy. `mkdir` is patched: root may write everywhere."""
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(type(tmp_path), "mkdir", refuse)
    with pytest.raises(OSError) as caught:
        RunFolder(tmp_path / "new").start(state(0))
    assert "new" in str(caught.value) and "Permission denied" in str(caught.value)
    assert "--out" in str(caught.value)


def test_metrics_are_cut_back_to_the_state(tmp_path):
    """Oracle: lines counted by hand. The last line was cut by a kill."""
    folder = RunFolder(tmp_path)
    assert folder.read_metrics() == []
    lines = [json.dumps({"step": n, "loss": 1 / n}) + "\n" for n in (1, 2, 3, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 5, "lo', encoding="utf-8")
    assert [line["step"] for line in folder.read_metrics()] == [1, 2, 3, 4]
    with folder.open_metrics(2) as log:
        log.write('{"step": 3}\n')
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        "".join(lines[:2]) + '{"step": 3}\n').encode()


@pytest.mark.parametrize("line", [b"garbage}", b"\xff\xfe}", b"{}", b"[1]", b'{"step": "x"}'])
def test_a_damaged_line_of_metrics_is_left_out(tmp_path, line):
    """Oracle: the two sound lines; cutting back goes by step, not by the number of lines."""
    sound = [b'{"step": 4, "loss": 1}', b'{"step": 5, "loss": 2}']
    folder = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([sound[0], line, sound[1], b""]))
    assert [each["step"] for each in folder.read_metrics()] == [4, 5]
    folder.open_metrics(4).close()
    assert [each["step"] for each in folder.read_metrics()] == [4]


@pytest.mark.parametrize("present, options, words", [
    ([], {"resume": True}, "nothing to resume: .*state.pt .*leave out --resume"),
    (["summary.json"], {}, "a finished run; --overwrite .* or --out"),
    (["state.pt", "summary.json"], {"resume": True}, "is finished; .*--out"),
    (["state.pt"], {}, "an unfinished run; --resume to go on, --overwrite"),
    (["model.safetensors"], {}, "model.safetensors already; --overwrite"),
    (["config.json", "other.txt"], {}, "config.json already; --overwrite")])
def test_a_folder_that_is_in_use_is_refused(tmp_path, present, options, words):
    """The error says what the folder holds and what to do; the files are unchanged."""
    for name in present:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=words):
        RunFolder(tmp_path, **options)
    assert {path.name for path in tmp_path.iterdir()} == set(present)
    assert all(path.read_text() == "{}" for path in tmp_path.iterdir())


def test_other_peoples_files_are_in_nobodys_way(tmp_path):
    """A file that no run has written is unchanged after a fresh start, even with overwrite."""
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path).start(state(0))
    RunFolder(tmp_path, overwrite=True).start(state(0))
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_a_file_in_the_way_is_named(tmp_path, below):
    """The error names the file and asks for a folder."""
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="a.txt is a file; name a folder"):
        RunFolder(tmp_path / "a.txt" / below)


def test_a_name_that_is_no_utf_8_is_refused_for_a_folder_and_kept_for_a_text(tmp_path):
    """Oracle: the words of the error, and what was saved."""
    with pytest.raises(ValueError, match=r"r.udce9n': the name is not UTF-8.* name another folder"):
        RunFolder(tmp_path / "r\udce9n")
    folder = RunFolder(tmp_path / "run")
    folder.start(state(1) | {"config": {"data": "caf\udce9"}})
    assert folder.load_state()["config"] == {"data": "caf\udce9"}


@pytest.mark.parametrize("content", [
    b"", b"no state at all", pickle.dumps({"step": 1}, 2), pickle.dumps(os.system, 2)])
def test_a_state_that_is_none_is_refused(tmp_path, content):
    """The error names the path and the remedy; no pickled code is run."""
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(ValueError, match="state.pt cannot be read .*--overwrite"):
        RunFolder(tmp_path, resume=True).load_state()


class Trap:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_loading_a_state_runs_no_code(tmp_path):
    """Oracle: a pickle that makes a folder; without `weights_only` torch.load does make it."""
    folder = RunFolder(tmp_path)
    folder.save_state({**state(1), "step": Trap(str(tmp_path / "trapped"))})
    with pytest.raises(ValueError, match="state.pt cannot be read"):
        folder.load_state()
    assert not (tmp_path / "trapped").exists()
    torch.load(folder.state_path, weights_only=False)
    assert (tmp_path / "trapped").exists()


def test_an_incomplete_state_is_refused(tmp_path):
    """The error names the missing part; a bare tensor is refused too."""
    folder = RunFolder(tmp_path)
    for wrong in ({k: v for k, v in state(1).items() if k != "rng"}, torch.zeros(3)):
        folder.save_state(wrong)
        with pytest.raises(ValueError, match="rng|AttributeError"):
            folder.load_state()
