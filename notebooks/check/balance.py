"""Exercises of notebook 05: who keeps the experts busy?"""

import oracles
import torch

from .verdict import compare, normal


def max_violation(student):
    """By hand: (5, 1, 2, 0), mean 2, and (3, 3, 3, 3)."""
    cases = [(torch.tensor([[5, 1, 2, 0], [3, 3, 3, 3]]),),
             ((20 * normal(3, 7, seed=1)).abs().long(),)]
    return compare(student, cases, oracles.max_violation, "Busiest over mean, less 1, for each "
                   "layer by itself: both run over the last axis.")


def worst_violation(student):
    """By hand: all tokens at 2 of 4 experts, twice the mean each."""
    return compare(student, [(4, 2), (16, 2), (64, 6), (256, 8)], oracles.worst_violation,
                   "A token takes K different experts, so no expert gets more than one place of "
                   "each token.")


def bias_step(student):
    """By hand: (5, 1, 2, 0) moves b by -, +, 0, +."""
    cases = [(torch.zeros(4), torch.tensor([5, 1, 2, 0]), 0.001),
             (normal(9, seed=2), (20 * normal(9, seed=3)).abs().long(), 0.25)]
    return compare(student, cases, oracles.bias_step, "The overloaded expert goes down, the idle "
                   "one up, each by gamma; one at the mean stays.")


def sequence_balance(student):
    """By hand: the four tokens of this notebook, 1.2566."""
    s = torch.tensor([[.9, .6, .2, .1], [.8, .3, .5, .1], [.7, .2, .4, .6], [.6, .9, .1, .3]])
    idle = torch.tensor([[.9, .8, .1], [.7, .6, .2]])    # the last expert is never chosen
    cases = [(s, 2), (normal(5, 7, seed=4).sigmoid(), 3), (idle, 2)]
    return compare(student, cases, oracles.sequence_balance, "Eq. 19: is each token's row divided "
                   "by its own sum before the mean over tokens? And eq. 18 has E / (K T) in it.")


def update_once(student):
    """By hand: totals 11, 7, 7, 7, mean 8."""
    cases = [(torch.zeros(4), torch.tensor([[8, 0, 0, 0], [1, 3, 2, 2], [1, 2, 3, 2],
                                            [1, 2, 2, 3]]), 0.001),
             (normal(6, seed=5), (20 * normal(3, 6, seed=6)).abs().long(), 0.125)]
    return compare(student, cases, oracles.update_once, "Add up the micro-batches first, then take "
                   "one step: the sign of the sum is not the sum of signs.")
