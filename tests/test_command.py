"""What ends a command: one line for what a user can mend, a traceback for a mistake of ours."""

import pytest

from minidsv3.command import Parser, UserError, answer


def fail(error):
    """Work that ends in this error."""
    def work():
        raise error
    return work


@pytest.mark.parametrize("error, line", [
    (UserError("--steps 0 must be at least 1."), "error: --steps 0 must be at least 1.\n"),
    (FileNotFoundError("a.txt is missing; give b."), "error: a.txt is missing; give b.\n"),
    (OSError(28, "No space left"), "error: [Errno 28] No space left; check the disk and the "
                                   "permissions.\n")])
def test_what_a_user_can_mend_is_one_line(error, line, capsys):
    """Oracle: exit code 2 and the line, written out here."""
    assert answer(fail(error)) == 2
    captured = capsys.readouterr()
    assert captured.err == line and captured.out == ""


def test_a_mistake_of_the_program_keeps_its_traceback(capsys):
    """Oracle: exceptions that Python raises, among them ValueError, which UserError is one of."""
    for work in (lambda: list(zip([1], [1, 2], strict=True)), lambda: {}["key"],
                 fail(RuntimeError("PytorchStreamWriter failed"))):
        with pytest.raises((ValueError, KeyError, RuntimeError)):
            answer(work)
    assert capsys.readouterr().err == ""


def test_a_wrong_option_is_a_user_error():
    """Oracle: argparse's own complaint, which names the option."""
    with pytest.raises(UserError, match="unrecognized arguments: --nosuch; see --help"):
        Parser().parse_args(["--nosuch"])


@pytest.mark.parametrize("returned, code", [(None, 0), (0, 0), (130, 130)])
def test_the_work_gives_the_exit_code(returned, code):
    assert answer(lambda: returned) == code
