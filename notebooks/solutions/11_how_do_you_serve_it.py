"""Solutions to 11_how_do_you_serve_it: read them after you have tried."""

import torch


def puzzle():
    """Copies of 4 from expert 0, copies of 3 from expert 3: 4 + 3 + 2 twice, 4 + 4 + 1, 3 + 3 + 3.

    Expert 5 has 4 as well, so there are four items of 4, and one GPU gets two of them.
    """
    return [[0, 3, 1], [0, 3, 7], [0, 5, 4], [3, 2, 6]]


def replicate(load, slots):
    """What counts is the load of one copy, since the copies of an expert share its load."""
    copies = [1] * len(load)
    while sum(copies) < slots:
        shares = [tokens / number for tokens, number in zip(load, copies)]
        copies[shares.index(max(shares))] += 1
    return copies


def slots_of(chosen, slots, count):
    """Each expert has its own number of copies; the table is as wide as the largest one."""
    turn = torch.arange(len(chosen))[:, None]
    return slots[chosen, turn % count[chosen]]


def pour(amount, levels):
    """The lowest k vessels have one surface; it must not be above the next vessel's level."""
    order = sorted(levels)
    for k in range(1, len(order) + 1):
        surface = (amount + sum(order[:k])) / k
        if k == len(order) or surface <= order[k]:
            return [max(0, surface - level) for level in levels]


def waits(arrivals, service):
    """A request begins when it is there and the server is free."""
    free, found = 0, []
    for arrival in arrivals:
        begin = max(free, arrival)
        found.append(begin - arrival)
        free = begin + service
    return found
