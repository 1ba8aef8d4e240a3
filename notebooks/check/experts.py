"""Exercises of notebook 04: what do 256 experts do?"""

import oracles
import torch

from .verdict import compare, normal


def group_scores(student):
    """One token in two groups of three by hand, then random ones with biases that matter."""
    by_hand = (torch.tensor([[0.9, 0.1, 0.2, 0.6, 0.6, 0.1]]),
               torch.tensor([0.0, 0.0, 0.0, -0.1, 0.0, 0.3]), 2)
    random = [(normal(N, E, seed=E).sigmoid(), normal(E, seed=N), groups)
              for N, E, groups in [(5, 16, 4), (3, 8, 4), (7, 30, 3)]]
    return compare(student, [by_hand, *random], oracles.group_scores,
                   "With the bias, and the sum of its two best: neither the best alone nor all.")


def gates(student):
    """Three experts by hand, where the bias decides; then random ones, some biases large."""
    by_hand = torch.tensor([0.8, 0.2, 0.6]), torch.tensor([-0.7, 0.1, 0.0]), 2, 1.0
    random = [(normal(E, seed=E).sigmoid(), spread * normal(E, seed=E + 1), K, scale)
              for E, K, spread, scale in [(8, 3, 0.1, 2.5), (16, 4, 3.0, 2.5), (5, 5, 1.0, 1.0)]]
    return compare(student, [by_hand, *random], oracles.gates,
                   "Choose with affinity + bias, but weigh with the affinity without bias; the "
                   "weights of the chosen sum to scale.")


def moe_output(student):
    """Two numbers by hand: shared doubles, expert 1 negates, expert 2 swaps; then random."""
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    routed = torch.stack([torch.ones(2, 2), -torch.eye(2), swap])
    by_hand = (torch.tensor([1.0, 3.0]), 2 * torch.eye(2), routed,
               torch.tensor([0.9, 0.2, 0.6]), torch.tensor([1, 2]), 2.0)
    random = [(normal(C, seed=C), normal(C, C, seed=C + 1), normal(E, C, C, seed=C + 2),
               normal(E, seed=C + 3).sigmoid(), torch.tensor(experts), 2.5)
              for C, E, experts in [(3, 4, [3, 0]), (5, 8, [6, 1, 4])]]
    return compare(student, [by_hand, *random], oracles.moe_output,
                   "The shared expert is never scaled; each chosen one counts scale * s over the "
                   "sum of the chosen s.")


def choose_experts(student):
    """The token on which a mask of 0 goes wrong, then random ones with biases of both signs."""
    by_hand = (torch.tensor([0.60, 0.30, 0.20, 0.15, 0.55, 0.50, 0.10, 0.05]),
               torch.tensor([0.10, -0.50, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]), 4, 2, 4)
    # Group 0 has the largest sum, group 1 the best expert, group 2 the two best.
    sums = (torch.tensor([0.5, 0.5, 0.5, 0.9, 0.1, 0.1, 0.7, 0.6, 0.1]), torch.zeros(9), 3, 1, 2)
    random = [(normal(E, seed=seed).sigmoid(), normal(E, seed=seed + 9) - 1, groups, kept, K)
              for seed, E, groups, kept, K in [(1, 12, 3, 2, 5), (2, 16, 4, 2, 4), (3, 6, 3, 1, 2)]]
    return compare(student, [by_hand, sums, *random], oracles.choose_experts,
                   "A forbidden expert must lose even against a negative score. The best groups "
                   "are those whose two largest biased scores have the largest sum.")
