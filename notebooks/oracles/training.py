"""Oracles of notebook 12: how do you train and judge your own?"""

import math

import numpy as np
import torch


def merge_once(ids, new):
    """Count all pairs in a dict, which keeps their order; join the first of the most frequent."""
    counts = {}
    for place in range(len(ids) - 1):
        pair = (ids[place], ids[place + 1])
        counts[pair] = counts.get(pair, 0) + 1
    best = max(counts, key=counts.get, default=None)         # of equals the first that was met
    joined, place = [], 0
    while place < len(ids):
        if tuple(ids[place:place + 2]) == best:
            joined.append(new)
            place += 2
        else:
            joined.append(ids[place])
            place += 1
    return joined


def learning_rate(progress, highest, warm, fall, end):
    """A straight rise until `warm`, constant until `fall`, a half cosine down to `end`."""
    if progress < warm:
        return highest * progress / warm
    if progress < fall:
        return highest
    return end + (highest - end) * math.cos(math.pi / 2 * (progress - fall) / (1 - fall))**2


def adamw_step(weight, gradient, first, second, step, rate):
    """Number by number -> (3, N): the new weights and the two new moments."""
    rows = []
    for w, g, m, v in zip(*(each.double().tolist() for each in (weight, gradient, first, second))):
        m = 0.9 * m + 0.1 * g
        v = 0.95 * v + 0.05 * g * g
        unbiased_m, unbiased_v = m / (1 - 0.9**step), v / (1 - 0.95**step)
        rows.append([w - rate * (0.1 * w + unbiased_m / (math.sqrt(unbiased_v) + 1e-8)), m, v])
    return torch.tensor(rows, dtype=torch.float64).T


def orthogonalise(matrix, steps):
    """What the products do, on the singular values alone: s -> 1.5 s - 0.5 s^3, after |s| = 1."""
    left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    values = values / math.sqrt(sum(value**2 for value in values))
    for _ in range(steps):
        values = 1.5 * values - 0.5 * values**3
    return torch.from_numpy(left * values @ right)


def polar_factor(matrix):
    """The nearest semi-orthogonal matrix: all singular values 1."""
    left, _, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    return torch.from_numpy(left @ right)


def difference_and_error(new, old):
    """Mean of the differences by seed, and its standard error: sum of squares, n - 1, n."""
    differences = [a - b for a, b in zip(list(map(float, new)), list(map(float, old)))]
    mean = sum(differences) / len(differences)
    squares = sum((each - mean)**2 for each in differences)
    return [mean, math.sqrt(squares / (len(differences) - 1) / len(differences))]


def part_losses(nats, is_target, micro_batch):
    """Token by token: a part adds the nats of its targets, over the targets of the whole step."""
    rows, marks = nats.double().tolist(), is_target.tolist()
    targets = sum(mark for row in marks for mark in row)
    parts = [0.0] * math.ceil(len(rows) / micro_batch)
    for number, (row, row_marks) in enumerate(zip(rows, marks)):
        for value, mark in zip(row, row_marks):
            parts[number // micro_batch] += value / targets if mark else 0.0
    return parts


def bill():
    """Table 1 of the report, 2 dollars for a GPU hour, 2,048 GPUs, 6 FLOP per parameter and token.

    The share of the peak counts 37 billion activated parameters, 14.8 trillion tokens and the
    hours of pre-training alone.
    """
    hours = 2_664_000 + 119_000 + 5_000
    share = 6 * 37e9 * 14.8e12 / (2_664_000 * 3600 * 989.4e12)
    return {"hours": hours, "dollars": 2 * hours, "days": hours / (24 * 2048), "share": share}
