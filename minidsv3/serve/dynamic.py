"""Dynamic redundancy: every GPU hosts many experts and activates few (report, section 3.4.1).

    share = level(load, hosts, active=9)         load (E,) of one step, hosts (gpus, E) bool

Before each step, the tokens of every expert are divided among the GPUs that host it, so that the
busiest GPU has as little to do as possible, and no GPU computes more than `active` experts. The
report explores this with 16 hosted and 9 activated experts per GPU.

Which GPUs activate which experts is a search: every expert is first given one GPU, the heaviest
first; then experts are activated, moved and exchanged as long as that helps the busiest GPU. Where
this gets stuck, the search begins again with the experts in another order, and the best counts. How
the tokens are divided among GPUs with an active copy is convex: give each expert in turn the
division that levels its own hosts, as water finds its level, and repeat. What this reaches has the
smallest sum of squares and also the smallest maximum. The search is a heuristic; `optimum` tries
all choices, for small cases.
"""

from itertools import combinations, product

import numpy as np

from ..command import UserError
from .placement import rebalance

ROUNDS = 200                                     # of levelling, at most
CLOSE = 1e-4                                     # relative change of the maximum that ends it
TRIES = 2000                                     # of activations, in all searches together
STARTS = 20                                      # of the search, at most
ENOUGH = 1.019                                   # times the maximum with all hosts: good enough


def hosting(load, gpus, hosted, active):
    """Which GPU hosts which expert, for past loads (E,) -> hosts (gpus, E) bool.

    First a placement with `active` experts on each GPU, so that a place for all can always be
    found; then copies of the experts with the most load per host, as long as there is room.
    """
    load = np.asarray(load, dtype=float)
    slots = rebalance(load[None], active * gpus, 1, 1, gpus).physical_to_logical[0].numpy()
    hosts = np.zeros((gpus, len(load)), dtype=bool)
    hosts[np.repeat(np.arange(gpus), active), slots] = True
    for expert in cycle_of_busiest(load, hosts):
        free = np.flatnonzero((hosts.sum(axis=1) < hosted) & ~hosts[:, expert])
        if len(free):
            hosts[free[hosts[free].sum(axis=1).argmin()], expert] = True
    return hosts


def cycle_of_busiest(load, hosts):
    """Experts by falling load per host, until no expert could be copied to one more GPU."""
    counts, wanted = hosts.sum(axis=0), hosts.size - hosts.sum()
    for _ in range(wanted):
        expert = int(np.where(counts < len(hosts), load / counts, -1.0).argmax())
        yield expert
        counts[expert] += 1


def level(load, hosts, active):
    """Divide the load of every expert among its hosts -> share (gpus, E), which sums to load.

    Raises UserError if an expert has no host, or if no place is found for some expert.
    """
    load, hosts = np.asarray(load, dtype=float), np.asarray(hosts, dtype=bool)
    if not (np.isfinite(load).all() and (load >= 0).all()):
        raise UserError("the load holds a number that is negative or not finite; give counts of "
                        "tokens.")
    if not hosts.any(axis=0).all():
        raise UserError(f"expert {int((~hosts.any(axis=0)).argmax())} has no host; each needs one.")
    if active < 1 or active * len(hosts) < hosts.shape[1]:
        raise UserError(f"active={active} on {len(hosts)} GPUs leaves no place for some of "
                        f"{hosts.shape[1]} experts; choose at least "
                        f"{-(-hosts.shape[1] // len(hosts))}.")
    hosts = hosts & (load > 0)                   # an expert without tokens needs no place
    # Nothing is better than all hosts at once; who is as close to it need not search.
    enough = ENOUGH * settle(load, hosts).sum(axis=1).max()
    order, best = np.argsort(-load, kind="stable"), None               # first the heaviest
    generator, tries = np.random.default_rng(0), iter(range(TRIES))
    for _ in range(STARTS):
        found = search(one_host_each(order, load, hosts, active), load, hosts, active, enough,
                       tries)
        best = found if best is None else min(best, found, key=cost)
        if best.sum(axis=1).max() <= enough:
            break
        order = generator.permutation(order)
    return best


def search(on, load, hosts, active, enough, tries):
    """Improve activations until the maximum is `enough`, or nothing helps -> share."""
    share = settle(load, on)
    while share.sum(axis=1).max() > enough and (
            found := better(share, on, load, hosts, active, tries)):
        share, on = found
    return share


def better(share, on, load, hosts, active, tries):
    """The first neighbour that helps the busiest GPUs -> its share and activations, or None."""
    totals = share.sum(axis=1)
    for busy in np.flatnonzero(totals > (1 - 10 * CLOSE) * totals.max()):
        # One of `tries` is used up by each neighbour.
        for _, other in zip(tries, neighbours(on, hosts, active, busy, totals)):
            tried = settle(load, other, share)
            if cost(tried) < cost(share):
                return tried, other
    return None


def cost(share):
    """What is to be small: the busiest GPU, and then the sum of squares, up to rounding."""
    totals = share.sum(axis=1) / share.sum()     # so that rounding does not depend on the unit
    return round(totals.max(), 8), round((totals**2).sum(), 8)


