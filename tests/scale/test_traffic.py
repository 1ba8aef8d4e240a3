"""Copies of tokens between nodes. Oracles: a loop over tokens; the router's limit."""

import shutil
from pathlib import Path

import pytest
import torch

from minidsv3.scale import traffic

TINY = Path(__file__).resolve().parents[2] / "checkpoints/tiny"


def count_by_loop(experts, num_experts, nodes, per_node):
    """Means of (across, inside) in one hop and in two, token by token."""
    gpus, sums = nodes * per_node, [0, 0, 0, 0]
    for n, chosen in enumerate(experts.tolist()):
        home = n % gpus
        targets = {expert * gpus // num_experts for expert in chosen}
        far = [target for target in targets if target // per_node != home // per_node]
        others = {target // per_node for target in far}
        sums[0] += len(far)
        sums[1] += len(targets - {home}) - len(far)
        sums[2] += len(others)
        sums[3] += sum(target % per_node != home % per_node for target in targets)
    return [total / len(experts) for total in sums]


@pytest.mark.parametrize("num_experts, nodes, per_node, chosen", [
    (16, 4, 2, 4), (12, 3, 4, 5), (8, 2, 1, 3), (8, 1, 4, 2)])
def test_copies_equal_a_loop(num_experts, nodes, per_node, chosen):
    generator = torch.Generator().manual_seed(num_experts)
    experts = torch.rand(50, num_experts, generator=generator).topk(chosen).indices
    found = traffic.count(experts, num_experts, nodes, per_node)
    numbers = [*found["one hop"][:2], *found["two hops"][:2]]
    assert numbers == pytest.approx(count_by_loop(experts, num_experts, nodes, per_node))


def test_the_trained_model_keeps_its_limit(tmp_path, monkeypatch, capsys):
    """Two of four nodes per token, so at most two copies between nodes; without the limit more."""
    monkeypatch.setattr(traffic, "WINDOWS", 8)   # 2,048 tokens
    out = tmp_path / "traffic.png"
    assert traffic.main([str(TINY), "--out", str(out)]) == 0
    rows = {line.rsplit(maxsplit=3)[0]: line.split()[-3:]
            for line in capsys.readouterr().out.splitlines()[2:6]}
    two_hops, without = rows["with the limit, two hops"], rows["without, two hops"]
    assert int(two_hops[1]) == 2 < int(without[1])
    assert float(two_hops[0]) < float(without[0]) < float(rows["without, one hop"][0])
    assert out.stat().st_size > 10_000


def test_bad_input_ends_in_one_line(capsys, tmp_path):
    assert traffic.main([str(TINY), "--gpus-per-node", "3"]) == 2
    said = capsys.readouterr().err
    assert "--gpus-per-node 3 does not divide the 4 experts" in said and said.count("\n") == 1
    assert traffic.main([str(TINY), "--out", ""]) == 2
    assert "--out . must name a file that ends in .png." in capsys.readouterr().err
    shutil.copytree(TINY, tmp_path / "alone")
    config = tmp_path / "alone/config.json"
    config.write_text(config.read_text().replace('"n_group": 4', '"n_group": 1').replace(
        '"topk_group": 2', '"topk_group": 1'))
    assert traffic.main([str(tmp_path / "alone")]) == 2
    said = capsys.readouterr().err
    assert "has n_group=1, so its router has no limit" in said and said.count("\n") == 1
