"""Numbers of notebook 12 that are worked out with a pencil and filled in, each with a verdict."""

import math

import oracles

from .verdict import hint_up_to


def rates(mine, hint=1):
    """Four learning rates -> solved. mine: a list of numbers, None for those not yet known."""
    places = (5, 40, 80, 100)
    right = {f"step {step}": oracles.learning_rate(step / 100, 0.004, 0.1, 0.6, 0.0004)
             for step in places}
    mine = mine.tolist() if hasattr(mine, "tolist") else mine          # of a tensor or an array
    given = list(mine) if isinstance(mine, list | tuple) else []
    return fill_in(dict(zip(right, given + [None] * 4)), right, (
        "Step 5 is half way through the rise, and step 80 half way through the fall.",
        "Half way through the fall the cosine is 0, so the rate is the mean of the highest and the "
        "lowest one."), hint, {"step 80": [(0.004 * math.cos(math.pi / 4)**2,
                               "the fall ends at a tenth of the highest rate, not at 0")]})


def bill(hours=None, dollars=None, days=None, share=None, hint=1):
    """The bill of V3's run -> solved. share: FLOPs over what the GPUs could do, from 0 to 1."""
    mine = {"hours": hours, "dollars": dollars, "days": days, "share": share}
    right = oracles.bill()
    return fill_in(mine, right, (
        "All three stages have a price; the share is that of pre-training alone.",
        "share = 6 * 37e9 * 14.8e12 / (2_664_000 * 3600 * 989.4e12): FLOPs of all tokens, over "
        "hours times seconds times the FLOPs per second of one GPU."), hint, {
        "hours": [(2_664_000, "this is pre-training alone"), (2788, "the table is in thousands")],
        "dollars": [(2_664_000 * 2, "this is pre-training alone")],
        "days": [(right["hours"] / 24, "2,048 GPUs work at the same time")],
        "share": [(100 * right["share"], "write a share from 0 to 1"),
                  (right["share"] * 3600, "an hour has 3,600 seconds"),
                  (right["share"] * 671 / 37, "only activated parameters compute"),
                  (right["share"] / 3, "6 FLOP per parameter: 2 forwards and 4 backwards")]},
        within={"hours": 0.001, "dollars": 0.001, "days": 0.02, "share": 0.02})


def fill_in(mine, right, hint_texts, step, slips, within=None):
    """Print one verdict per number -> whether all are right. Nothing is ever raised.

    slips: {name: [(a wrong number, its words)]}; within: {name: the error that rounding may make}.
    """
    solved = True
    for name, expected in right.items():
        given, rounding = mine[name], (within or {}).get(name, 0.005)
        number = as_number(given)
        if given is None:
            verdict = "open"
        elif number is None:
            verdict = f"not yet: {given!r:.40} is no number"
        elif near(number, expected, rounding):
            verdict = "passed"
        else:
            words = next((words for wrong, words in slips.get(name, ())
                          if near(number, wrong, rounding)), "")
            verdict = f"not yet: {number:,.7g}" + f"; {words}" * bool(words)
        solved = solved and verdict == "passed"
        print(f"{name}: {verdict}")
    if not solved and any(given is not None for given in mine.values()):
        print(hint_up_to(step, hint_texts))
    return solved


def as_number(given):
    """A number, or a tensor or an array of one, as a float; None for anything else."""
    try:
        return None if isinstance(given, str) else float(given)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def near(given, expected, within):
    """Equal but for rounding."""
    return abs(given - expected) <= within * abs(expected)
