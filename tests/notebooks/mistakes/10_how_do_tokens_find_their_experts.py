"""Typical mistakes for the exercises of 10_how_do_tokens_find_their_experts."""

import torch


def dispatch(chosen, per_gpu, gpus):
    """got [1, 0, 0, 2, 1, 0, 0, 0]. Does a GPU need two copies of a token"""
    boxes = [[] for _ in range(gpus)]
    for number, experts in enumerate(chosen):
        for expert in experts:
            boxes[expert // per_gpu].append(number)
    return boxes


def combine(sent, returned, count):
    """expected [3.5, 7.5], got [2.5, 7.5]. What if two values come back for the same token?"""
    y = [0.0] * count
    for box, values in zip(sent, returned):
        for number, value in zip(box, values):
            y[number] = value
    return y


def serve(x, chosen, weights, first, count):
    """expected [7.5, 6], got [6, 6]. Which number is stored if the same row stands twice"""
    y = torch.zeros_like(x)
    row, choice = (chosen // count == first // count).nonzero(as_tuple=True)
    y[row] += weights[row, choice] * (chosen[row, choice] + 1) * x[row]
    return y


def copies_between_nodes(chosen, home, per_gpu, gpus_per_node, hops):
    """expected 1, got 2. Count places, not experts"""
    far = [expert for expert in chosen
           if expert // per_gpu // gpus_per_node != home // gpus_per_node]
    return len(far)
