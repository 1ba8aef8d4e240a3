"""The study of redundant experts, on a small invented trace. Oracles: by hand, its own files."""

import json

import numpy as np
import pytest

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


def test_copies_are_needed_where_one_expert_is_too_much_for_a_gpu():
    """By hand: 6 of 12 tokens for one of 4 experts. Two GPUs have 6 + 2 and 2 + 2, four 6 2 2 2.

    With four more slots it has four copies of 1.5, and another one two copies of 1: all have 3.
    """
    stream = np.array([[[6, 2, 2, 2]]])
    found = redundancy.on_more_gpus({"code": stream}, 1, 2)["code"]
    assert list(found) == ["2", "4"]
    assert found["2"]["packed"] == 1.333 and found["4"] == {"packed": 2, "copied": 1}


def test_the_picture_shows_the_worst_steps():
    """By hand: plain has experts 0, 1 on GPU 0; the second step is the worse one, 8 over 5."""
    stream = np.array([[[3, 3, 2, 2]], [[4, 4, 1, 1]]])
    before, after = redundancy.before_and_after(stream, 1, 2)
    assert sorted(before.tolist()) == [2, 8] and after.tolist() == [5, 5]


def test_the_busiest_gpu_by_hand():
    """Two GPUs of two experts with loads 3 1 and 0 0: 4 over the mean of 2."""
    load = np.array([[3, 1, 0, 0]])
    assert redundancy.busiest(load, redundancy.in_order(1, 4), 2).tolist() == [2.0]


def test_bad_input_ends_in_one_line(trace, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(redundancy, "follow", lambda *_: pytest.fail("compared"))
    for arguments, words in ((["--traces", str(tmp_path / "none")], "does not exist; make it with"),
                             (["--traces", str(trace), *SIZES, "--tokens", "200"], "fewer than"),
                             (["--traces", str(trace), *SIZES, "--tokens", "99999"], "has 0 steps"),
                             (["--traces", str(trace), *SIZES, "--active", "5"],
                              "--hosted 4 must be at least --active 5"),
                             (["--traces", str(trace), "--out", str(trace)], "name a folder"),
                             (["--traces", str(trace), *SIZES, "--out", str(trace / "x")],
                              "is a file; name a folder"),
                             (["--every", "0"], "--every 0 must be at least 1")):
        assert redundancy.main(arguments) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert words in said[-1]
