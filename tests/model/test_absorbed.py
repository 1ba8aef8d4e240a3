"""The absorbed form of MLA equals the expanded one, with caches of equal and unequal lengths."""

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.config import RopeScaling
from minidsv3.measure.cost import break_even_queries
from minidsv3.model.mla import MLA

BASE = ModelConfig(
    vocab_size=61, hidden_size=32, intermediate_size=40, moe_intermediate_size=16,
    num_hidden_layers=3, first_k_dense_replace=1, num_attention_heads=3, q_lora_rank=12,
    kv_lora_rank=20, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=10, n_routed_experts=8,
    num_experts_per_tok=2, n_group=4, topk_group=2, max_position_embeddings=512,
    rope_scaling=RopeScaling(4.0, 16, mscale=1.0, mscale_all_dim=1.0))
CONFIGS = {
    "yarn": BASE,
    "no query latent": BASE.replace(q_lora_rank=None, rope_scaling=None, num_attention_heads=1),
    # Odd widths: rotary channels then begin at odd offsets.
    "narrow latent": BASE.replace(kv_lora_rank=5, v_head_dim=7, qk_nope_head_dim=9),
    "one head, odd": BASE.replace(kv_lora_rank=9, qk_nope_head_dim=5, num_attention_heads=1),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def lively(config, dtype):
    """Random weights, large enough that every part changes the output; norm gains differ from 1."""
    torch.manual_seed(1)
    model = DeepSeekV3(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model.to(dtype).eval()


def logits(model, tokens, chunks, absorbed):
    """Logits (B, T, V) through one cache; all chunks use the same form, absorbed or expanded."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(MLA, "absorbing_is_cheaper", lambda self, T, S: absorbed)
        cache = model.new_cache(*tokens.shape)
        return torch.cat([model(part, cache) for part in tokens.split(chunks, dim=1)], dim=1)


@every_config
@pytest.mark.parametrize("length", [1, 2, 17, 64, 300])
def test_absorbed_equals_expanded(config, length):
    """Oracle: the expanded form without a cache. Float64; errors relative to the largest logit."""
    model = lively(config, torch.float64)
    tokens = torch.randint(config.vocab_size, (2, length))
    with torch.no_grad():
        expected = model(tokens)
    for chunks in (length, [max(1, length - 1)] + [1] * (length > 1)):
        got = logits(model, tokens, chunks, absorbed=True)
        assert (got - expected).abs().max() <= 1e-12 * expected.abs().max()


@every_config
def test_absorbed_equals_expanded_in_float32(config):
    """Oracle: the expanded form in float32. The error may be 1e-5 of the largest logit."""
    model = lively(config, torch.float32)
    tokens = torch.randint(config.vocab_size, (2, 120))
    got, expected = (logits(model, tokens, [100] + [1] * 20, form) for form in (True, False))
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("chunk", range(1, 18))
def test_chunked_prefill_with_every_chunk_size(chunk):
    """Oracle: the whole prompt at once, without a cache. The model chooses each chunk's form."""
    model = lively(BASE, torch.float64)
    tokens = torch.randint(BASE.vocab_size, (1, 53))
    cache = model.new_cache(1, 53)
    with torch.no_grad():
        got = torch.cat([model(part, cache) for part in tokens.split(chunk, dim=1)], dim=1)
        expected = model(tokens)
    assert (got - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", ["v3-671b", "moonlight-16b", "tiny"])
def test_the_rule_changes_sides_at_the_break_even(name):
    """Oracle: `break_even_queries` of measure.cost: 163.8 queries over 4,096 tokens for V3."""
    config = ModelConfig.preset(name)
    with torch.device("meta"):
        mla = MLA(config)
    for context in (256, 4096, 32768):
        meeting = break_even_queries(config, context)
        assert mla.absorbing_is_cheaper(int(meeting), context)
        assert not mla.absorbing_is_cheaper(int(meeting) + 1, context)
    assert not mla.absorbing_is_cheaper(300, 300)          # training and prefill


def test_decoding_never_expands_the_cache(monkeypatch):
    """Decoding calls neither `expand` nor kv_b_proj; a call of either fails the test."""
    model = lively(BASE, torch.float32)
    cache = model.new_cache(1, 90)
    model(torch.randint(61, (1, 80)), cache)
    monkeypatch.setattr(MLA, "expand", lambda *_: pytest.fail("expanded while decoding"))
    for layer in model.layers:
        layer.self_attn.kv_b_proj.register_forward_hook(lambda *_: pytest.fail("kv_b_proj ran"))
    for _ in range(3):
        model(torch.randint(61, (1, 1)), cache)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_uneven_lengths_equal_each_sequence_alone(dtype, tolerance):
    """Oracle: each sequence alone, without a cache. Padding after short prompts has no effect."""
    model = lively(BASE, dtype)
    lengths, new = [9, 3, 14], 4
    texts = [torch.randint(61, (length + new,)) for length in lengths]
    cache = model.new_cache(3, 30)
    with torch.no_grad():
        prompts = torch.stack([torch.nn.functional.pad(text[:length], (0, 14 - length), value=7)
                               for text, length in zip(texts, lengths)])
        model(prompts, cache, counts=lengths)
        assert cache.lengths == lengths and cache.length == 14
        later = torch.stack([text[length:] for text, length in zip(texts, lengths)])
        got = torch.cat([model(part, cache) for part in later.split([1, 3], dim=1)], dim=1)
        for row, text in enumerate(texts):
            expected = model(text[None])[0, -new:]
            assert (got[row] - expected).abs().max() <= tolerance * expected.abs().max()


def test_training_never_absorbs(monkeypatch):
    """The loss uses the expanded form even for a narrow latent, where absorbing is cheaper."""
    model = lively(CONFIGS["narrow latent"], torch.float32)
    assert model.layers[0].self_attn.absorbing_is_cheaper(9, 9)
    monkeypatch.setattr(MLA, "attend_to_latents", lambda *_: pytest.fail("absorbed in training"))
    model.loss(torch.randint(61, (2, 9))).total.backward()


@pytest.mark.parametrize("counts", [[5, 3], [-1, 3], [3], [3, 3, 3]])
def test_impossible_counts_are_refused(counts):
    """The error names the allowed range, and the cache is unchanged."""
    model = lively(BASE, torch.float32)
    cache = model.new_cache(2, 9)
    with pytest.raises(ValueError, match="give each sequence 0 to 3"):
        model(torch.zeros(2, 3, dtype=torch.long), cache, counts=counts)
    assert cache.lengths == [0, 0]
