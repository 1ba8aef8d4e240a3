"""A backward pass in two halves: I gives the gradient of the input, W those of the weights.

    groups = backward_input(roots, gradients, x, weights)     I: sets x.grad, keeps what W needs
    backward_weights(groups)                                  W: adds to the .grad of each weight

The backward pass goes through the nodes of autograd's graph, from the roots down to x and to the
weights. The nodes that lead to x are the path. A weight meets the path at one node or at several,
which are its joins:

    root -> node -> join -> node -> join -> x              the path
                     |               |
                   weight          weight

I executes the path alone, and keeps the gradients that arrive at the joins. W begins at the joins
with these gradients. So it executes only what leads from a join to a weight.

A join is executed twice, in I and in W. Where one weight has two joins, one below the other, W also
executes the path between them. What flows down there is part of the kept gradients already, so it
is replaced by them.

torch has private functions that split a backward pass too. This file needs public functions only,
and it works with torch 2.11, where those of torch fail: they let the roots go after I. But what
Python has of a node of a `torch.autograd.Function` does not keep that node alive in torch 2.11. So
here the roots stay until W has run.
"""

from contextlib import ExitStack
from graphlib import TopologicalSorter
from typing import NamedTuple

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge


class Group(NamedTuple):
    """Weights that have the same joins."""

    weights: list
    kept: dict                       # {join: the gradients that arrive there, some may be None}
    roots: list                      # nodes; they keep the whole graph alive until W has run


def backward_input(roots, gradients, x, weights):
    """I: tensors and their gradients; leaves x and weights -> [Group], what W needs."""
    # A view is a node for each root alone: W can begin there if a root does not lead to x.
    views = [root.view_as(root) for root in roots]
    tops = [view.grad_fn for view in views]
    joins = find_joins(tops, get_gradient_edge(x).node)
    owners = {}                                            # {joins: weights that have exactly them}
    for weight in weights:
        if weight.requires_grad and (found := joins.get(get_gradient_edge(weight).node)):
            owners.setdefault(tuple(found), []).append(weight)

    kept = {top: (gradient,) for top, gradient in zip(tops, gradients, strict=True)}
    with ExitStack() as hooks:
        for join in {join for found in owners for join in found}:
            hooks.enter_context(join.register_prehook(
                lambda arriving, join=join: kept.update({join: arriving})))
        [x.grad] = torch.autograd.grad(views, [x], gradients, retain_graph=True)
    return [Group(own, {join: kept[join] for join in found}, tops) for found, own in owners.items()]


def backward_weights(groups):
    """W: add to the gradients of all weights; afterwards groups is empty, and the memory free."""
    while groups:
        weights, kept, _ = groups.pop()
        edges = {GradientEdge(join, i): gradient for join, gradients in kept.items()
                 for i, gradient in enumerate(gradients) if gradient is not None}
        with ExitStack() as hooks:
            for join, gradients in kept.items():           # whatever flows down to it from others
                hooks.enter_context(join.register_prehook(lambda _, kept=gradients: kept))
            torch.autograd.backward([*edges], [*edges.values()], inputs=weights, retain_graph=True)


def find_joins(tops, end):
    """The graph below some nodes, and the node of x -> {node of a leaf: list of its joins}.

    A top belongs to the path even if it does not lead to x, so each leaf has a join.
    """
    below, waiting = {}, [*tops]                           # {node: where its gradients go}
    while waiting:
        node = waiting.pop()
        if node not in below:
            below[node] = [child for child, _ in node.next_functions if child is not None]
            waiting += below[node]
    path, leaves, joins = {end, *tops}, {}, {}             # leaves: {node off the path: its leaves}
    for node in TopologicalSorter(below).static_order():   # what is below a node comes before it
        if not path.isdisjoint(below[node]):
            path.add(node)
        found = set().union(*(leaves[child] for child in below[node] if child not in path))
        if node not in path:
            leaves[node] = found or {node}
        else:
            for leaf in found:
                joins.setdefault(leaf, []).append(node)
    return joins
