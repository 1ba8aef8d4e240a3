"""Redundant experts: which ones to copy, and which GPU hosts which copy (report, section 3.4).

    placement = rebalance(load, replicas=288, groups=8, nodes=4, gpus=32)      load (layers, E)

Experts that get more tokens than others keep their GPU busy while the rest wait. So the busiest are
hosted more than once, and their tokens are shared among the copies. The rules are those of the
balancer that DeepSeek released:

    replicate    R - E times: one more copy of the expert with the most load per copy
    pack         heaviest first, each into the lightest pack that still has room

If the groups divide evenly among the nodes, the policy is hierarchical: groups are packed into
nodes, copies are made within a node, and copies are packed into its GPUs. So a token with experts
of few groups still visits few nodes. Otherwise all GPUs are treated as one node.

Ties go to the lowest index, so the result depends on the loads alone.
"""

from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch

from ..command import UserError


class Placement(NamedTuple):
    """Where the copies of all experts are; slot s of R belongs to GPU s // (R / gpus)."""

    physical_to_logical: torch.Tensor            # (layers, R)  the expert in each slot
    logical_to_physical: torch.Tensor            # (layers, E, X)  slots of its copies, then -1
    replica_count: torch.Tensor                  # (layers, E)  copies of each expert


def rebalance(load, replicas, groups, nodes, gpus):
    """Choose and place the copies of experts for loads (layers, E) -> Placement.

    replicas: R, slots on all GPUs together. X is the largest number of copies of an expert; they
    are in the order in which they were made, as in the released balancer. Raises UserError if the
    experts, slots or GPUs cannot be divided evenly.
    """
    load = in_float64(load)
    check(load, replicas, groups, nodes, gpus)
    if groups % nodes:                           # no way to keep groups on nodes
        groups = nodes = 1
    placed = torch.tensor([place(row, replicas, groups, nodes, gpus)
                           for row in load.tolist()])                  # (layers, R, 2)
    return inverse(*placed.unbind(2), load.size(1))


def in_float64(load):
    """Real numbers of any kind, in any order of memory, as a tensor; UserError for others."""
    if isinstance(load, torch.Tensor):
        load = load.detach().cpu().double().numpy()
    try:
        return torch.from_numpy(np.array(load, dtype=np.float64, order="C"))
    except (TypeError, ValueError):              # of other things, or rows of different lengths
        raise UserError("the load is no table of real numbers; give (layers, experts).") from None


def check(load, replicas, groups, nodes, gpus):
    """UserError if these numbers do not fit together."""
    if load.dim() != 2 or not load.numel():
        raise UserError(f"the load has shape {tuple(load.shape)}; give (layers, experts).")
    if not (load.isfinite().all() and (load >= 0).all()):
        raise UserError("the load holds a number that is negative or not finite; give counts of "
                        "tokens.")
    experts = load.size(1)
    for name, value in (("replicas", replicas), ("groups", groups), ("nodes", nodes),
                        ("gpus", gpus)):
        if not isinstance(value, Integral):
            raise UserError(f"{name}={value!r} is no whole number; give how many there are.")
    for name, value in (("groups", groups), ("nodes", nodes), ("gpus", gpus)):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1.")
    if replicas < experts:
        raise UserError(f"replicas={replicas} are fewer than the {experts} experts; each needs a "
                        "slot.")
    for name, value, by, divisor in (("experts", experts, "groups", groups),
                                     ("gpus", gpus, "nodes", nodes),
                                     ("replicas", replicas, "gpus", gpus)):
        if value % divisor:
            raise UserError(f"{name}={value} is no multiple of {by}={divisor}; choose for instance "
                            f"{-(-value // divisor) * divisor}.")


def place(load, replicas, groups, nodes, gpus):
    """(expert, when its node made this copy) of each of the R slots, for the loads of one layer."""
    size = len(load) // groups                   # experts of a group
    of_groups = [sum(load[g * size:(g + 1) * size]) for g in range(groups)]
    slots = []
    for members in pack(of_groups, nodes):
        experts = [g * size + i for g in members for i in range(size)]
        loads = [load[expert] for expert in experts]
        copies = replicate(loads, replicas // nodes)                   # indices into experts
        shares = [loads[i] / copies.count(i) for i in copies]
        for hosted in pack(shares, gpus // nodes):
            slots += [(experts[copies[i]], i) for i in hosted]
    return slots


def replicate(load, slots):
    """Items, each once and then the busiest again, for so many slots -> their indices."""
    copies, counts = list(range(len(load))), [1] * len(load)
    while len(copies) < slots:
        busiest = max(range(len(load)), key=lambda i: load[i] / counts[i])     # the first of equals
        copies.append(busiest)
        counts[busiest] += 1
    return copies


def pack(weights, packs):
    """Divide items evenly among packs -> the items of each pack, in the order they came."""
    room = len(weights) // packs
    if room == 1:
        return [[item] for item in range(packs)]
    packed, sums = [[] for _ in range(packs)], [0.0] * packs
    for item in sorted(range(len(weights)), key=lambda i: -weights[i]):        # stable
        lightest = min((p for p in range(packs) if len(packed[p]) < room), key=sums.__getitem__)
        packed[lightest].append(item)
        sums[lightest] += weights[item]
    return packed


def inverse(slots, made, experts):
    """The Placement with these experts in the slots, (layers, R).

    made (layers, R): numbers that grow from copy to copy of an expert.
    """
    counts = torch.zeros(len(slots), experts, dtype=torch.long)
    counts.scatter_add_(1, slots, torch.ones_like(slots))              # (layers, E)
    found = torch.full((len(slots), experts, int(counts.max())), -1)
    for layer, row in enumerate(slots.tolist()):
        seen = [0] * experts
        for slot in made[layer].argsort().tolist():
            expert = row[slot]
            found[layer, expert, seen[expert]] = slot
            seen[expert] += 1
    return Placement(slots, found, counts)


def gpu_loads(placement, load, gpus):
    """Load of every GPU if copies share the load of their expert evenly: (layers, gpus)."""
    per_copy = torch.as_tensor(load).double() / placement.replica_count        # (layers, E)
    of_slots = per_copy.gather(1, placement.physical_to_logical)               # (layers, R)
    return of_slots.unflatten(1, (gpus, -1)).sum(dim=2)


def imbalance(loads):
    """The busiest GPU's load over the mean: (..., gpus) -> (...); 1 is balance."""
    return loads.amax(dim=-1) / loads.mean(dim=-1)
