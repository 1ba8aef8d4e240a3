"""Exercises of notebook 12: how do you train and judge your own? Each has a hint in two steps."""

import numpy as np
import oracles
import torch

from .verdict import compare, normal

# ---- the tokenizer ----


def merge_once(student, hint=1):
    """By hand: banana; then overlapping pairs, equals, and a text without a pattern."""
    cases = [(list(b"banana"), 256), ([7, 7, 7, 7, 7], 300), ([1, 2, 3, 1, 2, 3, 4], 9),
             ([1, 2, 7, 7, 7, 7, 1, 2], 9),      # 7 7 thrice, but only twice without overlap
             ([5, 6, 6, 5, 6, 6, 6, 6], 8), (normal(60, seed=3).mul(1.5).round().add(9).long()
                                            .tolist(), 50)]
    return compare(student, cases, oracles.merge_once, (
        "First count every pair of neighbours. Then go through the ids from left to right, and "
        "after you have joined two of them, go on behind both.",
        "Use a while loop with a place: if ids[place:place + 2] is the best pair, append `new` and "
        "add 2 to the place, else append ids[place] and add 1. max(counts, key=counts.get) gives "
        "the first of equals, since a dict remembers its order."), hint,
        describe=lambda ids, new: f"ids {ids[:8]}{' ...' * (len(ids) > 8)}, new id {new}",
        slips=[
            ("You joined the pair at one place only: join it wherever it stands.", joins_first),
            ("Of equally frequent pairs you took another one than the first in the text.",
             takes_last),
            ("You joined the first pair of the text, not the most frequent one.",
             lambda ids, new: join(ids, ids[:2], new)),
            ("You count without overlap: aaa has the pair aa twice.", counts_apart),
            ("You put the new id in and left the second of the two ids where it was.", keeps_half),
        ])


def join(ids, pair, new):
    """All places of a pair, from left to right."""
    out, place = [], 0
    while place < len(ids):
        found = ids[place:place + 2] == list(pair)
        out.append(new if found else ids[place])
        place += 1 + found
    return out


def pair_counts(ids):
    """{pair: how often it stands in the text}, in the order of first appearance."""
    pairs = list(zip(ids, ids[1:]))
    return {pair: pairs.count(pair) for pair in dict.fromkeys(pairs)}


def joins_first(ids, new):
    """One place only."""
    counts = pair_counts(ids)
    place = list(zip(ids, ids[1:])).index(max(counts, key=counts.get))
    return [*ids[:place], new, *ids[place + 2:]]


def takes_last(ids, new):
    """Of equals the last that appears."""
    counts = pair_counts(ids)
    return join(ids, max(reversed(counts), key=counts.get), new)


def counts_apart(ids, new):
    """Overlapping pairs of equals count once."""
    return join(ids, max(zip(ids, ids[1:]), key=lambda pair: join(ids, pair, new).count(new)), new)


def keeps_half(ids, new):
    """The first id of each pair is replaced, the second stays."""
    counts = pair_counts(ids)
    best = max(counts, key=counts.get)
    return [new if pair == best else pair[0] for pair in zip(ids, ids[1:])] + ids[-1:]


# ---- the optimisers ----


