"""The whole network: made on the meta device and filled later; router loads read and replaced."""

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.model.layers import RMSNorm

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=24, num_hidden_layers=3, intermediate_size=40,
    num_attention_heads=3, q_lora_rank=12, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=6,
    v_head_dim=10, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=16,
    first_k_dense_replace=1, n_group=2, topk_group=1, rope_scaling=None, max_position_embeddings=64)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"q_lora_rank": None}])
def test_a_model_filled_after_meta_is_one_made_directly(changes):
    """Oracle: a model made directly from the same seed; parameters and buffers, bit for bit."""
    config = CONFIG.replace(**changes)
    torch.manual_seed(3)
    direct = DeepSeekV3(config)
    with torch.device("meta"):
        filled = DeepSeekV3(config)
    filled.to_empty(device="cpu")
    for tensor in [*filled.parameters(), *filled.buffers()]:           # as memory may be
        tensor.data.fill_(torch.nan if tensor.is_floating_point() else 7)
    torch.manual_seed(3)
    filled.initialize()
    ours = [*filled.named_parameters(), *filled.named_buffers()]
    theirs = [*direct.named_parameters(), *direct.named_buffers()]
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True))
    assert (filled.lm_head.weight is filled.embed_tokens.weight) == config.tie_word_embeddings


def test_a_new_model_has_the_distributions_that_are_promised():
    """Oracle: mean and standard deviation over all matrices; gains are 1, biases and loads 0."""
    torch.manual_seed(0)
    model = DeepSeekV3(CONFIG)
    for module in model.modules():
        if isinstance(module, RMSNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
    drawn = torch.cat([p.detach().flatten() for p in model.parameters() if p.dim() > 1])
    assert drawn.std().item() == pytest.approx(CONFIG.initializer_range, rel=0.02)
    assert abs(drawn.mean().item()) < 0.02 * CONFIG.initializer_range
    assert not any(buffer.any() for buffer in model.buffers())


def test_loads_go_out_and_reduced_ones_come_in():
    """Oracle: the sign of mean minus load, by hand, from loads that are not the model's own."""
    torch.manual_seed(0)
    model = DeepSeekV3(CONFIG)
    model.loss(torch.randint(61, (2, 10)))
    own = model.router_loads()
    assert own.sum(dim=1).tolist() == [2 * 9 * 3, 2 * 9 * 3, 2 * 8 * 3]
    other = torch.tensor([[9, 1, 1, 1, 1, 1, 1, 1]] * 3)
    assert torch.equal(model.update_router_bias(0.5, other), other)
    for router in model.routers():
        assert router.e_score_correction_bias.tolist() == [-0.5] + [0.5] * 7
    assert not model.router_loads().any()                              # counting starts again


@pytest.mark.parametrize("wrong", [
    torch.ones(2, 8).long(), torch.ones(4, 8).long(), torch.ones(3, 1).long(), torch.ones(3, 8)])
def test_loads_of_another_form_are_refused_and_move_nothing(wrong):
    """Oracle: the biases before; the error names both shapes."""
    torch.manual_seed(0)
    model = DeepSeekV3(CONFIG)
    with pytest.raises(ValueError, match=r"the model's are \(3, 8\) torch.int64"):
        model.update_router_bias(0.5, wrong)
    assert not any(router.e_score_correction_bias.any() for router in model.routers())
