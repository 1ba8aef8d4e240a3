"""The launcher of the tests with several processes: what it returns, and how it fails."""

import multiprocessing
import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.multi.launch import run_ranks

pytestmark = pytest.mark.multi


def add_ranks(rank, offset):
    total = torch.tensor([rank + offset])
    dist.all_reduce(total)
    return rank, total


def fail_on_rank_1(rank, how):
    if rank == 1:
        if how == "raise":
            raise ValueError("a mistake on purpose")
        if how == "die":
            os._exit(7)
        time.sleep(60)
    dist.barrier()


def test_results_come_back_by_rank():
    """Oracle: the sum by hand, 0 + 1 + 2 and three times 10."""
    assert run_ranks(add_ranks, 3, 10) == [(rank, torch.tensor([33])) for rank in range(3)]


@pytest.mark.parametrize("how, text, limit", [
    ("raise", "rank 1: .*ValueError: a mistake on purpose", 30),
    ("die", "rank 1: ended with exit code 7", 30), ("hang", "rank ", 3)])
def test_a_rank_that_fails_is_named(how, text, limit):
    """Oracle: the message, soon after the limit at the latest; no process is left."""
    started = time.monotonic()
    with pytest.raises(AssertionError, match=f"(?s){text}"):
        run_ranks(fail_on_rank_1, 2, how, limit=limit)
    assert time.monotonic() - started < limit + 5
    assert not multiprocessing.active_children()
