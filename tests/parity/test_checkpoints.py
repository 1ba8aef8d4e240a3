"""Checkpoints written by transformers and read here, and models in bfloat16.

(In all other parity tests transformers reads a checkpoint of ours.)
"""

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from minidsv3 import hf
from tests.parity.models import CASES, LENGTH, in_transformers, randomised, relative

# In the terms of transformers, so that our reading of its config.json is tested, too.
SIZES = dict(
    vocab_size=97, hidden_size=48, intermediate_size=72, moe_intermediate_size=24,
    num_hidden_layers=3, first_k_dense_replace=1, num_attention_heads=3, num_key_value_heads=3,
    q_lora_rank=20, kv_lora_rank=28, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=16,
    n_routed_experts=16, num_experts_per_tok=6, bos_token_id=0, eos_token_id=1)
YARN = dict(type="yarn", factor=40, original_max_position_embeddings=16, beta_fast=32, beta_slow=1,
            mscale=1.0, mscale_all_dim=1.0)
THEIRS = {
    "V3": dict(n_group=8, topk_group=4, rope_scaling=YARN, rope_theta=10000.0,
               max_position_embeddings=640),
    "Moonlight": dict(
        q_lora_rank=None, n_shared_experts=2, n_group=1, topk_group=1, rms_norm_eps=1e-5,
        routed_scaling_factor=2.446, max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0}),
    "Kimi-K2": dict(
        n_group=1, topk_group=1, routed_scaling_factor=2.827, max_position_embeddings=1024,
        qk_rope_head_dim=16, rope_parameters={
            "rope_type": "yarn", "rope_theta": 50000.0, "factor": 32.0, "beta_fast": 1.0,
            "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 32}),
    "tied, gates not normalised, YaRN without mscale": dict(
        n_group=4, topk_group=2, tie_word_embeddings=True, norm_topk_prob=False,
        max_position_embeddings=64, rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
            "original_max_position_embeddings": 16}),
}


@torch.no_grad()
def made_by_transformers(changes):
    """A random model made and saved by transformers alone, router biases included."""
    torch.manual_seed(1)
    config = DeepseekV3Config(**SIZES | changes, attn_implementation="sdpa")
    model = DeepseekV3ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        scale, mean = (0.1, 1.0) if "norm" in name else (0.15, 0.0)
        parameter.normal_(mean, scale)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.uniform_(-0.5, 0.3)
    return model, torch.randint(SIZES["vocab_size"], (2, LENGTH))


@pytest.mark.parametrize("shards", ["one file", "shards"])
@pytest.mark.parametrize("changes", THEIRS.values(), ids=THEIRS)
@torch.no_grad()
def test_a_model_made_and_saved_by_transformers_loads(changes, shards, tmp_path, capsys):
    """Oracle: the logits that transformers gave before it saved the model.

    Its configuration names an MTP layer, which it never saves: this is a warning, not an error.
    """
    theirs, tokens = made_by_transformers(changes)
    theirs.save_pretrained(tmp_path, max_shard_size="5GB" if shards == "one file" else "50KB")
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) == 1) == (shards == "one file")
    ours = hf.load(tmp_path)
    assert relative(ours(tokens), theirs(tokens).logits) <= 1e-5
    assert len(ours.mtp) == 0 and "no MTP layer" in capsys.readouterr().err


@torch.no_grad()
def in_bfloat16(case, folder):
    """Logits of a bfloat16 model: ours, theirs, and those of the same weights in float32."""
    ours = randomised(case.config, torch.float32, case.biases).bfloat16()
    hf.save(ours, folder)
    theirs = in_transformers(folder, case.config, torch.bfloat16)
    exact = in_transformers(folder, case.config, torch.float32)
    tokens = torch.randint(case.config.vocab_size, (2, LENGTH))
    return ours(tokens).float(), theirs(tokens).logits.float(), exact(tokens).logits


@pytest.mark.parametrize("name", ["dense blocks only", "biases outweigh affinities"])
def test_bfloat16_logits_are_as_exact_as_those_of_transformers(name, tmp_path):
    """Oracle: transformers on the same weights, in bfloat16 and in float32.

    In these two models rounding cannot change the choice of experts, so all differences are
    rounding errors: half a unit of bfloat16 is 0.2 %, and about twenty of them add up.
    Measured: 1.5 to 4 % of the largest logit between any two of the three.
    """
    ours, theirs, exact = in_bfloat16(CASES[name], tmp_path)
    assert relative(ours, theirs) <= 0.06
    # Our rounding error is about as large: 0.84 to 1.0 of theirs, measured over three seeds.
    assert (ours - exact).norm() <= 1.15 * (theirs - exact).norm()


@pytest.mark.parametrize("name", ["V3", "Moonlight", "Kimi-K2"])
def test_bfloat16_logits_of_the_family_agree_where_experts_do(name, tmp_path):
    """Oracle: transformers in bfloat16.

    In bfloat16, rounding can decide a near tie of affinities either way, and then a token goes to
    another expert. The median ignores these few tokens. Measured: 1.6 to 2.8 %.
    """
    ours, theirs, _ = in_bfloat16(CASES[name], tmp_path)
    assert (ours - theirs).abs().median() <= 0.04 * theirs.abs().median()


def test_bfloat16_weights_and_float32_biases_arrive_bit_for_bit(tmp_path):
    """Oracle: the tensors drawn in float32, by name; all but the biases are cast to bfloat16."""
    drawn = randomised(CASES["V3"].config, torch.float32)
    expected = {name: tensor.clone() if "e_score" in name else tensor.bfloat16()
                for name, tensor in drawn.state_dict().items()}
    hf.save(drawn.bfloat16(), tmp_path)
    arrived = in_transformers(tmp_path, drawn.config, torch.bfloat16).state_dict()
    for name, tensor in expected.items():
        got = arrived.pop(name if name == "lm_head.weight" else f"model.{name}")
        assert got.dtype == tensor.dtype and torch.equal(got, tensor), name
    assert not arrived


@torch.no_grad()
@pytest.mark.parametrize("name", ["V3", "Moonlight", "Kimi-K2"])
def test_bfloat16_models_route_in_float32(name, tmp_path):
    """Oracle: transformers' router, given the same bfloat16 activations.

    Compared are the weights of all experts, 0 if not chosen. A router in bfloat16 would be wrong
    by 1e-3.
    """
    case = CASES[name]
    ours = randomised(case.config, torch.float32, case.biases).bfloat16()
    hf.save(ours, tmp_path)
    theirs = in_transformers(tmp_path, case.config, torch.bfloat16)
    x = torch.randn(100, case.config.hidden_size).bfloat16()
    weights, routing = ours.layers[-1].mlp.gate(x)
    _, their_weights, their_experts = theirs.model.layers[-1].mlp.gate(x)
    gates = torch.zeros(100, case.config.n_routed_experts)
    assert relative(gates.scatter(1, routing.experts, weights),
                    gates.scatter(1, their_experts, their_weights)) <= 1e-6
