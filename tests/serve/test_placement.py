"""Placement of redundant experts. Oracles: the vector of the released balancer; its invariants."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidsv3.command import UserError
from minidsv3.serve.placement import gpu_loads, imbalance, pack, rebalance, replicate

LOAD = torch.tensor([[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
                     [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]])


def test_the_released_example():
    """Its README: two layers of 12 experts, 16 slots, 4 groups, 2 nodes of 4 GPUs."""
    placement = rebalance(LOAD, 16, 4, 2, 8)
    assert placement.physical_to_logical.tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]
    loads = gpu_loads(placement, LOAD, 8)
    assert loads[0].tolist() == [121.5, 86.5, 125, 113, 147.5, 131.5, 156, 152]
    assert imbalance(loads).tolist() == pytest.approx([1.2081, 1.2422], abs=5e-5)


def test_groups_that_do_not_divide_are_placed_globally():
    """The same loads in three groups, on two nodes."""
    assert rebalance(LOAD, 16, 3, 2, 8).physical_to_logical.tolist() == [
        [10, 6, 10, 7, 0, 2, 11, 4, 5, 9, 5, 4, 8, 3, 1, 1],
        [1, 10, 2, 4, 5, 11, 5, 0, 6, 7, 6, 3, 8, 8, 9, 7]]


def test_packing_and_copying_by_hand():
    """Heaviest first, each to the lightest pack with room; ties to the first."""
    assert pack([4, 1, 3, 2], 2) == [[0, 1], [2, 3]]
    assert pack([1, 1, 1, 1], 2) == [[0, 2], [1, 3]]
    assert pack([1, 9, 5], 3) == [[0], [1], [2]]         # one item a pack: in their order
    assert replicate([6, 3, 2], 6) == [0, 1, 2, 0, 0, 1]             # 6; 3 3 2 (first); 2 3 2; ...


@st.composite
def cases(draw):
    """(load, replicas, groups, nodes, gpus) that fit together; loads with many ties."""
    nodes = draw(st.integers(1, 4))
    groups = nodes * draw(st.integers(1, 3))
    size, per_node = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    gpus, experts = nodes * per_node, groups * size
    slots = -(-experts // gpus) + draw(st.integers(0, 3))
    load = draw(st.lists(st.lists(st.integers(0, 9), min_size=experts, max_size=experts),
                         min_size=1, max_size=3))
    return torch.tensor(load), slots * gpus, groups, nodes, gpus


@given(cases())
def test_what_holds_for_every_placement(case):
    """Every expert has a slot, every GPU as many; the maps are inverse; groups stay on a node."""
    load, replicas, groups, nodes, gpus = case
    placement = rebalance(load, replicas, groups, nodes, gpus)
    layers, experts = load.shape
    assert placement.physical_to_logical.shape == (layers, replicas)
    assert placement.replica_count.min() >= 1
    assert placement.replica_count.sum(dim=1).tolist() == [replicas] * layers
    for layer in range(layers):
        slots = placement.physical_to_logical[layer].tolist()
        for expert in range(experts):
            found = [slot for slot in placement.logical_to_physical[layer, expert].tolist()
                     if slot >= 0]
            assert sorted(found) == [slot for slot in range(replicas) if slots[slot] == expert]
            assert len(found) == placement.replica_count[layer, expert]
            of_nodes = {slot // (replicas // nodes) for slot in found}
            assert len(of_nodes) == 1                                  # copies within one node
        homes = [{slots.index(expert) // (replicas // nodes) for expert in
                  range(g * experts // groups, (g + 1) * experts // groups)}
                 for g in range(groups)]
        assert all(len(home) == 1 for home in homes)                   # no group across nodes
    assert torch.equal(placement.physical_to_logical,
                       rebalance(load, replicas, groups, nodes, gpus).physical_to_logical)
    total = gpu_loads(placement, load, gpus).sum(dim=1)
    assert torch.allclose(total, load.double().sum(dim=1))


@pytest.mark.parametrize("arguments, words", [
    ((LOAD, 10, 4, 2, 8), "replicas=10 are fewer than the 12 experts"),
    ((LOAD, 16, 5, 1, 8), "experts=12 is no multiple of groups=5; choose for instance 15"),
    ((LOAD, 18, 4, 2, 9), "gpus=9 is no multiple of nodes=2"),
    ((LOAD, 17, 4, 2, 8), "replicas=17 is no multiple of gpus=8; choose for instance 24"),
    ((LOAD, 16, 4, 0, 8), "nodes=0 must be at least 1"),
    ((LOAD[0], 16, 4, 2, 8), r"has shape \(12,\)"),
    ((-LOAD, 16, 4, 2, 8), "negative or not finite")])
def test_what_does_not_fit_is_one_line(arguments, words):
    with pytest.raises(UserError, match=words):
        rebalance(*arguments)


@pytest.mark.parametrize("load", [
    LOAD.tolist(), LOAD.numpy().astype(np.uint16), LOAD.numpy()[:, ::-1].copy()[:, ::-1],
    LOAD.numpy().astype(">f8"), LOAD.T.contiguous().T, LOAD.to(torch.bfloat16)])
def test_loads_of_any_kind(load):
    """All of these are whole numbers up to 256, which bfloat16 holds exactly."""
    assert torch.equal(rebalance(load, 16, 4, 2, 8).physical_to_logical,
                       rebalance(LOAD, 16, 4, 2, 8).physical_to_logical)


def test_a_list_is_not_rounded_to_float32():
    """2^24 + 1 is more than 2^24, which comes first."""
    assert rebalance([[2.0**24, 2.0**24 + 1]], 3, 1, 1, 1).replica_count.tolist() == [[1, 2]]


@pytest.mark.parametrize("load, numbers, words", [
    (LOAD, (16.0, 4, 2, 8), "replicas=16.0 is no whole number"),
    (LOAD, (16, 4, "2", 8), "nodes='2' is no whole number"),
    (LOAD, (16, 5, 2, 8), "experts=12 is no multiple of groups=5"),
    (LOAD, (8, 4, 2, 8), "replicas=8 are fewer than the 12 experts"),
    (-LOAD, (16, 4, 2, 8), "negative"),
    ([[1, 2], [3]], (2, 1, 1, 1), "no table of real numbers"),
    (None, (16, 4, 2, 8), r"the load has shape \(\)")])
def test_what_cannot_be_placed(load, numbers, words):
    with pytest.raises(UserError, match=words):
        rebalance(load, *numbers)


def test_copies_are_in_the_order_in_which_they_were_made():
    """By hand: loads 4 and 1; expert 0 is copied twice. Its first and third copy go to GPU 0."""
    placement = rebalance([[4, 1]], replicas=4, groups=1, nodes=1, gpus=2)
    assert placement.physical_to_logical.tolist() == [[0, 0, 0, 1]]
    assert placement.logical_to_physical.tolist() == [[[0, 2, 1], [3, -1, -1]]]
