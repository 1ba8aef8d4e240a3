"""Dynamic redundancy. Oracles: hand examples, and all activations tried on small cases."""

import numpy as np
import pytest

from minidsv3.command import UserError
from minidsv3.serve.dynamic import bound, hosting, level, optimum, pour, settle


def test_water_finds_its_level():
    assert pour(5, np.array([1.0, 2.0, 9.0])).tolist() == [3, 2, 0]
    assert pour(0.5, np.array([1.0, 2.0])).tolist() == [0.5, 0]
    assert pour(9, np.array([0.0, 3.0, 0.0])).tolist() == [4, 1, 4]


def random_case(seed, gpus=4, hosted=3, experts=6):
    """Loads and hosts; every expert has one host at least."""
    rng = np.random.default_rng(seed)
    slots = np.concatenate([np.arange(experts),
                            rng.integers(0, experts, gpus * hosted - experts)])
    hosts = np.zeros((gpus, experts), dtype=bool)
    for slot, expert in enumerate(rng.permutation(slots)):
        hosts[slot // hosted, expert] = True
    return rng.zipf(1.6, experts).clip(max=50).astype(float), hosts


@pytest.mark.parametrize("seed", range(20))
def test_without_a_limit_it_is_the_optimum(seed):
    """Oracle: the largest load of a set of experts over the number of its hosts."""
    load, hosts = random_case(seed)
    share = settle(load, hosts)
    assert share.sum(axis=0) == pytest.approx(load) and (share[~hosts] == 0).all()
    assert share.sum(axis=1).max() == pytest.approx(bound(load, hosts), rel=1e-3)


def test_with_a_limit_it_is_within_two_percent_of_the_optimum():
    """Oracle: all activations. 2 of 3 hosted experts are activated on each of 4 GPUs."""
    gaps = []
    for seed in range(40):
        load, hosts = random_case(seed)
        try:
            share = level(load, hosts, 2)
        except UserError:
            continue
        assert share.sum(axis=0) == pytest.approx(load)
        assert (share[~hosts] == 0).all() and ((share > 0).sum(axis=1) <= 2).all()
        gaps.append(share.sum(axis=1).max() / optimum(load, hosts, 2) - 1)
    assert len(gaps) >= 30 and min(gaps) > -1e-6
    print(sorted(gaps)[-8:])
    assert max(gaps) < 0.02


@pytest.mark.parametrize("load, hosts, active, words", [
    ([1, 1], [[True, False], [True, False]], 1, "expert 1 has no host"),
    ([1, 1, 1], [[True, True, True]], 2, "active=2 on 1 GPUs leaves no place"),
    ([1, np.nan], [[True, True]], 2, "negative or not finite"),
    ([1, 1, 1], [[True, True, False], [False, False, True]], 0, "active=0")])
def test_what_cannot_be_levelled(load, hosts, active, words):
    with pytest.raises(UserError, match=words):
        level(load, hosts, active)


def test_hosting_always_leaves_a_place_for_all():
    """Loads by Zipf's law, where the busiest expert would take most of the copies."""
    load = 1000 / np.arange(1, 25) ** 1.5
    hosts = hosting(load, gpus=8, hosted=6, active=4)
    assert hosts.any(axis=0).all() and (hosts.sum(axis=1) == 6).all()
    share = level(np.roll(load, 5), hosts, 4)                # the loads have moved since
    assert ((share > 0).sum(axis=1) <= 4).all() and share.sum() == pytest.approx(load.sum())
    assert hosting(np.zeros(4), 2, 4, 2).all()               # room for all everywhere


@pytest.mark.parametrize("load, rows, active", [
    ([1, 0, 3, 1], ["1111"] * 4, 1),             # an expert without tokens needs no place
    ([3, 1, 1, 3, 1, 7, 1], ["0001110", "0100011", "1000101", "0011001"], 2),
    ([82, 87, 92, 50, 97, 75, 20], ["0100110", "1100100", "1011000", "0011001"], 2),
    ([0.1, 3, 21, 0.01, 0.001], ["10111", "01111", "11101"], 2)])
def test_where_one_search_gets_stuck(load, rows, active):
    """Oracle: all activations. From the heaviest first alone, up to twice the optimum is found."""
    hosts = np.array([[digit == "1" for digit in row] for row in rows])
    for unit in (1, 1e-9):                       # tokens, or shares of very many
        part = unit * np.array(load, dtype=float)
        share = level(part, hosts, active)
        assert share.sum(axis=0) == pytest.approx(part)
        assert ((share > 0).sum(axis=1) <= active).all()
        assert share.sum(axis=1).max() <= 1.02 * optimum(part, hosts, active)
