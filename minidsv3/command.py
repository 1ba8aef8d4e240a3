"""What all commands share: help that shows the docstring, and errors of one line."""

import argparse
import errno
import os
import shlex
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]     # it has no scripts if the package is installed

# Unicode has a sign for each control character of ASCII; the others of Latin-1 are spelt out.
SIGNS = ({code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
         | {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)})


class UserError(ValueError):
    """An error that the user caused and can correct; its text gives the value and a remedy.

    A command ends with this text as its last line. Any other exception is a mistake in the program
    and keeps its traceback.
    """


class Parser(argparse.ArgumentParser):
    """A parser that keeps the line breaks of its description; it raises UserError for bad input."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        """Raise argparse's message as a UserError, so that it ends a command like all others."""
        raise UserError(f"{message}; see --help.")


@cache
def notice(text):
    """Print a line that the user should know on stderr; the same text only once in a process."""
    print(for_terminal(text, sys.stderr), file=sys.stderr, flush=True)


def check_out(path, ending):
    """UserError unless a path names a file with this ending; call it before long work."""
    if path.is_dir() or path.suffix != ending:
        raise UserError(f"--out {path} must name a file that ends in {ending}.")


def command_line(*words):
    """Words as one line, ready to be pasted into the shell of this system.

    A Path that begins with a dash, which would be read as an option, gets ./ in front.
    """
    words = [os.path.join(os.curdir, word) if isinstance(word, Path) and str(word)[0] == "-"
             else str(word) for word in words]
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)


def script(name):
    """The path of a script of the repository, for a command given in the working directory."""
    return name if Path.cwd() == REPOSITORY else str(REPOSITORY / name)


class SafeStream:
    """A stream that ends nothing when it cannot be written.

    Its reader may have gone, as with `2>&1 | head` or a closed terminal, or it may be None. lost:
    whether that has happened.
    """

    def __init__(self, stream):
        self.stream = stream or nowhere()
        self.lost = False

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        """Write, if that is possible."""
        return self.attempt(self.stream.write, text)

    def flush(self):
        """Flush, if that is possible."""
        self.attempt(self.stream.flush)

    def isatty(self):
        """Whether it is a terminal."""
        return bool(self.attempt(self.stream.isatty))

    def attempt(self, function, *arguments):
        """Call a function of the stream; if it fails, send all that follows nowhere."""
        try:
            return function(*arguments)
        except (OSError, ValueError):            # ValueError: the stream is closed
            self.lost = True
            with suppress(OSError, ValueError):
                lead_nowhere(self.stream)


def nowhere():
    """A stream that keeps nothing, for one that is None, as under pythonw or after `>&-`."""
    return open(os.devnull, "w", encoding="utf-8")


def lead_nowhere(stream):
    """Discard what a stream still holds and gets; else the interpreter would fail at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def for_terminal(text, stream=None):
    """A text of others for a stream [stdout]; at a terminal, control characters become signs.

    A terminal would obey them. Line ends and tabs stay. A file or a pipe gets the text as it is.
    """
    return text.translate(SIGNS) if (stream or sys.stdout).isatty() else text


def answer(work, unread=False):
    """Call work() -> the exit code: its own or 0 if it returns, 2 after an error of one line.

    Ctrl-C gives 130, another signal 128 + its number. If the output goes to a program that has
    stopped reading, it is 141. unread: whether the work goes on then, because it is done for its
    files.
    """
    if hasattr(sys.stdout, "reconfigure"):       # legacy consoles cannot encode every character
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    out = SafeStream(sys.stdout) if unread else sys.stdout or nowhere()
    with redirect_stderr(SafeStream(sys.stderr)), redirect_stdout(out):
        try:
            code = work() or 0
            sys.stdout.flush()                   # a pipe gets what is printed in large pieces
            return 141 if code == 0 and unread and out.lost else code
        except KeyboardInterrupt as stop:        # a handler may give the number of its signal
            print()
            return 128 + next(iter(stop.args), signal.SIGINT)
        except BrokenPipeError:                  # the reader has closed the pipe, as `| head` does
            lead_nowhere(sys.stdout)
            return 141
        except (MemoryError, RuntimeError, UserError, OSError) as error:
            if out_of_memory(error):
                print("error: there is not enough memory; give less text, or choose a smaller "
                      "model, batch or window.", file=sys.stderr)
                return 2
            if isinstance(error, RuntimeError):
                raise
            # An error with errno comes from the system, whose message names no remedy.
            advice = ("; check the disk and the permissions." if getattr(error, "errno", None)
                      else "")
            print(for_terminal(f"error: {error}{advice}", sys.stderr), file=sys.stderr)
            return 2


def out_of_memory(error):
    """Whether this error says that memory is short.

    torch has a type for it on CUDA alone. On a CPU and on a Mac it raises a plain RuntimeError,
    which only its text tells from others; CUDA's text has the same words.
    """
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in ("out of memory", "can't allocate memory",
                                                     "not enough memory"))
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
