"""The drawing shows the numbers and parts of the config, and its words fit into their boxes."""

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import pytest
from PIL import ImageFont

from minidsv3.config import ModelConfig
from minidsv3.measure.architecture import ORANGE, architecture_svg

SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Config:
    """The fields that are drawn; all numbers differ, so that a mix-up shows."""

    vocab_size: int = 101_003
    hidden_size: int = 7_011
    num_hidden_layers: int = 37
    first_k_dense_replace: int = 6
    intermediate_size: int = 18_013
    num_attention_heads: int = 113
    q_lora_rank: int | None = 1_517
    kv_lora_rank: int = 519
    qk_nope_head_dim: int = 127
    qk_rope_head_dim: int = 66
    v_head_dim: int = 131
    n_routed_experts: int = 240
    n_shared_experts: int = 3
    num_experts_per_tok: int = 9
    n_group: int = 8
    topk_group: int = 5
    routed_scaling_factor: float = 2.75
    moe_intermediate_size: int = 2_029
    num_nextn_predict_layers: int = 1


PLAIN = replace(Config(), q_lora_rank=None, num_nextn_predict_layers=0, n_shared_experts=0,
                first_k_dense_replace=0, n_group=1, topk_group=1, n_routed_experts=12)
SMALL = replace(Config(), vocab_size=64, hidden_size=8, n_routed_experts=4, num_experts_per_tok=2,
                n_group=2, topk_group=1, num_nextn_predict_layers=3, num_hidden_layers=2,
                first_k_dense_replace=2)
CONFIGS = [Config(), PLAIN, SMALL]


def words(config):
    """All text in the picture; parsing it proves that it is well-formed XML."""
    return [text.text for text in ET.fromstring(architecture_svg(config)).iter(SVG + "text")]


def test_the_numbers_are_the_configs():
    """Oracle: the texts written out for a config whose numbers are all different."""
    expected = {
        "101,003 × 7,011", "7,011 × 101,003", "6 dense blocks", "31 MoE blocks", "18,013 wide",
        "1,517", "519", "66", "127", "131", "attention in 113 heads", "softmax(q · k / √193) v",
        "o_proj, 14,803 → 7,011", "cached: 585 numbers", "240 affinities s",
        "best 5 of 8 groups", "top 9 of 240", "240 routed experts", "each 2,029 wide", "3 shared",
        "sum 2.75", "14,022", "→ 7,011",
    }
    assert expected <= set(words(Config())), expected - set(words(Config()))


def test_the_scale_of_the_scores_has_yarns_temperature():
    """Oracle: 0.1352 of the released model, from the specification; without YaRN the root alone."""
    v3 = ModelConfig.preset("v3-671b")
    assert "softmax(0.1352 q · k) v" in words(v3)
    assert "softmax(q · k / √192) v" in words(v3.replace(rope_scaling=None))


def test_parts_that_the_model_lacks_are_not_drawn():
    """Oracle: the words of a part, present with the part and absent without it."""
    parts = {"q_lora_rank": (None, {"c_q", "q_a_proj", "q_b_proj"}),
             "num_nextn_predict_layers": (0, {"MTP module", "eh_proj", "token t+2"}),
             "n_shared_experts": (0, {"3 shared", "weighted sum + shared"}),
             "first_k_dense_replace": (0, {"6 dense blocks", "SwiGLU"}),
             "n_group": (1, {"best 5 of 8 groups"})}
    for field, (nothing, named) in parts.items():
        assert named <= set(words(Config())), field
        assert not named & set(words(replace(Config(), **{field: nothing}))), field
    assert "q_proj" in words(PLAIN) and "37 MoE blocks" in words(PLAIN)


@pytest.mark.parametrize("config", [Config(), PLAIN, SMALL, replace(SMALL, n_group=1)])
def test_every_expert_has_a_cell_and_top_k_of_them_are_chosen(config):
    """Oracle: the number of cells of each colour."""
    paths = [p for p in ET.fromstring(architecture_svg(config)).iter(SVG + "path")
             if p.get("d").endswith(" z") and " h" in p.get("d") and " v" in p.get("d")]
    colours = [p.get("fill") for p in paths]
    assert len(colours) == config.n_routed_experts
    assert colours.count(ORANGE[1]) == config.num_experts_per_tok


def width_of(text):
    """Width in DejaVu Sans, the widest font that a browser may use for sans-serif."""
    name = "DejaVuSans-Bold.ttf" if text.get("font-weight") else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), int(text.get("font-size"))).getlength(text.text)


@pytest.mark.parametrize("config", CONFIGS)
def test_words_fit_into_their_boxes_and_do_not_touch(config):
    """Oracle: the widths of a font that is wider than the one requested."""
    root = ET.fromstring(architecture_svg(config))
    rects = [[float(r.get(k) or 0) for k in ("x", "y", "width", "height")]
             for r in root.iter(SVG + "rect")]
    placed = []
    for text in root.iter(SVG + "text"):
        assert int(text.get("font-size")) * 900 / 1000 >= 12, "readable at a width of 900"
        x, y, width = float(text.get("x")), float(text.get("y")), width_of(text)
        left = x - {"start": 0, "middle": width / 2, "end": width}[text.get("text-anchor")]
        around = [r for r in rects if r[0] <= x <= r[0] + r[2] and r[1] <= y - 5 <= r[1] + r[3]]
        box = min(around, key=lambda r: r[2] * r[3])
        assert box[0] <= left and left + width <= box[0] + box[2], f"{text.text!r} leaves its box"
        for other, l, r, base in placed:
            apart = left >= r or left + width <= l or abs(y - base) >= 16
            assert apart, f"{text.text!r} touches {other!r}"
        placed.append((text.text, left, left + width, y))
    assert math.isclose(max(r[2] for r in rects), 1000)
