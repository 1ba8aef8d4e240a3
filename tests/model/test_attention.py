"""MLA against the sums of the report's equations, and with a cache against without one."""

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.config import RopeScaling
from minidsv3.model.mla import MLA, attend
from minidsv3.model.rope import rope_frequencies, rope_table, softmax_scale

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=32, intermediate_size=40, moe_intermediate_size=16,
    num_hidden_layers=3, first_k_dense_replace=1, num_attention_heads=3, q_lora_rank=12,
    kv_lora_rank=20, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=10, n_routed_experts=8,
    num_experts_per_tok=2, n_group=4, topk_group=2, max_position_embeddings=64,
    rope_scaling=RopeScaling(4.0, 16, mscale=1.0, mscale_all_dim=1.0))


def lively(module):
    """Random weights, large enough that every part changes the output; norm gains differ from 1."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return module


def rotate(x, position, config):
    """Rotate one vector (Dr,) pair by pair, as complex numbers (eq. 3 and 8)."""
    angle = position * rope_frequencies(config).double()
    pairs = torch.complex(x[0::2], x[1::2]) * torch.polar(torch.ones_like(angle), angle)
    return torch.stack([pairs.real, pairs.imag], dim=-1).flatten()


def rms(x, gain):
    return gain * x / (x.square().mean() + 1e-6).sqrt()


def attention_by_sums(mla, config, h):
    """eq. 1-11 for one sequence h (T, C), one head and one pair of positions at a time."""
    W = {name: p.detach() for name, p in mla.named_parameters()}
    nope, rank = config.qk_nope_head_dim, config.kv_lora_rank
    down = [W["kv_a_proj_with_mqa.weight"] @ x for x in h]
    c_kv = [rms(x[:rank], W["kv_a_layernorm.weight"]) for x in down]
    k_rope = [rotate(x[rank:], t, config) for t, x in enumerate(down)]
    c_q = [rms(W["q_a_proj.weight"] @ x, W["q_a_layernorm.weight"]) for x in h]
    heads_q = W["q_b_proj.weight"].unflatten(0, (config.num_attention_heads, -1))
    heads_kv = W["kv_b_proj.weight"].unflatten(0, (config.num_attention_heads, -1))
    rows = []
    for t in range(len(h)):
        outputs = []
        for W_q, W_kv in zip(heads_q, heads_kv):
            q = W_q @ c_q[t]
            q = torch.cat([q[:nope], rotate(q[nope:], t, config)])
            keys = [torch.cat([W_kv[:nope] @ c_kv[j], k_rope[j]]) for j in range(t + 1)]
            weights = torch.stack([softmax_scale(config) * (q @ k) for k in keys]).softmax(0)
            outputs.append(sum(p * (W_kv[nope:] @ c_kv[j]) for j, p in enumerate(weights)))
        rows.append(W["o_proj.weight"] @ torch.cat(outputs))
    return torch.stack(rows)


def test_mla_equals_the_sums_of_the_report():
    """Oracle: eq. 1-11 as Python loops in float64. 1e-7: the rotary tables are float32."""
    mla = lively(MLA(CONFIG)).double()
    x = torch.randn(2, 7, CONFIG.hidden_size, dtype=torch.float64)
    got = mla(x, rope_table(CONFIG, torch.arange(7)))
    for b in range(2):
        expected = attention_by_sums(mla, CONFIG, x[b])
        torch.testing.assert_close(got[b], expected, rtol=1e-6, atol=3e-7)


def test_hand_worked_attention():
    """Oracle: the output for two positions and one head, computed by hand in five steps."""
    q = torch.tensor([1, -.5, .3, .2]).view(1, 1, 1, 4)
    k = torch.tensor([[1.5, -2.5, .1, -.4], [.75, -.5, .6, .2]]).view(1, 1, 2, 4)
    W_UV = torch.tensor([[.5, 1, 0], [0, -1, 1]])
    v = (torch.tensor([[.5, -1, 2], [1, .25, -.5]]) @ W_UV.T).view(1, 1, 2, 2)
    got = attend(q, k, v, scale=0.5)[0, 0, 0]
    torch.testing.assert_close(got, torch.tensor([-.26549378, 1.78873446]), rtol=0, atol=1e-6)


def test_bfloat16_attention_is_float32_attention_rounded():
    """Oracle: torch's kernel in float32; 2e-2 allows for bfloat16's 8 bits in four products."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, d) for d in (8, 8, 6))
    q = q[:, :, 4:]                                  # five queries after four cached positions
    expected = attend(q, k, v, 0.3)
    got = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), 0.3).float()
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("config", [CONFIG, CONFIG.replace(q_lora_rank=None, rope_scaling=None)],
                         ids=["yarn", "no query latent"])
@pytest.mark.parametrize("chunks", [[17], [1] * 17, [5, 1, 7, 3, 1], [1, 16], [16, 1]], ids=str)
def test_cached_equals_uncached_in_irregular_chunks(config, chunks):
    """Oracle: the same model over the whole sequence at once, float64."""
    model = lively(DeepSeekV3(config)).double().eval()
    tokens = torch.randint(config.vocab_size, (2, 17))
    cache = model.new_cache(2, 17)
    parts = [model(part, cache) for part in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=0, atol=1e-12)
    assert cache.length == 17


def test_cache_holds_latents_only_and_knows_its_bytes():
    """Oracle: Rkv + Dr numbers per token and layer; 70,272 bytes per token for V3 in bfloat16."""
    model = DeepSeekV3(CONFIG)
    assert model.new_cache(2, 5).nbytes == 3 * 2 * 5 * (20 + 4) * 4
    v3 = ModelConfig.preset("v3-671b")
    assert (v3.kv_lora_rank + v3.qk_rope_head_dim) * v3.num_hidden_layers * 2 == 70272


def test_full_cache_says_so():
    """The error names the length of the cache and the length that is needed."""
    model = DeepSeekV3(CONFIG)
    cache = model.new_cache(1, 4)
    model(torch.zeros(1, 3, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="max_len=4 tokens but 5 are needed"):
        model(torch.zeros(1, 2, dtype=torch.long), cache)


def test_rope_tables_stay_float32_and_exact_in_every_model_dtype():
    """Oracle: float64 angles. In bfloat16, positions beyond 256 would be wrong by whole tokens."""
    table = rope_table(CONFIG.replace(rope_scaling=None), torch.tensor([4095]))
    angle = 4095 * 1e4 ** (-torch.arange(0, 4, 2).double() / 4)
    assert table.dtype == torch.complex64
    expected = torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(table[0].to(torch.complex128), expected, rtol=0, atol=1e-4)
