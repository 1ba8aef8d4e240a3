"""The study of redundant experts, on a small invented trace. Oracles: by hand, its own files."""

import json

import numpy as np
import pytest
import torch

from minidsv3.serve.traces import KINDS
from minidsv3.study import redundancy


@pytest.fixture
def trace(tmp_path):
    """8 experts, 2 layers, 2 per token; each kind of text prefers another expert."""
    rng = np.random.default_rng(0)
    found = {}
    for favourite, kind in enumerate(KINDS):
        affinity = rng.random((256, 2, 8))
        affinity[:, :, favourite] += 0.8
        found[kind] = affinity.argsort(axis=2)[:, :, -2:].astype(np.uint8)
    path = tmp_path / "trace.npz"
    np.savez(path, experts=8, **found)
    return path


SIZES = ["--groups", "4", "--nodes", "2", "--gpus", "4", "--hosted", "4", "--active", "3",
         "--tokens", "32", "--every", "2"]


def test_all_ways_are_compared(trace, tmp_path, capsys):
    """Dynamic redundancy is never worse than periodic placement; loads that rest are levelled."""
    out = tmp_path / "out"
    assert redundancy.main(["--traces", str(trace), "--out", str(out), *SIZES]) == 0
    results = json.loads((out / "results.json").read_text("utf-8"))
    means = results["mean_imbalance"]
    assert 1 <= means["dynamic"] < means["periodic"] < means["plain"]
    assert all(len(values) == results["steps"] == 16 for values in results["imbalance"].values())
    assert results["zipf"]["0.9"]["periodic"] < 1.2 < results["zipf"]["0.9"]["plain"]
    assert {path.name for path in out.iterdir()} == {"results.json", "time.png", "gpus.png"}
    assert "dynamic" in capsys.readouterr().out


def test_the_busiest_gpu_by_hand():
    """Two GPUs of two experts with loads 3 1 and 0 0: 4 over the mean of 2."""
    placement = redundancy.rebalance(torch.ones(1, 4), 4, 1, 1, 2)
    load = np.zeros((1, 4), dtype=int)
    first = placement.physical_to_logical[0, :2].tolist()
    load[0, first] = [3, 1]
    assert redundancy.busiest(load, placement, 2).tolist() == [2.0]


def test_bad_input_ends_in_one_line(trace, tmp_path, capsys):
    for arguments, words in ((["--traces", str(tmp_path / "none")], "does not exist; make it with"),
                             (["--traces", str(trace), *SIZES, "--tokens", "200"], "fewer than"),
                             (["--traces", str(trace), *SIZES, "--tokens", "99999"], "has 0 steps"),
                             (["--traces", str(trace), *SIZES, "--active", "5"],
                              "--hosted 4 must be at least --active 5"),
                             (["--traces", str(trace), "--out", str(trace)], "name a folder"),
                             (["--every", "0"], "--every 0 must be at least 1")):
        assert redundancy.main(arguments) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert words in said[-1]
