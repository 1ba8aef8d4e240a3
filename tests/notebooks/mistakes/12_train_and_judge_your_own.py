"""Typical mistakes for the exercises of 12_train_and_judge_your_own."""

import statistics

import torch


def merge_once(ids, new):
    """after you have joined two of them, go on behind both."""
    pairs = [tuple(ids[place:place + 2]) for place in range(0, len(ids), 2)]
    best = max(pairs, key=pairs.count)
    return [each for pair in pairs for each in ([new] if pair == best else pair)]


def merge_once__one_place(ids, new):
    """ids [98, 97, 110, 97, 110, 97], new id 256: expected shape (4,), got (5,). You joined the
    pair at one place only
    """
    pairs = list(zip(ids, ids[1:]))
    place = pairs.index(max(pairs, key=pairs.count))
    return ids[:place] + [new] + ids[place + 2:]


def merge_once__last_of_equals(ids, new):
    """you took another one than the first in the text."""
    pairs = list(zip(ids, ids[1:]))
    best = max(reversed(dict.fromkeys(pairs)), key=pairs.count)
    return joined(ids, best, new)


def merge_once__first_pair(ids, new):
    """You joined the first pair of the text, not the most frequent one."""
    return joined(ids, (ids[0], ids[1]), new)


def merge_once__counts_apart(ids, new):
    """new id 9: expected [1, 2, 9, 9, 1, 2], got [9, 7, 7, 7, 7, 9]. You count without overlap: aaa
    has the pair aa twice.
    """
    pairs = list(zip(ids, ids[1:]))
    return joined(ids, max(pairs, key=lambda pair: joined(ids, pair, new).count(new)), new)


def merge_once__half(ids, new):
    """left the second of the two ids where it was."""
    pairs = list(zip(ids, ids[1:]))
    best = max(pairs, key=pairs.count)
    return [new if pair == best else pair[0] for pair in pairs] + [ids[-1]]


def joined(ids, best, new):
    """Every place of the pair, from left to right."""
    text, place = [], 0
    while place < len(ids):
        found = tuple(ids[place:place + 2]) == best
        text += [new] if found else [ids[place]]
        place += 2 if found else 1
    return text


def adamw_step(weight, gradient, first, second, step, rate):
    """Both moments first, then their correction, then the weight."""
    update = first / (second.sqrt() + 1e-8)
    return (weight - rate * update, 0.9 * first + 0.1 * gradient,
            0.95 * second + 0.05 * gradient.square())


def stepped(weight, gradient, first, second, step, rate):
    """The corrected moments and the moments themselves."""
    first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient.square()
    return first / (1 - 0.9**step), second / (1 - 0.95**step), first, second


def adamw_step__uncorrected(weight, gradient, first, second, step, rate):
    """1 weight, step 1, rate 0.1: expected [1.88, 0.05, 0.0125], got [1.935279, 0.05, 0.0125]. You
    did not correct the moments, so the first steps are too small.
    """
    _, _, first, second = stepped(weight, gradient, first, second, step, rate)
    return weight * (1 - 0.1 * rate) - rate * first / (second.sqrt() + 1e-8), first, second


def adamw_step__without_the_small_number(weight, gradient, first, second, step, rate):
    """expected [1.93, 1e-09, 5e-18], got [1.88, 1e-09, 5e-18]."""
    mean, square, *moments = stepped(weight, gradient, first, second, step, rate)
    return weight * (1 - 0.1 * rate) - rate * mean / square.sqrt().clamp(min=1e-20), *moments


def adamw_step__l2(weight, gradient, first, second, step, rate):
    """that is Adam with an L2 penalty."""
    mean, square, *moments = stepped(weight, gradient + 0.1 * weight, first, second, step, rate)
    return weight - rate * mean / (square.sqrt() + 1e-8), *moments


def adamw_step__decay_of_its_own(weight, gradient, first, second, step, rate):
    """Your decay is not multiplied by the rate."""
    mean, square, *moments = stepped(weight, gradient, first, second, step, rate)
    return weight * 0.9 - rate * mean / (square.sqrt() + 1e-8), *moments


def adamw_step__no_decay(weight, gradient, first, second, step, rate):
    """There is no weight decay."""
    mean, square, *moments = stepped(weight, gradient, first, second, step, rate)
    return weight - rate * mean / (square.sqrt() + 1e-8), *moments


