"""Small random models for the parity tests: one case for every switch of the architecture.

`both` gives one of our models and the same model in transformers. Ours is saved in the released
format and loaded there, so that names and layouts are compared along with the mathematics.
"""

from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

from minidsv3 import DeepSeekV3, ModelConfig, hf
from minidsv3.config import RopeScaling

LENGTH = 40                      # tokens per sequence: beyond all YaRN windows below but one


class Case(NamedTuple):
    """A configuration, and the range that its router biases are drawn from."""

    config: ModelConfig
    biases: tuple = (-0.5, 0.3)


BASE = ModelConfig(
    vocab_size=97, hidden_size=48, intermediate_size=72, moe_intermediate_size=24,
    num_hidden_layers=3, first_k_dense_replace=1, num_attention_heads=3, q_lora_rank=20,
    kv_lora_rank=28, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=12,
    num_experts_per_tok=3, n_group=4, topk_group=2, num_nextn_predict_layers=0,
    rope_scaling=RopeScaling(8.0, 16, mscale=1.0, mscale_all_dim=1.0),
    max_position_embeddings=128)

# The released models of the family, shrunk: their switches and ratios, other sizes.
V3 = BASE.replace(
    num_hidden_layers=5, first_k_dense_replace=3, n_routed_experts=24, num_experts_per_tok=8,
    n_group=8, topk_group=4, rope_scaling=RopeScaling(40.0, 16, mscale=1.0, mscale_all_dim=1.0),
    max_position_embeddings=640)
MOONLIGHT = BASE.replace(
    q_lora_rank=None, n_routed_experts=16, num_experts_per_tok=6, n_shared_experts=2, n_group=1,
    topk_group=1, routed_scaling_factor=2.446, rms_norm_eps=1e-5, rope_theta=5e4,
    rope_scaling=None)
KIMI_K2 = BASE.replace(
    n_routed_experts=24, num_experts_per_tok=8, n_group=1, topk_group=1,
    routed_scaling_factor=2.827, rope_theta=5e4, qk_rope_head_dim=16,
    rope_scaling=RopeScaling(32.0, 32, 1.0, 1.0, mscale=1.0, mscale_all_dim=1.0),
    max_position_embeddings=1024)

CASES = {
    "V3": Case(V3),
    "Moonlight": Case(MOONLIGHT),
    "Kimi-K2": Case(KIMI_K2),
    "two groups, one kept": Case(BASE.replace(n_group=2, topk_group=1, num_experts_per_tok=4)),
    # Here experts masked with 0 instead of -inf would be chosen every time.
    "kept groups used up, all scores negative": Case(
        BASE.replace(num_experts_per_tok=6), biases=(-2.5, -1.5)),
    "biases outweigh affinities": Case(BASE, biases=(-12.0, 12.0)),
    "gates not normalised": Case(BASE.replace(norm_topk_prob=False, routed_scaling_factor=1.0)),
    "one expert a token": Case(BASE.replace(
        num_experts_per_tok=1, norm_topk_prob=False, routed_scaling_factor=0.7)),
    "no shared expert": Case(BASE.replace(n_shared_experts=0)),
    "three shared experts, no dense block": Case(BASE.replace(
        n_shared_experts=3, first_k_dense_replace=0)),
    "dense blocks only": Case(BASE.replace(first_k_dense_replace=3)),
    "tied, no query latent": Case(BASE.replace(tie_word_embeddings=True, q_lora_rank=None)),
    "sizes that divide by nothing": Case(BASE.replace(
        vocab_size=89, hidden_size=45, intermediate_size=31, moe_intermediate_size=9,
        num_attention_heads=5, q_lora_rank=13, kv_lora_rank=11, qk_nope_head_dim=7,
        qk_rope_head_dim=6, v_head_dim=5, n_routed_experts=15, n_group=5, topk_group=3,
        rms_norm_eps=1e-5)),
    # The temperature can act on cos and sin, on the softmax, or on both.
    "YaRN without mscale": Case(BASE.replace(rope_scaling=RopeScaling(4.0, 16))),
    "YaRN with mscale_all_dim alone": Case(BASE.replace(
        rope_scaling=RopeScaling(4.0, 16, mscale_all_dim=0.707))),
    "YaRN with unequal mscales": Case(BASE.replace(
        rope_scaling=RopeScaling(6.0, 20, 16.0, 2.0, mscale=1.0, mscale_all_dim=0.5))),
    "YaRN with a ramp beyond the last pair": Case(BASE.replace(
        rope_scaling=RopeScaling(4.0, 20_000), max_position_embeddings=80_000)),
    # No channel makes a full turn within 6 tokens, so the ramp has no width.
    "YaRN of a window below one turn": Case(BASE.replace(
        rope_theta=500.0, rope_scaling=RopeScaling(10.0, 6, 8.0, 1.0))),
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def relative(ours, theirs):
    """max|difference| / max|reference| of a tensor."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def randomised(config, dtype, biases=(-0.5, 0.3)):
    """A model of ours with random weights, gains and router biases, none left at its default."""
    torch.manual_seed(0)
    model = DeepSeekV3(config).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale, mean = (0.1, 1.0) if "norm" in name else (0.15, 0.0)
            parameter.normal_(mean, scale)
        for router in model.routers():
            router.e_score_correction_bias.uniform_(*biases)
    return model


def both(case, folder, dtype):
    """One set of random weights in both implementations, and two sequences of tokens."""
    ours = randomised(case.config, dtype, case.biases)
    hf.save(ours, folder)
    theirs = in_transformers(folder, case.config, dtype)
    tokens = torch.randint(case.config.vocab_size, (2, LENGTH))
    return ours, theirs.train(), tokens


def in_transformers(folder, config, dtype):
    """A saved model as transformers loads it."""
    # Its grouped product needs rows of a multiple of 16 bytes, no float64; else its plain loop.
    unaligned = config.hidden_size % 8 or config.moe_intermediate_size % 8
    experts = "eager" if unaligned or dtype == torch.float64 else "grouped_mm"
    # sdpa sums in the same order as ours; the eager path differs by 5e-7 in float32.
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", experts_implementation=experts)