def one_host_each(order, load, hosts, active):
    """Activate every expert with load on one host, in this order -> on (gpus, E) bool."""
    on, totals = np.zeros_like(hosts), np.zeros(len(hosts))
    for expert in order[load[order] > 0]:
        free = [gpu for gpu in np.flatnonzero(hosts[:, expert]) if on[gpu].sum() < active]
        gpu = min(free, key=lambda gpu: totals[gpu]) if free else make_room(on, hosts, active,
                                                                            expert)
        on[gpu, expert] = True
        totals = (on * load).sum(axis=1)
    return on


def make_room(on, hosts, active, expert):
    """Free a place on a host of an expert by moving others away, in a chain -> the host."""
    before = {int(gpu): None for gpu in np.flatnonzero(hosts[:, expert])}      # how to come there
    waiting = list(before)
    for gpu in waiting:                          # grows while it is read: a breadth-first search
        if on[gpu].sum() < active:
            while before[gpu] is not None:       # move one expert along each step of the chain
                origin, moved = before[gpu]
                on[origin, moved], on[gpu, moved] = False, True
                gpu = origin
            return gpu
        for moved in np.flatnonzero(on[gpu]):
            for target in map(int, np.flatnonzero(hosts[:, moved])):
                if target not in before:
                    before[target] = gpu, moved
                    waiting.append(target)
    raise UserError(f"expert {expert} finds no GPU with a place for it; place more copies, or "
                    "raise `active`.")


def neighbours(on, hosts, active, busiest, totals):
    """Activations (gpus, E) that differ by one expert of the busiest GPU, activated elsewhere.

    totals (gpus,): where there is less to do is tried first.
    """
    places = on.sum(axis=1)
    moves = [(totals[gpu], gpu, expert) for expert in np.flatnonzero(on[busiest])
             for gpu in np.flatnonzero(hosts[:, expert] & ~on[:, expert])]
    for _, gpu, expert in sorted(moves):
        if places[gpu] < active:
            yield changed(on, [(gpu, expert, True)])
            continue
        for other in np.flatnonzero(on[gpu]):
            gone = [(gpu, expert, True), (gpu, other, False)]
            if on[:, other].sum() > 1:
                yield changed(on, gone)
            for target in np.flatnonzero(hosts[:, other] & ~on[:, other]):
                if places[target] < active:
                    yield changed(on, [*gone, (target, other, True)])
                elif target == busiest:
                    yield changed(on, [*gone, (busiest, other, True), (busiest, expert, False)])


def changed(on, changes):
    """A copy of activations with some (gpu, expert, value) set."""
    copy = on.copy()
    for gpu, expert, value in changes:
        copy[gpu, expert] = value
    return copy


def settle(load, allowed, start=None):
    """The most level division among allowed (gpus, E) hosts -> share (gpus, E).

    start: a division that is near it, for speed; experts that it does not fit begin anew.
    """
    counts = allowed.sum(axis=0)                                       # (E,)
    share = np.where(allowed, load / np.maximum(counts, 1), 0.0)
    if start is not None:
        fits = ~((start > 0) & ~allowed).any(axis=0) & (counts > 1)
        share[:, fits] = start[:, fits]
    totals, last = share.sum(axis=1), np.inf                           # (gpus,)
    movable = np.flatnonzero(counts > 1)
    for _ in range(ROUNDS):
        for expert in movable:
            hosts = np.flatnonzero(allowed[:, expert])
            others = totals[hosts] - share[hosts, expert]
            share[hosts, expert] = pour(load[expert], others)
            totals[hosts] = others + share[hosts, expert]
        if last - totals.max() <= CLOSE * totals.max():
            break
        last = totals.max()
    return share


def pour(amount, levels):
    """Fill vessels of these levels from below with an amount -> what each gets.

    Example: 5 into levels 1, 2, 9 -> 3, 2, 0: both lower ones end at 4.
    """
    order = np.sort(levels)
    for count in range(1, len(order) + 1):
        surface = (amount + order[:count].sum()) / count
        if count == len(order) or surface <= order[count]:
            return np.maximum(surface - levels, 0.0)


def optimum(load, hosts, active):
    """The smallest possible maximum over GPUs, by trying all activations; only for small cases.

    For given activations it is the largest load of a set of experts over the number of GPUs that
    may compute one of them.
    """
    load, hosts = np.asarray(load, dtype=float), np.asarray(hosts, dtype=bool)
    choices = [list(combinations(np.flatnonzero(row), min(active, row.sum()))) for row in hosts]
    best = np.inf
    for chosen in product(*choices):
        allowed = np.zeros_like(hosts)
        for gpu, experts in enumerate(chosen):
            allowed[gpu, list(experts)] = True
        if allowed[:, load > 0].any(axis=0).all():
            best = min(best, bound(load, allowed))
    return best


def bound(load, allowed):
    """The largest load of a set of experts over the number of its hosts, over all sets."""
    busy = np.flatnonzero(load > 0)
    return max(load[list(some)].sum() / allowed[:, list(some)].any(axis=1).sum()
               for size in range(1, len(busy) + 1) for some in combinations(busy, size))
