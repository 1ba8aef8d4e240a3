"""What all commands share: help that shows the docstring, and errors of one line."""

import argparse
import os
import sys
from functools import cache

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
    print(text, file=sys.stderr, flush=True)


def for_terminal(text):
    """A model's text for stdout; at a terminal, which would obey them, control characters as signs.

    Line ends and tabs stay. A file or a pipe gets the text as it is.
    """
    return text.translate(SIGNS) if sys.stdout.isatty() else text


def answer(work):
    """Call work() -> the exit code: its own or 0 if it returns, 2 after an error of one line.

    Ctrl-C gives 130. If the output goes to a program that has stopped reading, it is 141.
    """
    if hasattr(sys.stdout, "reconfigure"):       # legacy consoles cannot encode every character
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    try:
        return work() or 0
    except KeyboardInterrupt:
        print()
        return 130
    except BrokenPipeError:                      # the reader has closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UserError, OSError) as error:
        # An error with errno comes from the system, whose message names no remedy.
        advice = "; check the disk and the permissions." if getattr(error, "errno", None) else ""
        print(f"error: {error}{advice}", file=sys.stderr)
        return 2
