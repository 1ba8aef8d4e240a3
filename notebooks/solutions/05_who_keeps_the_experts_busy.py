"""Solutions to 05_who_keeps_the_experts_busy: read them after you have tried."""

import torch


def max_violation(load):
    # The mean is over experts, the last axis: each layer is judged by its own.
    load = load.double()
    return load.amax(dim=-1) / load.mean(dim=-1) - 1


def worst_violation(routed, chosen):
    # All N tokens at the same K experts: N tokens each, and the mean is N K / E. V3: 31.
    return routed / chosen - 1


def bias_step(bias, load, gamma):
    # Mean less load: positive, so upwards, for those who got too little.
    load = load.double()
    return bias + gamma * (load.mean() - load).sign()


def sequence_balance(affinity, K):
    T, E = affinity.shape
    counts = affinity.topk(K, dim=-1).indices.flatten().bincount(minlength=E)
    f = counts * E / (K * T)                                           # (E,)  eq. 18
    P = (affinity / affinity.sum(dim=-1, keepdim=True)).mean(dim=0)    # (E,)  eq. 19, 20
    return torch.sum(f * P)                                            # eq. 17


def update_once(bias, micro_loads, gamma):
    # Sum first, over micro-batches (and machines): the sign forgets how many tokens were meant.
    load = micro_loads.sum(dim=0).double()
    return bias + gamma * (load.mean() - load).sign()
