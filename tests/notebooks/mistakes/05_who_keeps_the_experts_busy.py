"""Typical mistakes in 05_who_keeps_the_experts_busy; each docstring is in the hint they get."""


def max_violation(load):
    """less 1"""
    load = load.double()
    return load.amax(dim=-1) / load.mean(dim=-1)


def worst_violation(routed, chosen):
    """A token takes K different experts"""
    return routed - 1


def bias_step(bias, load, gamma):
    """The overloaded expert goes down"""
    load = load.double()
    return bias + gamma * (load - load.mean()).sign()


def sequence_balance(affinity, K):
    """divided by its own sum"""
    T, E = affinity.shape
    counts = affinity.topk(K, dim=-1).indices.flatten().bincount(minlength=E)
    return (counts * E / (K * T) * affinity.mean(dim=0)).sum()


def update_once(bias, micro_loads, gamma):
    """Add up the micro-batches first"""
    for load in micro_loads.double():
        bias = bias + gamma * (load.mean() - load).sign()
    return bias
