"""Exercises of notebook 03: how does it know the order of the words?"""

import oracles
import torch

from .verdict import compare, normal


def frequencies(student):
    """theta_m = base^(-2m / width), the angle a token of each pair."""
    return compare(student, [(4, 100.0), (10, 50.0), (6, 7.0)], oracles.frequencies,
                   "Does the exponent count channels, two for each pair? Its last numerator "
                   "is width - 2, and the exponent is negative.")


def turns(student):
    """Turns of each pair within a window of tokens."""
    by_hand = torch.tensor([torch.pi / 2, torch.pi / 50])
    random = normal(7, seed=1).sigmoid()
    return compare(student, [(100, by_hand), (37, random)], oracles.turns,
                   "Is a whole turn 2 pi radians in your function?")


def rotate(student):
    """Rotation of one vector, pairs of neighbouring channels."""
    by_hand = torch.tensor([1.0, 2, 3, 4])
    theta = torch.tensor([1, 0.01])
    cases = [(by_hand, 3, theta)]
    cases += [(normal(2 * pairs, seed=pairs), position, normal(pairs, seed=pairs).sigmoid())
              for pairs, position in ((3, 11), (5, 2))]
    return compare(student, cases, oracles.rotate,
                   "Are the partners neighbours, channels 2m and 2m + 1, and do they come back "
                   "to the same two places? And is the turn to the left, (a cos - b sin, "
                   "a sin + b cos), both from the old a and b?")


def angles(student):
    """Angles of new tokens behind those in a cache."""
    by_hand = torch.tensor([1, 0.1])
    cases = [(by_hand, 2, 0), (by_hand, 2, 3), (normal(3, seed=5).sigmoid(), 4, 7)]
    return compare(student, cases, oracles.angles,
                   "Which position has the first new token when some are in the cache already?")
