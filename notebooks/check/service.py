"""Exercises of notebook 11: how do you serve it? Each has a hint in two steps."""

import oracles
import torch

from .verdict import compare, normal

LOAD = [12, 2, 3, 9, 1, 4, 3, 2]                 # of the notebook's first picture


def puzzle(student, hint=1):
    """The one case: eight experts, four GPUs of three slots each, all loads equal."""
    def loads():
        return oracles.loads_of_gpus(student(), LOAD, 3)

    return compare(loads, [()], lambda: [9.0, 9.0, 9.0, 9.0], (
        "These are the loads of your GPUs. Which expert alone has more than 9? Host it more often.",
        "Host expert 0 three times and expert 3 three times: copies of 4 and of 3. With expert 5 "
        "there are four loads of 4: two GPUs get one, one GPU gets two, and one gets none."), hint)


def replicate(student, hint=1):
    """By hand: the first picture; then equals, and loads without a pattern."""
    cases = [(LOAD, 12), ([4, 4, 4], 5), ([1, 0, 0, 8], 6), ([5, 3], 2)]
    for seed in range(3):
        cases.append(((20 * normal(16, seed=seed).exp()).round().tolist(), 24))
    return compare(student, cases, oracles.replicate, (
        "What is the load of an expert's copy, once it has two of them?",
        "Begin with [1, 1, ...]. Then, as often as slots are left, add one to the expert with the "
        "largest load[e] / copies[e]; of equals, the first."), hint)


def slots_of(student, hint=1):
    """By hand: three experts with 1, 2 and 3 copies; then a larger placement."""
    small = torch.tensor([[0, -1, -1], [1, 3, -1], [2, 4, 5]]), torch.tensor([1, 2, 3])
    cases = [(torch.tensor([[0, 1], [1, 2], [2, 0]]), *small)]
    for seed in range(2):
        count = normal(8, seed=seed).abs().mul(2).long() + 1
        slots = torch.full((8, int(count.max())), -1)
        for n, slot in enumerate(torch.arange(int(count.sum())).split(count.tolist())):
            slots[n, :len(slot)] = slot
        cases.append((normal(11, 8, seed=seed).topk(3).indices, slots, count))
    return compare(student, cases, oracles.slots_of, (
        "Which slot is -1 in Python?",
        "Take the remainder by the number of copies that each expert has, count[chosen], and not "
        "by the width of the table."), hint)


def pour(student, hint=1):
    """By hand: two of three vessels; then all, one, and levels without a pattern."""
    cases = [(5, [1, 2, 9]), (12, [1, 2, 3]), (1, [0, 4]), (6, [3, 3, 3])]
    for seed in range(3):
        cases.append((3 * (1 + seed), normal(6, seed=seed).abs().mul(4).tolist()))
    return compare(student, cases, oracles.pour, (
        "Does a vessel that is above the surface give water back?",
        "Sort the levels. If the lowest k get the water, they end at (amount + their sum) / k. "
        "Take the first k for which this is not above the next level; a vessel gets the "
        "difference to this surface, but at least 0."), hint)


def waits(student, hint=1):
    """By hand: four requests; then a queue that never empties, and random arrivals."""
    cases = [([0, 1, 2, 7], 2), ([0, 0, 0, 0], 1), ([1, 5, 9], 2)]
    for seed in range(3):
        gaps = normal(30, seed=seed).abs()
        cases.append((gaps.cumsum(0).tolist(), 0.7))
    return compare(student, cases, oracles.waits, (
        "When does a request begin that arrives while nobody else is there?",
        "Keep `free`, when the server is free again. A request begins at max(free, arrival), and "
        "then `free` is its begin plus the service."), hint)
