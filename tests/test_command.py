"""How a command ends: one line for a user's error, a traceback for a programming mistake."""

import errno
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minidsv3.command import (
    REPOSITORY,
    Parser,
    SafeStream,
    UserError,
    answer,
    command_line,
    for_terminal,
    notice,
    script,
)
from minidsv3.infer.text import Piece


def fail(error):
    """A command's work that raises this error."""
    def work():
        raise error
    return work


@pytest.mark.parametrize("error, line", [
    (UserError("--steps 0 must be at least 1."), "error: --steps 0 must be at least 1.\n"),
    (FileNotFoundError("a.txt is missing; give b."), "error: a.txt is missing; give b.\n"),
    (OSError(28, "No space left"), "error: [Errno 28] No space left; check the disk and the "
                                   "permissions.\n")])
def test_what_a_user_can_mend_is_one_line(error, line, capsys):
    """Oracle: exit code 2 and the line, given above."""
    assert answer(fail(error)) == 2
    captured = capsys.readouterr()
    assert captured.err == line and captured.out == ""


def test_a_mistake_of_the_program_keeps_its_traceback(capsys):
    """Oracle: exceptions of Python and torch, and a plain ValueError, the parent of UserError."""
    for work in (lambda: list(zip([1], [1, 2], strict=True)), lambda: {}["key"],
                 fail(RuntimeError("PytorchStreamWriter failed"))):
        with pytest.raises((ValueError, KeyError, RuntimeError)):
            answer(work)
    assert capsys.readouterr().err == ""


ESCAPES = "a\x1b]0;title\x07\x9b2J\r\x7f\x00\tb\n\u00e9 \u6771"


@pytest.mark.parametrize("terminal, expected", [
    (True, "a\u241b]0;title\u2407\\x9b2J\u240d\u2421\u2400\tb\n\u00e9 \u6771"), (False, ESCAPES)])
def test_a_terminal_obeys_no_text_of_a_model(monkeypatch, terminal, expected):
    """Oracle: by hand, for a terminal; a file gets every character."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert for_terminal(ESCAPES) == expected


def test_a_wrong_option_is_a_user_error():
    """Oracle: the message of argparse, which names the option."""
    with pytest.raises(UserError, match="unrecognized arguments: --nosuch; see --help"):
        Parser().parse_args(["--nosuch"])


@pytest.mark.parametrize("returned, code", [(None, 0), (0, 0), (130, 130)])
def test_the_work_gives_the_exit_code(returned, code):
    """Oracle: the exit codes above; work that returns nothing has succeeded."""
    assert answer(lambda: returned) == code


def test_a_notice_is_printed_once(capsys):
    """Oracle: each text once, on stderr."""
    for text in ("one", "two", "one"):
        notice(text)
    assert capsys.readouterr() == ("", "one\ntwo\n")


@pytest.mark.skipif(sys.platform == "win32", reason="quotes as POSIX shells read them")
def test_a_printed_command_can_be_pasted():
    """Oracle: shlex, which splits as a shell does; the words are those put in."""
    words = ["python", "a b/x.py", "--out", Path("it's $HOME/run (2)"), ""]
    assert shlex.split(command_line(*words)) == [str(word) for word in words]
    assert command_line("python", "train_tiny.py", "--steps", 5) == "python train_tiny.py --steps 5"


def test_a_printed_script_exists_where_the_user_is(tmp_path, monkeypatch):
    """Oracle: the file; in the repository itself its name alone is enough."""
    monkeypatch.chdir(REPOSITORY)
    assert script("generate.py") == "generate.py" and Path("generate.py").is_file()
    monkeypatch.chdir(tmp_path)
    assert Path(script("generate.py")).is_file()


def test_generate_shows_escape_sequences_as_signs(monkeypatch, capsys):
    """Oracle: the characters by hand, for two pieces in place of a model; colours stay."""
    import generate
    pieces = [Piece(5, "\x1b[2Jx", drafted=True), Piece(None, "\x08\n")]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    generate.write(pieces, "p", None, generate.parse_arguments(["--show-drafts"]))
    assert capsys.readouterr().out == "p\033[32m\u241b[2Jx\033[0m\u2408\n\n"


@pytest.mark.parametrize("said", [
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried "
    "to allocate 640000000000 bytes.", "CUDA out of memory. Tried to allocate 20.00 GiB.",
    "MPS backend out of memory (MPS allocated: 9 GB)", "DefaultCPUAllocator: not enough memory"])
def test_too_little_memory_for_a_tensor_is_one_line(said, capsys):
    """Oracle: what torch says on a CPU, a GPU, a Mac and Windows, each a RuntimeError."""
    assert answer(fail(RuntimeError(said))) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("error: there is not enough memory; ")


@pytest.mark.parametrize("error", [
    OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError(),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "model.safetensors")])
def test_too_little_memory_in_the_system_s_words_is_the_same_line(error, capsys):
    """As from mmap. Oracle: the words; a look at the disk would not help."""
    assert answer(fail(error)) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("error: there is not enough memory; ") and "disk" not in line


def test_without_stdout_a_command_works(monkeypatch):
    """As after `>&-`, or under pythonw. Oracle: the exit code of the work."""
    monkeypatch.setattr(sys, "stdout", None)
    for unread in (True, False):
        assert answer(lambda: print(for_terminal("text")) or 7, unread) == 7
    assert sys.stdout is None


class NobodyReads(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def fileno(self):
        raise ValueError("no file")


@pytest.mark.parametrize("unread", [False, True])
def test_what_is_still_held_at_the_end_goes_to_nobody(unread):
    """A pipe gets what is printed in large pieces. Oracle: 141; the interpreter's own is 120."""
    program = ("import sys; from minidsv3.command import answer; "
               f"sys.exit(answer(lambda: print('short'), unread={unread}))")
    reading, writing = os.pipe()
    os.close(reading)
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE,
                          cwd=Path(__file__).resolve().parents[1], env=usual)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("returned, code", [(0, 141), (None, 141), (3, 3)])
def test_work_that_is_done_for_its_files_goes_on_when_nobody_reads(monkeypatch, returned, code):
    """Oracle: what the work did after its first line; an exit code of its own comes first."""
    done = []
    monkeypatch.setattr(sys, "stdout", NobodyReads())
    assert answer(lambda: print("line") or done.append("file") or returned, unread=True) == code
    assert done == ["file"]


def test_names_of_others_are_shown_as_signs_too(monkeypatch, capsys):
    """Errors and notices name files and tensors of others. Oracle: the characters by hand."""
    monkeypatch.setattr(SafeStream, "isatty", lambda self: True)
    answer(lambda: notice("left out: \x1b[31mred.txt") or fail(UserError("no tensor \x9b2J"))())
    assert capsys.readouterr().err == "left out: \u241b[31mred.txt\nerror: no tensor \\x9b2J\n"


@pytest.mark.skipif(sys.platform == "win32", reason="quotes as POSIX shells read them")
def test_a_folder_that_looks_like_an_option_is_printed_as_a_path():
    """Oracle: the option parser of train_tiny.py; a word that is no Path stays."""
    import train_tiny
    line = command_line("--steps", "-1", "--out", Path("-run"), "--resume")
    assert shlex.split(line)[:2] == ["--steps", "-1"]
    assert Path(train_tiny.parse_arguments(shlex.split(line)[2:]).out) == Path("-run")
