"""Placed copies of experts on four processes give the outputs of the plain layer."""

import pytest
import torch
import torch.distributed as dist

from minidsv3.scale.expert_parallel import one_hop, two_hops
from minidsv3.serve.placement import rebalance
from minidsv3.serve.replicated import serve_replicated
from tests.multi.launch import run_ranks
from tests.multi.test_expert_parallel import CONFIG, the_layer, the_tokens

pytestmark = pytest.mark.multi


def served(rank, slots, hops):
    """The outputs for this process's tokens."""
    layer = the_layer([0.0] * 8)
    route = one_hop(dist.group.WORLD)
    if hops == 2:
        groups = [dist.new_group([0, 2]), dist.new_group([1, 3]), dist.new_group([0, 1]),
                  dist.new_group([2, 3])]
        route = two_hops(groups[rank % 2], groups[2 + rank // 2], 2)
    serve_replicated(layer, route, slots)
    with torch.no_grad():
        return layer(the_tokens(4)[rank][0])[0]


@pytest.mark.parametrize("hops", [1, 2])
def test_copies_give_the_outputs_of_the_plain_layer(hops):
    """Oracle: the plain layer; float64, only the order of sums differs.

    12 slots for 8 experts, 4 of them twice; then 16, some of them three times.
    """
    layer = the_layer([0.0] * 8)
    for replicas, load in ((12, [9, 1, 5, 1, 7, 2, 8, 3]), (16, [50, 1, 1, 1, 40, 2, 8, 3])):
        placement = rebalance(torch.tensor([load]), replicas, 4, 2, 4)
        slots = placement.physical_to_logical[0]
        results = run_ranks(served, 4, slots, hops)
        for result, (x, _) in zip(results, the_tokens(4), strict=True):
            assert (result - layer(x)[0]).abs().max() < 1e-12


def test_an_expert_without_a_slot():
    with pytest.raises(ValueError, match="expert 3 has no slot"):
        serve_replicated(the_layer([0.0] * CONFIG.n_routed_experts), None, [0, 1, 2, 4, 5, 6, 7, 7])
