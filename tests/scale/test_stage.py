"""A model cut into stages: in a row they are the model, and each rank knows what it shares."""

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.scale.stage import Stage, holders


def make_model(tied=False):
    torch.manual_seed(5)
    return DeepSeekV3(ModelConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=5, intermediate_size=20,
        max_position_embeddings=32, tie_word_embeddings=tied, num_attention_heads=2,
        q_lora_rank=None, kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=8,
        n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        moe_intermediate_size=8, first_k_dense_replace=1, rope_scaling=None)).double()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_stages_in_a_row_are_the_model(count):
    """Oracle: `model.loss`: the sums of all terms, and the loads of all routers, exactly once."""
    model, tokens = make_model(), torch.arange(18).view(2, 9) * 7 % 50
    expected, loads = model.loss(tokens, 0.2, 0.3), model.router_loads()
    model.update_router_bias(0)
    stages = [Stage(model, index, count) for index in range(count)]
    x, sums = stages[0].embed(tokens), torch.zeros(4, dtype=torch.float64)
    for stage in stages:
        x, terms = stage(x, tokens, 0.2, 0.3)
        sums += torch.stack([*terms]).detach()
    torch.testing.assert_close(sums, torch.stack([*expected]).detach(), rtol=0, atol=1e-13)
    assert torch.equal(model.router_loads(), loads) and loads.sum() > 0
    assert [len(stage.layers) for stage in stages] == sorted(
        (len(stage.layers) for stage in stages), reverse=True)


def test_every_parameter_has_its_holders():
    """Oracle: the layouts by hand; only what two ranks hold needs a sum."""
    model = make_model()
    found = holders(model, "1f1b", 4)                      # blocks 0 1 | 2 | 3 | 4 and MTP
    assert found["embed_tokens.weight"] == [0, 3] and found["lm_head.weight"] == [3]
    assert found["layers.1.mlp.gate.weight"] == [0] and found["mtp.0.eh_proj.weight"] == [3]
    assert holders(make_model(tied=True), "1f1b", 4)["embed_tokens.weight"] == [0, 3]
    found = holders(model, "dualpipe", 4)                  # stages 0 and 3 on ranks 0 and 3
    assert found["layers.0.mlp.up_proj.weight"] == found["lm_head.weight"] == [0, 3]
    assert found["layers.2.mlp.gate.weight"] == [1, 2]
    found = holders(model, "dualpipev", 2)
    assert found["embed_tokens.weight"] == found["lm_head.weight"] == [0]
    assert found["layers.2.mlp.gate.weight"] == [1]