def adamw_step__corrected_moments(weight, gradient, first, second, step, rate):
    """You return the corrected moments"""
    mean, square, *_ = stepped(weight, gradient, first, second, step, rate)
    return weight * (1 - 0.1 * rate) - rate * mean / (square.sqrt() + 1e-8), mean, square


def adamw_step__upwards(weight, gradient, first, second, step, rate):
    """You add the step: a weight moves against its gradient."""
    mean, square, *moments = stepped(weight, gradient, first, second, step, rate)
    return weight * (1 + 0.1 * rate) + rate * mean / (square.sqrt() + 1e-8), *moments


def orthogonalise(matrix, steps):
    """once. Then the line with the three products, `steps` times."""
    X = matrix / matrix.norm()
    return 1.5 * X - 0.5 * X @ X.mT @ X if steps else X


def orthogonalise__not_normed(matrix, steps):
    """(2, 2) matrix, steps=1: expected [0.792, 0, 0, 0.944], got [-9, 0, 0, -26]. You did not
    divide by the norm first.
    """
    for _ in range(steps):
        matrix = 1.5 * matrix - 0.5 * matrix @ matrix.mT @ matrix
    return matrix


def orthogonalise__largest_entry(matrix, steps):
    """You divide by the largest entry"""
    return orthogonalise__not_normed(matrix / matrix.abs().max(), steps)


def orthogonalise__number_by_number(matrix, steps):
    """Your cube is taken number by number: use the product of matrices."""
    X = matrix / matrix.norm()
    for _ in range(steps):
        X = 1.5 * X - 0.5 * X**3
    return X


def orthogonalise__normed_again(matrix, steps):
    """You divide by the norm again after each step."""
    X = matrix / matrix.norm()
    for _ in range(steps):
        X = 1.5 * X - 0.5 * X @ X.mT @ X
        X = X / X.norm()
    return X


def orthogonalise__exact(matrix, steps):
    """This is the exact orthogonal matrix."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def difference_and_error(new, old):
    """Take the difference of each seed first"""
    return (statistics.fmean(new) - statistics.fmean(old), abs(max(new) - min(new)))


def of(new, old, error):
    """The mean difference, and an error of the differences."""
    by_seed = [a - b for a, b in zip(new, old)]
    return statistics.fmean(by_seed), error(by_seed)


def difference_and_error__deviation(new, old):
    """3 seeds: expected [-0.03, 0.01154701], got [-0.03, 0.02]. Your error is the standard
    deviation of one difference
    """
    return of(new, old, statistics.stdev)


def difference_and_error__divided_by_n_inside(new, old):
    """You divide by n inside the standard deviation"""
    return of(new, old, lambda each: statistics.pstdev(each) / len(each)**0.5)


def difference_and_error__divided_by_n(new, old):
    """You divide by n and not by its root."""
    return of(new, old, lambda each: statistics.stdev(each) / len(each))


def difference_and_error__no_pairs(new, old):
    """as if the runs were no pairs."""
    return of(new, old, lambda each: ((statistics.variance(new) + statistics.variance(old))
                                      / len(each))**0.5)


def difference_and_error__sign(new, old):
    """Your difference has the wrong sign: new minus old."""
    return of(old, new, lambda each: statistics.stdev(each) / len(each)**0.5)


def part_losses(nats, is_target, micro_batch):
    """targets per sequence [1, 3], micro_batch=1: expected [1, 1.5], got [2, 1]. Each part still
    counts the same, however few targets it has.
    """
    parts = list(zip(nats.split(micro_batch), is_target.split(micro_batch)))
    return [(n * t).sum() / t.sum() / len(parts) for n, t in parts]


def part_losses__means(nats, is_target, micro_batch):
    """These are means of parts"""
    return [(n * t).sum() / t.sum() for n, t in
            zip(nats.split(micro_batch), is_target.split(micro_batch))]


def part_losses__all_places(nats, is_target, micro_batch):
    """You divide by all places, those without a target too."""
    return [(n * t).sum() / nats.numel() for n, t in
            zip(nats.split(micro_batch), is_target.split(micro_batch))]


def part_losses__sequences(nats, is_target, micro_batch):
    """Each sequence still counts the same, however few targets it has."""
    means = (nats * is_target).sum(1) / is_target.sum(1) / len(nats)
    return torch.stack([part.sum() for part in means.split(micro_batch)])


def part_losses__sums(nats, is_target, micro_batch):
    """These are sums: divide by the number of targets of the whole step."""
    return [(n * t).sum() for n, t in
            zip(nats.split(micro_batch), is_target.split(micro_batch))]
