"""Exercises of notebook 06: can it think two tokens ahead?"""

import oracles
import torch

from .verdict import compare, normal


def joined_tokens(student):
    """Numbers of the token joined and of its target, for each position of depth k."""
    return compare(student, [(4, 1), (4, 2), (7, 3)], oracles.joined_tokens,
                   "Is the target one place behind the token that is joined, not that token?")


def tokens_per_step(student):
    """Mean number of tokens of a step, from the acceptance at each place."""
    cases = [(torch.tensor([0.5]),),
             (torch.tensor([0.5, 0.5]),), (normal(4, seed=1).sigmoid(),)]
    return compare(student, cases, oracles.tokens_per_step,
                   "The second draft only counts where the first stood: chances of a chain are "
                   "multiplied.")


def mtp_loss(student):
    """Eq. 24 and 25, for one and for more depths."""
    by_hand = torch.tensor([[1 / 2, 1 / 2], [1 / 4, 3 / 4], [1 / 8, 7 / 8]],
                           dtype=torch.float64).log()
    cases = [([by_hand], torch.zeros(5, dtype=torch.long), 0.3)]
    for T, V, depths in ((6, 5, 2), (9, 4, 3)):
        logits = [normal(T - k, V, seed=10 * T + k) for k in range(1, depths + 1)]
        cases.append((logits, normal(T + 1, seed=V).mul(10).long().abs() % V, 0.1))
    return compare(student, cases, oracles.mtp_loss,
                   "Eq. 24 divides by T, the number of inputs, not by the T - k terms that are "
                   "there.")


def verify_greedy(student):
    """Drafts that stand, and the verdict behind them."""
    verdicts = torch.eye(5)[[1, 3, 2]]
    cases = [(torch.tensor(drafts), verdicts) for drafts in ([1, 3], [1, 0], [0, 3])]
    for k, stand in ((4, 2), (4, 4), (3, 0)):
        logits = normal(k + 1, 6, seed=k)
        drafts = logits.argmax(-1)[:k].clone()
        if stand < k:
            drafts[stand] = (drafts[stand] + 1) % 6
        cases.append((drafts, logits))
    return compare(student, cases, oracles.verify_greedy,
                   "Does the main model's own verdict follow the drafts that stand, also when "
                   "all of them do?")


def replacement(student):
    """What is drawn from after a rejection."""
    p = torch.tensor([0.4, 0.1, 0.3, 0.2, 0])
    q = torch.tensor([0.2, 0.4, 0.3, 0.05, 0.05])
    cases = [(p, q)] + [tuple(normal(2, size, seed=size).softmax(-1)) for size in (3, 7)]
    return compare(student, cases, oracles.replacement,
                   "Only what q gave too little of is still missing: a word with p = q must not "
                   "come any more. And the result sums to 1.")
