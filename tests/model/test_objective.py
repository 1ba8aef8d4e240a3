"""The loss in parts: two pipeline stages together give the loss of the whole model."""

import torch

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.model import objective
from minidsv3.model.rope import rope_table

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=24, num_hidden_layers=4, intermediate_size=40,
    num_attention_heads=3, q_lora_rank=12, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=6,
    v_head_dim=10, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=16,
    first_k_dense_replace=1, n_group=2, topk_group=1, num_nextn_predict_layers=2,
    rope_scaling=None, max_position_embeddings=64, initializer_range=0.2)
WEIGHTS = {"mtp_weight": 0.3, "balance_weight": 0.05}


def first_stage(model, tokens):
    """Embedding and the first two blocks, one of them sparse -> states, balance losses."""
    inputs = tokens[:, :-1]
    rope = rope_table(model.config, torch.arange(inputs.size(1)))
    x, routings = model.through(model.layers[:2], model.embed(inputs), rope)
    return x, objective.balance_losses(routings)


def last_stage(model, x, balance, tokens):
    """The other blocks, the MTP modules and the head -> LossTerms."""
    inputs, targets, head = tokens[:, :-1], tokens[:, 1:], model.lm_head.weight
    rope = rope_table(model.config, torch.arange(inputs.size(1)))
    x, routings = model.through(model.layers[2:], x, rope)
    hidden = model.norm(x)
    next_token = objective.next_token_loss(hidden, head, targets)
    states, mtp_routings = model.mtp_states(hidden, inputs)
    return objective.combine(next_token, objective.mtp_losses(states, head, targets),
                             balance + objective.balance_losses(routings + mtp_routings), **WEIGHTS)


def test_two_stages_of_a_pipeline_give_each_term_of_the_whole_model():
    """Oracle: DeepSeekV3.loss, every term and every gradient bit for bit."""
    torch.manual_seed(0)
    model, tokens = DeepSeekV3(CONFIG), torch.randint(61, (3, 12))
    whole = model.loss(tokens, **WEIGHTS)
    whole.total.backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    staged = last_stage(model, *first_stage(model, tokens), tokens)
    assert all(torch.equal(a, b) for a, b in zip(staged, whole, strict=True))
    assert len({term.item() for term in whole}) == 4               # the four terms differ
    staged.total.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_no_term_is_lost_and_weights_act_on_their_own():
    """Oracle: the weighted sum of four numbers, by hand."""
    one, two, three, five = (torch.tensor(float(x)) for x in (1, 2, 3, 5))
    terms = objective.combine(one, [two, three], [three, five], 0.5, 0.25)
    assert [float(term) for term in terms] == [1 + 0.5 * 2.5 + 0.25 * 8, 1, 2.5, 8]
    assert [float(term) for term in objective.combine(one, [], [], 0.5, 0.25)] == [1, 1, 0, 0]
