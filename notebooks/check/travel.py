"""Exercises of notebook 10: how do tokens find their experts? Each has a hint in two steps."""

import oracles
import torch

from .verdict import compare, normal


def dispatch(student, hint=1):
    """By hand: GPU 0 of the picture; then the others; then three experts per token."""
    cases = [([[1, 4], [2, 3]], 2, 4), ([[4, 7]], 2, 4), ([[2, 6], [0, 5]], 2, 4),
             ([[0, 1, 2], [9, 4, 11], [3, 8, 5], [7, 6, 10]], 3, 4), ([[5, 0]], 1, 6)]
    def table(function):
        return lambda *case: oracles.copies_table(function(*case), len(case[0]), case[2])

    return compare(table(student), cases, table(oracles.dispatch), (
        "Does a GPU need two copies of a token because two of its experts are there?",
        "The GPU of an expert is expert // per_gpu. Put the GPUs of a token into a set, and go "
        "through the set."), hint)


def combine(student, hint=1):
    """By hand: GPU 0 of the picture; then tokens in another order, and a token without a value."""
    cases = [([[0], [1], [0], []], [[1.0], [7.5], [2.5], []], 2),
             ([[], [], [0], [0]], [[], [], [9.0], [6.0]], 1),
             ([[1, 2], [0, 2], [2]], [[1.0, 2.0], [4.0, 8.0], [16.0]], 4)]
    return compare(student, cases, oracles.combine, (
        "What if two values come back for the same token?",
        "Begin with a zero for each token. Then go through sent[p] and returned[p] together, and "
        "add each value to the place of its token."), hint)


def serve(student, hint=1):
    """By hand: what arrives at GPU 1 of the picture; then random tokens."""
    cases = [(torch.tensor([2.0, 4.0]), torch.tensor([[2, 3], [2, 6]]),
              torch.tensor([[0.25, 0.75], [0.5, 0.5]]), 2, 2)]
    for seed in range(3):
        chosen = normal(9, 12, seed=seed).topk(4).indices
        cases.append((normal(9, seed=seed), chosen, normal(9, 4, seed=seed).sigmoid(), 4, 4))
    return compare(student, cases, oracles.serve, (
        "Which number is stored if the same row stands twice on the left of +=?",
        "y.index_add(0, row, values) adds each of them. Or keep a table of (rows, choices), zero "
        "where the expert is elsewhere, and sum it over the choices."), hint)


def copies_between_nodes(student, hint=1):
    """By hand: the token of GPU 1 in the picture; then larger machines."""
    cases = [([4, 7], 1, 2, 2, 1), ([4, 7], 1, 2, 2, 2), ([2, 3], 0, 2, 2, 1),
             ([4, 5], 0, 2, 2, 1), ([0, 1, 6, 7, 8, 14], 2, 1, 4, 1),
             ([0, 1, 6, 7, 8, 14], 2, 1, 4, 2), ([0, 5, 9, 13], 7, 2, 2, 2)]
    return compare(student, cases, oracles.copies_between_nodes, (
        "Count places, not experts: GPUs in one hop, nodes in two.",
        "The GPU of an expert is expert // per_gpu, the node of a GPU is gpu // gpus_per_node. "
        "Leave out what is in the sender's own node, and put the rest into a set: of GPUs for one "
        "hop, of nodes for two."), hint)
