"""The full-size plan. Oracles: released numbers, arithmetic by hand, all GPUs one by one."""

import json
import math

import pytest

from minidsv3 import ModelConfig
from minidsv3.measure.accounting import main_parameters, mtp_parameters
from minidsv3.scale import mesh

TINY = ModelConfig.preset("tiny")


@pytest.mark.slow
def test_the_reports_plan(capsys):
    """2,048 GPUs, 16 stages, experts over 64: stage 1 has four MoE layers, 4 of 256 experts each.

    By hand: a layer's attention 187,105,280, norms 16,384, shared and each routed expert
    44,040,192, gate 1,835,008.
    """
    assert mesh.main(["v3-671b", "--gpus", "2048", "--pp", "16", "--ep", "64", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["parameters"] == {"main_model": 671_026_404_352,
                                     "mtp_modules": 11_610_067_968}
    others, expert = 187_105_280 + 16_384 + 44_040_192 + 1_835_008, 44_040_192
    stage, parts = figures["stages"][1], figures["bytes_per_gpu"]["zero1"][1]
    assert stage["whole"] == 4 * (others + 4 * expert)
    shard = 4 * (others / 128 + 4 * expert / 2)          # fsdp = 2: two of a GPU's four experts
    assert stage["shard"] == pytest.approx(shard, rel=1e-4)            # 576 rows over 128: 5 each
    assert (parts["weights"], parts["gradients"]) == (2 * stage["whole"], 4 * stage["whole"])
    assert parts["second_copy"] == 6 * figures["stages"][14]["whole"]
    assert figures["fits"] == {"zero1": True, "fsdp": True}


@pytest.mark.parametrize("layout", [mesh.Layout(2, 2, 2), mesh.Layout(1, 3, 1),
                                    mesh.Layout(4, 1, 2)], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_the_gpus_add_up_to_the_model(layout, tied):
    """Every GPU of every stage, divided in earnest; each parameter is held once."""
    config = TINY.replace(tie_word_embeddings=tied)
    held = sum(math.prod(shape) for stage in range(layout.stages) for place in range(layout.data)
               for shape in mesh.shards(config, layout, stage, place).values())
    assert held == sum(main_parameters(config).values()) + sum(mtp_parameters(config).values())


def test_what_does_not_fit_is_said(capsys):
    """On one GPU the 671B model needs, among others, 2 + 4 + 8 bytes for each parameter."""
    config = ModelConfig.preset("moonlight-16b")
    figures = mesh.report("moonlight-16b", config, mesh.Layout(1, 1, 1), 4096)
    size = figures["largest_bytes"]["zero1"]
    count = sum(main_parameters(config).values()) + sum(mtp_parameters(config).values())
    assert size > 14 * count > mesh.CARD and not figures["fits"]["zero1"]
    text = mesh.as_text(figures)
    assert "does NOT fit into 80.00 GB" in text and "too much" in text


def test_the_table_names_stages_that_are_alike(capsys):
    assert mesh.main(["tiny", "--gpus", "8", "--pp", "4", "--ep", "2"]) == 0
    text = capsys.readouterr().out
    assert "4 stages, each on 1 x 2 GPUs" in text and text.count("fits into 80.00 GB") == 2


@pytest.mark.parametrize("arguments, words", [
    (["--gpus", "100"], "--gpus 100 is no multiple of --pp 16 times --ep 64; choose for instance "
                        "--gpus 1024"),
    (["--ep", "48", "--gpus", "768"], "--ep 48 does not divide the 256 routed experts; choose for "
                                      "instance --ep 16"),
    (["--pp", "3", "--gpus", "192"], "--pp 3 must be 1, or even"),
    (["--pp", "64", "--ep", "1"], "--pp 64 must be 1, or even and at most the model's 61 blocks"),
    (["--pp", "0"], "--pp 0 must be 1 to 65,536"),
    (["--window", "0"], "--window 0 must be at least 1")])
def test_bad_sizes_end_in_one_line(capsys, arguments, words):
    assert mesh.main(["v3-671b", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
