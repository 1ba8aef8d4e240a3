"""Bits per byte by position. Oracle: one token after another, in plain Python."""

import math

import numpy as np
import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.context import position
from minidsv3.data.tokenizer import Tokenizer
from tests.conftest import MINIATURE


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    fields = {name: value for name, value in MINIATURE.items()
              if name in ModelConfig.__dataclass_fields__}
    return DeepSeekV3(ModelConfig(**fields, rope_scaling=None, initializer_range=0.2)).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["for name in names:\n    print(name)\n"] * 50, 300)


def test_bits_are_those_of_the_same_tokens_after_contexts_of_each_length(
        model, tokenizer, monkeypatch):
    """Oracle: -log2 p of each target, from a forward pass for that target alone."""
    monkeypatch.setattr(position, "TARGETS", 3)
    text = np.random.default_rng(0).integers(5, 300, 60)
    found = position.bits_by_position(model, tokenizer, text, (5, 9, 20), texts=4)
    ends = [21, 34, 47, 60]                      # from 20 + 1 to 60, at equal distances
    for length, value in found.items():
        bits = size = 0
        for end in ends:
            for target in range(end - 3, end):
                seen = torch.from_numpy(text[end - length - 1:target])[None]
                bits -= model(seen)[0, -1].log_softmax(-1)[text[target]].item() / math.log(2)
                size += len(tokenizer.token_bytes[text[target]])
        assert value == pytest.approx(bits / size, rel=1e-5)
    assert list(found) == [5, 9, 20]


def test_the_picture_has_a_line_for_each_model():
    """Oracle: the data of the lines."""
    curves = {"before": {64: 1.9, 128: 2.5}, "after": {64: 1.9, 128: 1.8}}
    ax = position.picture(curves, 64, "title").axes[0]
    drawn = [line.get_ydata() for line in ax.lines if len(set(line.get_xdata())) == 2]
    assert [list(each) for each in drawn] == [[1.9, 2.5], [1.9, 1.8]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(curves)