def adamw_step(student, hint=1):
    """By hand: the weight 2 of the notebook; then several weights, at later steps."""
    def numbers(*values):
        return [torch.tensor([value]) for value in values]

    cases = [(*numbers(2.0, 0.5, 0.0, 0.0), 1, 0.1),
             (*numbers(2.0, 1e-8, 0.0, 0.0), 1, 0.1)]      # where the formula's 1e-8 matters
    for seed, step in ((1, 2), (2, 10), (3, 1)):
        w, g, m, v = normal(4, 5, seed=seed).double()
        cases.append((w, g, 0.3 * m * (step > 1), 0.2 * v.square() * (step > 1), step, 0.02))
    return compare(student, cases, oracles.adamw_step, (
        "Both moments first, then their correction, then the weight. The decay and the update of "
        "Adam are both multiplied by the rate. (The numbers are: weights, first, second.)",
        "first = 0.9 * first + 0.1 * gradient; second in the same way with 0.95 and the square. "
        "Divide by 1 - 0.9**step and 1 - 0.95**step for the update, but return the moments "
        "themselves. The decay is rate * 0.1 * weight."), hint,
        describe=lambda w, g, m, v, step, rate:
        f"{len(w)} weight{'s' * (len(w) > 1)}, step {step}, rate {rate:g}",
        slips=[
            ("You did not correct the moments, so the first steps are too small.",
             lambda *case: adam(*case, correct=False)),
            ("Your decay goes into the gradient: that is Adam with an L2 penalty. In AdamW it acts "
             "on the weight directly.", lambda *case: adam(*case, l2=True)),
            ("Your decay is not multiplied by the rate.", lambda *case: adam(*case, own=True)),
            ("There is no weight decay.", lambda *case: adam(*case, decay=0)),
            ("You return the corrected moments: the next step would correct them again.",
             lambda *case: adam(*case, corrected=True)),
            ("You add the step: a weight moves against its gradient.",
             lambda w, g, m, v, step, rate: adam(w, g, m, v, step, -rate)),
        ])


def adam(w, g, m, v, step, rate, correct=True, l2=False, own=False, decay=0.1, corrected=False):
    """One step with the mistakes that are asked for -> (3, N)."""
    g = g + decay * w if l2 else g
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
    unbiased = (m / (1 - 0.9**step), v / (1 - 0.95**step)) if correct else (m, v)
    new = w - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    new = new if l2 else new - (1 if own else rate) * decay * w
    return torch.stack([new, *(unbiased if corrected else (m, v))])


def orthogonalise(student, hint=1):
    """By hand: a diagonal matrix; then wide, tall and square ones, with few and many steps."""
    cases = [(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), 1), (torch.tensor([[0.0, 5.0]]), 3)]
    cases += [(normal(*shape, seed=steps).double(), steps)
              for shape, steps in (((2, 2), 1), ((3, 5), 2), ((6, 2), 4), ((4, 4), 9))]

    def through(polynomial, size=torch.linalg.matrix_norm):
        def slip(matrix, steps):
            X = matrix / size(matrix)
            for _ in range(steps):
                X = polynomial(X)
            return X
        return slip

    def cubic(X):
        return 1.5 * X - 0.5 * X @ X.mT @ X

    return compare(student, cases, oracles.orthogonalise, (
        "First divide the matrix by the root of the sum of all its squares, once. Then the line "
        "with the three products, `steps` times.",
        "X = matrix / matrix.square().sum().sqrt(), then in a loop: X = 1.5 * X - 0.5 * X @ X.mT @ "
        "X. Only this order of the transposed one fits a matrix that is not square."), hint,
        describe=lambda matrix, steps: f"{tuple(matrix.shape)} matrix, steps={steps}",
        slips=[
            ("You did not divide by the norm first.", through(cubic, lambda matrix: 1)),
            ("You divide by the largest entry, which may be smaller than the largest singular "
             "value.", through(cubic, lambda matrix: matrix.abs().max())),
            ("Your cube is taken number by number: use the product of matrices.",
             through(lambda X: 1.5 * X - 0.5 * X**3)),
            ("You divide by the norm again after each step.", through(
                lambda X: cubic(X) / torch.linalg.matrix_norm(cubic(X)))),
            ("This is the exact orthogonal matrix. The task asks for what the steps give.",
             lambda matrix, steps: oracles.polar_factor(matrix)),
        ])


# ---- the judgement ----


