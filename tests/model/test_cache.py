"""The latent cache: sequences are appended to, cut, moved to another cache and removed."""

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.measure.cost import cache_bytes

CONFIG = ModelConfig.preset("tiny").replace(
    vocab_size=61, hidden_size=32, num_hidden_layers=2, intermediate_size=40,
    moe_intermediate_size=16, num_nextn_predict_layers=0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DeepSeekV3(CONFIG.replace(initializer_range=0.2)).double().eval()


def last_logits(model, text):
    with torch.no_grad():
        return model(torch.tensor([text]))[0, -1]


def filled(model, texts, places=None, max_len=20):
    """A cache that holds these texts, of any lengths."""
    cache = model.new_cache(places or len(texts), max_len)
    cache.lengths = [0] * len(texts)
    width = max(map(len, texts))
    tokens = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    with torch.no_grad():
        model(tokens, cache, counts=[len(text) for text in texts])
    return cache


TEXTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]


def assert_goes_on(model, cache, texts):
    """A next token attends to exactly its own text. Oracle: each text alone, without a cache."""
    assert cache.lengths == [len(text) for text in texts]
    with torch.no_grad():
        got = model(torch.tensor([[20]] * len(texts)), cache)[:, 0]
    for row, text in enumerate(texts):
        torch.testing.assert_close(got[row], last_logits(model, [*text, 20]), rtol=0, atol=1e-12)


def test_cut_texts_go_on_as_if_the_rest_had_never_been(model):
    """Oracle: each shortened text alone, without a cache."""
    cache = filled(model, TEXTS)
    cache.crop([2, 2, 0])
    assert_goes_on(model, cache, [TEXTS[0][:2], TEXTS[1], []])


def test_a_text_moves_from_one_cache_to_another(model):
    """Oracle: each text alone, without a cache, after `take` and `put`."""
    first, second = filled(model, TEXTS), filled(model, [[30, 31, 32, 33]], places=3)
    latents = first.take(1)
    assert latents.shape == (2, 2, CONFIG.kv_lora_rank + CONFIG.qk_rope_head_dim)
    second.put(latents)
    second.put(first.take(0))
    assert_goes_on(model, second, [[30, 31, 32, 33], TEXTS[1], TEXTS[0]])


@pytest.mark.parametrize("row", [0, 1, 2])
def test_when_a_text_leaves_the_last_takes_its_place(model, row):
    """Oracle: each remaining text alone, without a cache."""
    cache = filled(model, TEXTS)
    cache.drop(row)
    left = TEXTS[:2] if row == 2 else [TEXTS[2] if i == row else TEXTS[i] for i in range(2)]
    assert_goes_on(model, cache, left)


def test_bytes_are_those_of_the_tensors_and_of_the_accounting(model):
    """Oracle: the sizes of the stored tensors, summed, and the formula of measure.cost."""
    for dtype, width in ((torch.float64, 8), (torch.bfloat16, 2)):
        twin = DeepSeekV3(CONFIG).to(dtype)
        cache = twin.new_cache(3, 11)
        held = sum(layer.latents.numel() * layer.latents.element_size() for layer in cache.layers)
        assert cache.nbytes == held == 3 * 11 * cache_bytes(CONFIG, width)["mla"]


def test_a_full_cache_says_so_and_keeps_what_it_has(model):
    """The error names both lengths. Oracle afterwards: each text alone, without a cache."""
    cache = filled(model, TEXTS, max_len=6)
    with pytest.raises(ValueError, match="max_len=6 tokens but 7 are needed"):
        model(torch.zeros(3, 2, dtype=torch.long), cache)
    assert_goes_on(model, cache, TEXTS)


@pytest.mark.parametrize("lengths, words", [([6, 2, 3], "sequence 0 holds 5 .*cut to 6"),
                                            ([5, -1, 3], "sequence 1 holds 2 .*cut to -1"),
                                            ([5, 2], "2 lengths for 3 sequences")])
def test_a_cut_that_cannot_be_is_refused(model, lengths, words):
    """The error names the sequence and both lengths, or the wrong number of lengths."""
    with pytest.raises(ValueError, match=words):
        filled(model, TEXTS).crop(lengths)


def test_a_text_that_has_no_place_is_refused(model):
    """The error names the limit of the cache and the sequence that does not fit."""
    cache, small = filled(model, TEXTS), filled(model, [[1]], places=2, max_len=4)
    with pytest.raises(ValueError, match="places for 3 sequences .*number 4 with 5"):
        cache.put(cache.take(0))
    with pytest.raises(ValueError, match="max_len=4 .*number 2 with 5"):
        small.put(cache.take(0))
