"""What all commands share: help that shows the docstring, and errors that are one line."""

import argparse
import os
import sys


class UserError(ValueError):
    """Something that a user can cause and mend; its text names the value and what would be right.

    It ends a command in this one line. Any other exception is a mistake in the program and keeps
    its traceback.
    """


class Parser(argparse.ArgumentParser):
    """A parser that keeps the layout of its description and raises UserError for bad input."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        """Its complaint as an exception, so that it ends like all others."""
        raise UserError(f"{message}; see --help.")


def answer(work):
    """Call work() -> the exit code: its own or 0, 2 after bad input, 130 after Ctrl-C, 141 if
    nobody reads on.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")     # a console lacks letters
    try:
        return work() or 0
    except KeyboardInterrupt:
        print()
        return 130
    except BrokenPipeError:                      # whoever read has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UserError, OSError) as error:
        # An errno comes from the system, which names no remedy.
        advice = "; check the disk and the permissions." if getattr(error, "errno", None) else ""
        print(f"error: {error}{advice}", file=sys.stderr)
        return 2