def difference_and_error(student, hint=1):
    """By hand: the three seeds of the notebook; then two seeds, five, and equal shifts."""
    cases = [([2.91, 2.92, 2.93], [2.92, 2.95, 2.98]), ([1.0, 1.5], [1.25, 1.25]),
             ([2.0, 3.0, 4.0, 7.0], [1.5, 2.5, 3.5, 6.5])]
    cases += [(normal(5, seed=seed).tolist(), normal(5, seed=seed + 9).tolist()) for seed in (1, 2)]

    def slip(error):
        def pair(new, old):
            by_seed = [a - b for a, b in zip(new, old)]
            return [float(np.mean(by_seed)), float(error(by_seed, new, old))]
        return pair

    return compare(student, cases, oracles.difference_and_error, (
        "Take the difference of each seed first, and forget the two lists. Its standard error is "
        "the standard deviation over the root of the number of seeds.",
        "The standard deviation divides the sum of squares by n - 1, as statistics.stdev does. "
        "Return the mean and stdev / sqrt(n), in this order."), hint,
        describe=lambda new, old: f"{len(new)} seeds",
        slips=[
            ("Your error is the standard deviation of one difference: the mean of n is known "
             "better, by the root of n.", slip(lambda d, new, old: np.std(d, ddof=1))),
            ("You divide by n inside the standard deviation: with few seeds that is too small.",
             slip(lambda d, new, old: np.std(d) / len(d)**0.5)),
            ("You divide by n and not by its root.",
             slip(lambda d, new, old: np.std(d, ddof=1) / len(d))),
            ("You add the errors of both lists, as if the runs were no pairs. What both share "
             "cancels in the differences.",
             slip(lambda d, new, old: ((np.var(new, ddof=1) + np.var(old, ddof=1))
                                       / len(d))**0.5)),
            ("Your difference has the wrong sign: new minus old.",
             lambda new, old: oracles.difference_and_error(old, new)),
        ])


def part_losses(student, hint=1):
    """By hand: the two sequences of the notebook; then parts of unequal length, and a last one."""
    by_hand = (torch.tensor([[4.0, 0.0, 0.0], [2.0, 2.0, 2.0]]),
               torch.tensor([[True, False, False], [True, True, True]]), 1)
    cases = [by_hand]
    for seed, (rows, length, micro_batch) in enumerate(((6, 4, 2), (5, 7, 2), (4, 3, 4))):
        lengths = torch.arange(rows) * 3 % length + 1
        cases.append((normal(rows, length, seed=seed).abs().double(),
                      torch.arange(length) < lengths[:, None], micro_batch))

    def per_part(share):
        def slip(nats, is_target, micro_batch):
            pairs = list(zip(nats.split(micro_batch), is_target.split(micro_batch)))
            return [share(n, t, len(pairs), is_target) for n, t in pairs]
        return slip

    return compare(student, cases, oracles.part_losses, (
        "In the whole step each target counts the same. By which number must the sum of a part be "
        "divided, so that all parts together give the mean over all targets?",
        "Count the targets of the whole step once, before the loop. Each part then gives "
        "(nats * is_target).sum() divided by this number."), hint,
        describe=lambda nats, is_target, micro_batch:
        f"targets per sequence {is_target.sum(1).tolist()}, micro_batch={micro_batch}",
        slips=[
            ("Each part still counts the same, however few targets it has.",
             per_part(lambda n, t, parts, all_: (n * t).sum() / t.sum() / parts)),
            ("These are means of parts: together they are as many times too large as there are "
             "parts.", per_part(lambda n, t, parts, all_: (n * t).sum() / t.sum())),
            ("Each sequence still counts the same, however few targets it has.",
             per_part(lambda n, t, parts, all_: ((n * t).sum(1) / t.sum(1)).sum() / len(all_))),
            ("You divide by all places, those without a target too.",
             per_part(lambda n, t, parts, all_: (n * t).sum() / all_.numel())),
            ("These are sums: divide by the number of targets of the whole step.",
             per_part(lambda n, t, parts, all_: (n * t).sum())),
        ])
