"""Numbers that a student of notebook 12 works out with a pencil, and fills in."""

import numpy as np
import pytest


def said(capsys):
    """The lines that were printed."""
    return capsys.readouterr().out.splitlines()


def test_the_bill_is_open_then_right(check, capsys):
    """Oracle: by hand, 2,788 thousand hours at 2 dollars on 2,048 GPUs; rounding is allowed."""
    assert not check.bill()
    assert said(capsys) == ["hours: open", "dollars: open", "days: open", "share: open"]
    assert check.bill(hours=2_788_000, dollars=5.576e6, days=57, share=0.34)
    assert said(capsys) == [f"{name}: passed" for name in ("hours", "dollars", "days", "share")]


@pytest.mark.parametrize("name, wrong, words", [
    ("hours", 2_664_000, "this is pre-training alone"), ("hours", 2788, "in thousands"),
    ("dollars", 5_328_000, "this is pre-training alone"), ("days", 116_167, "at the same time"),
    ("share", 34.6, "from 0 to 1"), ("share", 6.28, "only activated parameters compute"),
    ("share", 0.115, "2 forwards and 4 backwards"), ("share", 1246, "3,600 seconds"),
    ("hours", 2_783_000, "not yet: 2,783,000"), ("hours", 10**400, "000 is no number"),
    ("days", 3.0, "not yet: 3"), ("share", "a third", "'a third' is no number")])
def test_a_slip_of_the_bill_is_named(name, wrong, words, check, capsys):
    """Oracle: the words for numbers that are wrong by hand; the other numbers stay open."""
    assert not check.bill(**{name: wrong})
    first, *others = sorted(said(capsys), key=lambda line: not line.startswith(name))
    assert words in first
    assert sum(line.endswith(": open") for line in others) == 3
    assert not check.bill(**{name: wrong}, hint=2)
    assert "share = 6 * 37e9" in capsys.readouterr().out


def test_rates_are_those_of_the_schedule(check, capsys):
    """Oracle: by hand, half the rise, the top, the mean of highest and lowest, the lowest."""
    assert check.rates([0.002, 0.004, 0.0022, 0.0004])
    assert not check.rates([0.002, 0.004, 0.002, None])
    lines = said(capsys)[4:]
    assert lines[2].endswith("not at 0") and lines[3] == "step 100: open"
    assert lines[4].startswith("Step 5 is half way through the rise")
    assert check.rates(np.array([0.002, 0.004, 0.0022, 0.0004], np.float32))
    for odd in (None, 0.004, [], [None] * 9, "four", [10**400]):
        assert not check.rates(odd)
