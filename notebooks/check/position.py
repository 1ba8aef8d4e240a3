"""Exercises of notebook 03: how does it know the order? Each has a hint in two steps."""

import math

import oracles
import torch

from .verdict import compare, normal


def rotate(student, hint=1):
    """By hand: (1, 2, 3, 4) at position 3; then others."""
    cases = [(torch.tensor([1.0, 2, 3, 4]), 3, torch.tensor([1, 0.01]))]
    cases += [(normal(2 * pairs, seed=pairs), position, normal(pairs, seed=pairs).sigmoid())
              for pairs, position in ((3, 11), (5, 2), (1, 1))]

    def neighbours(x):
        return x[0::2].double(), x[1::2].double()

    def back(a, b):
        return torch.stack([a, b], dim=-1).flatten()

    def halves(x, position, theta):
        a, b = x.double().chunk(2)
        cos, sin = turn(position, theta)
        return torch.cat([a * cos - b * sin, a * sin + b * cos])

    def firsts_then_seconds(x, position, theta):
        turned = oracles.rotate(x, position, theta)
        return torch.cat([turned[0::2], turned[1::2]])

    def to_the_right(x, position, theta):
        return oracles.rotate(x, -position, theta)

    def new_for_old(x, position, theta):
        (a, b), (cos, sin) = neighbours(x), turn(position, theta)
        a = a * cos - b * sin
        return back(a, a * sin + b * cos)

    slips = [
        ("Your pairs are channels m and m + Dr/2. In V3 neighbours are a pair: 2m and 2m + 1.",
         halves),
        ("Each number is right, but it is in the wrong place: you return all first components, "
         "then all second ones.", firsts_then_seconds),
        ("Your hands turn to the right: the signs of the two sines are exchanged.", to_the_right),
        ("Your second component uses the new first one. Both need the old numbers.", new_for_old),
        ("Your angles do not depend on the position.",
         lambda x, position, theta: oracles.rotate(x, 1, theta)),
    ]
    return compare(student, cases, oracles.rotate, (
        "x[0::2] holds all first components, and x[1::2] all second ones. Turn them by the formula "
        "above.",
        "With the angles position * theta the new components are a cos - b sin and a sin + b cos. "
        "torch.stack([...], dim=-1).flatten() makes them neighbours again."), hint,
        describe=lambda x, position, theta: f"{len(x)} channels, position={position}", slips=slips)


def turn(position, theta):
    """Cosines and sines of the angles of all pairs."""
    angle = position * theta.double()
    return angle.cos(), angle.sin()


def frequencies(student, hint=1):
    """By hand: the four clocks of the picture; then others."""
    def powers(exponent):
        return lambda width, base: [float(base) ** exponent(m, width) for m in range(width // 2)]

    slips = [
        ("Your exponent counts pairs, m / width. It must count channels, two per pair.",
         powers(lambda m, width: -m / width)),
        ("Your angles grow from pair to pair: the exponent is negative.",
         powers(lambda m, width: 2 * m / width)),
        ("Your last angle is 1 / base. The last exponent is only -(width - 2) / width.",
         powers(lambda m, width: -m / (width // 2 - 1))),
        ("You have one angle per channel. Two channels share one.",
         lambda width, base: [float(base) ** (-n / width) for n in range(width)]),
        ("These are 1, 1 / base, 1 / base^2: the exponent lacks the width.",
         powers(lambda m, width: -m)),
    ]
    cases = [(8, 10000), (4, 100.0), (10, 50.0), (6, 7.0)]
    return compare(student, cases, oracles.frequencies, (
        "In the example by hand the exponents are 0 and -1/2. Which ones does yours have there?",
        "The exponents are 0, 2, 4, ... over the width, with a minus sign: torch.arange(0, width, "
        "2) / width."), hint,
        describe=lambda width, base: f"width={width}, base={base:g}", slips=slips)


def turns(student, hint=1):
    """By hand: a quarter turn per token, 25.5 turns in 102 tokens; then others."""
    slips = [
        ("These are radians. A whole turn has 2 pi of them.",
         lambda window, theta: window * theta),
        ("These are the tokens that one turn takes. How often do they fit into the window?",
         lambda window, theta: 2 * math.pi / theta),
        ("You divide by theta. It is the angle of one token, so multiply the window by it.",
         lambda window, theta: window / (2 * math.pi * theta)),
        ("You count in degrees, but theta is in radians: a whole turn is 2 pi.",
         lambda window, theta: window * theta / 360),
        ("You count whole turns only. The result need not be whole.",
         lambda window, theta: (window * theta / (2 * math.pi)).floor()),
    ]
    by_hand = torch.tensor([torch.pi / 2, torch.pi / 80])
    cases = [(102, by_hand), (37, normal(7, seed=1).sigmoid()), (5, torch.tensor([0.3]))]
    return compare(student, cases, oracles.turns, (
        "By which angle does a hand turn in the whole window?",
        "The angle is window * theta. Divide it by the angle of one turn, 2 pi."), hint,
        describe=lambda window, theta: f"window={window}, {len(theta)} pair"
        f"{'s' * (len(theta) > 1)}", slips=slips)


def half_order(student, hint=1):
    """By hand: four channels; six are the first case in which the inverse is another order."""
    slips = [
        ("This is the way back. Entry n must say which old channel comes to place n.",
         lambda width: [place for m in range(width // 2) for place in (m, m + width // 2)]),
        ("Your channels lie as before.", lambda width: list(range(width))),
        ("Your second components come first.",
         lambda width: [2 * m + part for part in (1, 0) for m in range(width // 2)]),
        ("You count from 1. Channels are counted from 0.",
         lambda width: [2 * m + part for part in (1, 2) for m in range(width // 2)]),
    ]
    return compare(student, [(4,), (6,), (2,), (64,)], oracles.half_order, (
        "Where do the first components lie in the interleaved layout? They come first, in their "
        "order.",
        "First 0, 2, 4, ..., then 1, 3, 5, ...: two calls of range with step 2."), hint,
        describe=lambda width: f"width={width}", slips=slips)


def angles(student, hint=1):
    """By hand: two new tokens behind none, and behind three; then others."""
    def at(positions):
        return lambda theta, new, cached: (
            torch.tensor(positions(new, cached))[:, None] * theta.double())

    slips = [
        ("Your new tokens begin at position 0, as if the cache were empty.",
         at(lambda new, cached: list(range(new)))),
        ("You count positions from 1. The first token of a text stands at position 0.",
         at(lambda new, cached: list(range(cached + 1, cached + new + 1)))),
        ("Your first new token stands where the last cached one does.",
         at(lambda new, cached: list(range(max(cached - 1, 0), max(cached - 1, 0) + new)))),
        ("All of your new tokens stand at the same position.",
         at(lambda new, cached: [cached] * new)),
        ("You also return angles for the cached tokens. Their keys are turned already.",
         at(lambda new, cached: list(range(cached + new)))),
    ]
    by_hand = torch.tensor([1, 0.1])
    cases = [(by_hand, 2, 0), (by_hand, 2, 3), (normal(3, seed=5).sigmoid(), 4, 7),
             (by_hand, 1, 5)]
    return compare(student, cases, oracles.angles, (
        "With three tokens in the cache, at positions 0, 1 and 2: where does the next one stand?",
        "The positions are cached, cached + 1, ..., cached + new - 1. torch.arange takes a "
        "beginning and an end."), hint,
        describe=lambda theta, new, cached: f"new={new}, cached={cached}", slips=slips)
