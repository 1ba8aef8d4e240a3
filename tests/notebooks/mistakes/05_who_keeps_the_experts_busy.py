"""Typical mistakes in 05_who_keeps_the_experts_busy; each docstring is in the verdict they get."""

import torch


def max_violation(load):
    """For each layer: divide the largest load by the mean load, and subtract 1."""
    return load.double().std(dim=-1) / load.double().mean(dim=-1)


def max_violation__less_one(load):
    """You give the busiest load divided by the mean. Subtract 1."""
    load = load.double()
    return load.amax(dim=-1) / load.mean(dim=-1)


def max_violation__tokens(load):
    """Divide it by the mean"""
    return load.double().amax(dim=-1) - load.double().mean(dim=-1)


def max_violation__all_layers(load):
    """Each layer is measured by its own mean"""
    return [row.max() / load.double().mean() - 1 for row in load]


def max_violation__busiest_of_all(load):
    """got [2, 0.2]. You take the busiest expert of all layers. Each layer has its own."""
    return load.max() / load.double().mean(-1) - 1


def max_violation__too_few(load):
    """MaxVio looks at the busiest expert only."""
    load = load.double()
    mean = load.mean(dim=-1, keepdim=True)
    return ((load - mean).abs() / mean).amax(dim=-1)


def max_violation__one_number(load):
    """Return one number per layer."""
    load = load.double()
    return (load.amax(dim=-1) / load.mean(dim=-1) - 1).mean()


def max_violation__whole_numbers(load):
    """your function ended in RuntimeError"""
    return load.amax(dim=-1) / load.mean(dim=-1) - 1


def worst_violation(routed, chosen):
    """a token uses K different experts"""
    return routed - 1


def worst_violation__less_one(routed, chosen):
    """MaxVio is 1 less"""
    return routed / chosen


def worst_violation__whole(routed, chosen):
    """the number need not be whole"""
    return routed // chosen - 1


def worst_violation__other_way(routed, chosen):
    """You exchanged the two numbers"""
    return chosen / routed - 1


def bias_step(bias, load, gamma):
    """the overloaded expert must go down"""
    load = load.double()
    return bias + gamma * (load - load.mean()).sign()


def bias_step__difference(bias, load, gamma):
    """Only its sign counts"""
    load = load.double()
    return bias + gamma * (load.mean() - load)


def bias_step__at_the_mean(bias, load, gamma):
    """An expert exactly at the mean must stay where it is."""
    load = load.double()
    return torch.where(load > load.mean(), bias - gamma, bias + gamma)


def bias_step__no_old_bias(bias, load, gamma):
    """add it to the old bias"""
    load = load.double()
    return gamma * (load.mean() - load).sign()


def bias_step__busiest(bias, load, gamma):
    """All biases move, each by its own load"""
    bias[load.argmax()] -= gamma
    return bias


def sequence_balance(affinity, K):
    """Eq. 19 is missing"""
    T, E = affinity.shape
    counts = affinity.topk(K, dim=-1).indices.flatten().bincount(minlength=E)
    return (counts * E / (K * T) * affinity.mean(dim=0)).sum()


def sequence_balance__columns(affinity, K):
    """eq. 19 divides a token's row by the sum of this row"""
    T, E = affinity.shape
    counts = affinity.topk(K, dim=-1).indices.flatten().bincount(minlength=E)
    return (counts * E / (K * T) * (affinity / affinity.sum(dim=0)).mean(dim=0)).sum()


def sequence_balance__count(affinity, K):
    """eq. 18 multiplies the count by E / (K T)"""
    counts = affinity.topk(K, dim=-1).indices.flatten().bincount(minlength=affinity.size(1))
    return (counts * (affinity / affinity.sum(dim=-1, keepdim=True)).mean(dim=0)).sum()


def sequence_balance__no_K(affinity, K):
    """since a token fills K places"""
    T, E = affinity.shape
    counts = affinity.topk(K, dim=-1).indices.flatten().bincount(minlength=E)
    return (counts * E / T * (affinity / affinity.sum(dim=-1, keepdim=True)).mean(dim=0)).sum()


def sequence_balance__shares(affinity, K):
    """got 0.6283217. Your f lacks a factor: eq. 18 multiplies the count by E / (K T)"""
    counts = affinity.topk(K, dim=-1).indices.flatten().bincount(minlength=affinity.shape[1])
    share = affinity / affinity.sum(dim=-1, keepdim=True)
    return (counts / len(affinity) * share.mean(dim=0)).sum()


def sequence_balance__no_minlength(affinity, K):
    """affinity of 2 tokens to 3 experts, K=2: your function ended in RuntimeError"""
    T, E = affinity.shape
    counts = affinity.topk(K, dim=-1).indices.flatten().bincount()
    return (counts * E / (K * T) * (affinity / affinity.sum(-1, keepdim=True)).mean(0)).sum()


def update_once(bias, micro_loads, gamma):
    """Add up the micro-batches first"""
    for load in micro_loads.double():
        bias = bias + gamma * (load.mean() - load).sign()
    return bias


def update_once__at_the_mean(bias, micro_loads, gamma):
    """micro_loads=[[5, 1, 0], [1, 3, 2]], gamma=0.25: expected [-0.25, 0, 0.25], got [-0.25, 0.25,
    0.25]."""
    total = micro_loads.sum(dim=0).double()
    return bias + gamma * torch.where(total > total.mean(), -1.0, 1.0)


def update_once__votes(bias, micro_loads, gamma):
    """Here each micro-batch counts the same"""
    lacks = micro_loads.double().mean(dim=-1, keepdim=True) - micro_loads
    return bias + gamma * lacks.sign().sum(dim=0).sign()


def update_once__last(bias, micro_loads, gamma):
    """You use the last micro-batch only."""
    load = micro_loads[-1].double()
    return bias + gamma * (load.mean() - load).sign()


def update_once__direction(bias, micro_loads, gamma):
    """the overloaded expert must go down"""
    load = micro_loads.sum(dim=0).double()
    return bias + gamma * (load - load.mean()).sign()
