"""Solutions to 12_train_and_judge_your_own: read them after you have tried."""

import math
import statistics

import torch


def merge_once(ids, new):
    """A dict remembers the order of its keys, and max gives the first of equals."""
    counts = {}
    for pair in zip(ids, ids[1:]):
        counts[pair] = counts.get(pair, 0) + 1
    best = max(counts, key=counts.get)
    joined, place = [], 0
    while place < len(ids):                      # not a for loop: a joined pair is stepped over
        if tuple(ids[place:place + 2]) == best:
            joined.append(new)
            place += 2
        else:
            joined.append(ids[place])
            place += 1
    return joined


def adamw_step(weight, gradient, first, second, step, rate):
    """The moments begin at 0, so the early ones are too small: the correction undoes just that."""
    first = 0.9 * first + 0.1 * gradient
    second = 0.95 * second + 0.05 * gradient**2
    mean, square = first / (1 - 0.9**step), second / (1 - 0.95**step)
    weight = weight - rate * 0.1 * weight        # the decay does not pass through the moments
    weight = weight - rate * mean / (square**0.5 + 1e-8)
    return weight, first, second


def orthogonalise(matrix, steps):
    """X X^T X has the cubes of the singular values, so the line acts on each of them alone."""
    X = matrix / matrix.square().sum().sqrt()    # now none is above 1
    for _ in range(steps):
        X = 1.5 * X - 0.5 * X @ X.mT @ X
    return X


def difference_and_error(new, old):
    """Pairs first: what a seed does to both runs is gone before anything is averaged."""
    by_seed = [a - b for a, b in zip(new, old)]
    return statistics.fmean(by_seed), statistics.stdev(by_seed) / math.sqrt(len(by_seed))


def part_losses(nats, is_target, micro_batch):
    """All parts are divided by one number, so a target counts the same wherever it stands."""
    targets = is_target.sum()                    # of the whole step, counted before it begins
    parts = zip(nats.split(micro_batch), is_target.split(micro_batch))
    return torch.stack([(n * counted).sum() / targets for n, counted in parts])
