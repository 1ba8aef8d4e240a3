"""Which tokens each MTP depth sees, and which token is its target (eq. 21-25)."""

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig

CONFIG = ModelConfig(
    vocab_size=31, hidden_size=24, intermediate_size=32, moe_intermediate_size=8,
    num_hidden_layers=2, first_k_dense_replace=1, num_attention_heads=2, q_lora_rank=12,
    kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=8,
    num_experts_per_tok=2, n_group=4, topk_group=2, num_nextn_predict_layers=2, rope_scaling=None,
    max_position_embeddings=64)


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = DeepSeekV3(CONFIG).double().eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return made


def all_logits(model, tokens):
    """Main logits, then those of each MTP depth: (B, T, V), (B, T-1, V), (B, T-2, V)."""
    hidden, _ = model.hidden_states(tokens)
    states, _ = model.mtp_states(hidden, tokens)
    return [model.lm_head(state) for state in (hidden, *states)]


def test_each_depth_sees_exactly_its_tokens(model):
    """Oracle: change one token at a time. Depth k at index i must react to tokens 0 .. i+k and to
    no other. A model that saw its target i+k+1, or ignored its newest token, would fail.
    """
    T = 9
    tokens = torch.randint(31, (1, T))
    before = all_logits(model, tokens)
    for t in range(T):
        changed = tokens.clone()
        changed[0, t] = (changed[0, t] + 7) % 31
        for k, (old, new) in enumerate(zip(before, all_logits(model, changed))):
            moved = (old - new).abs().amax(dim=-1)[0] > 1e-9           # (T-k,)
            assert moved.tolist() == [i + k >= t for i in range(T - k)], (k, t)


def test_targets_of_eq_24_on_four_tokens(model):
    """T = 4: main h0..h3 -> x1..x4; depth 1 (h0, x1) -> x2, (h1, x2) -> x3, (h2, x3) -> x4;
    depth 2 (h'0, x2) -> x3, (h'1, x3) -> x4. Each sum is divided by 4 = T.
    """
    x = torch.tensor([[3, 14, 15, 9, 26]])
    main, first, second = (logits[0].log_softmax(-1) for logits in all_logits(model, x[:, :4]))
    next_token = -(main[0, 14] + main[1, 15] + main[2, 9] + main[3, 26]) / 4
    depth_1 = -(first[0, 15] + first[1, 9] + first[2, 26]) / 4
    depth_2 = -(second[0, 9] + second[1, 26]) / 4
    terms = model.loss(x, mtp_weight=0.3, balance_weight=0.01)
    torch.testing.assert_close(terms.next_token, next_token)
    torch.testing.assert_close(terms.mtp, (depth_1 + depth_2) / 2)
    torch.testing.assert_close(
        terms.total, next_token + 0.3 * (depth_1 + depth_2) / 2 + 0.01 * terms.balance)


def test_dropping_the_modules_changes_no_main_logit(model):
    """Oracle: the logits with the modules, bit for bit. Without them the MTP loss is 0."""
    tokens = torch.randint(31, (2, 9))
    before = model(tokens)
    model.mtp = torch.nn.ModuleList()
    assert torch.equal(model(tokens), before)
    terms = model.loss(tokens)
    assert terms.mtp == 0


def test_without_weight_the_modules_rest(model):
    """Oracle: the terms of a model without modules; no gradient, no load, no step of the bias."""
    model.requires_grad_(True).train()
    tokens, routers = torch.randint(31, (2, 9)), model.routers()
    terms = model.loss(tokens, mtp_weight=0.0, balance_weight=0.01)
    terms.total.backward()
    assert all(parameter.grad is None for parameter in model.mtp.parameters())
    main, modules = len(routers) - len(model.mtp), model.mtp
    model.mtp = torch.nn.ModuleList()
    expected = model.eval().loss(tokens, balance_weight=0.01)
    assert [term.item() for term in terms] == [term.item() for term in expected]
    model.mtp = modules
    loads = model.update_router_bias(0.01)
    assert loads[:main].any(dim=1).all() and not loads[main:].any()
    assert not any(router.e_score_correction_bias.any() for router in routers[main:])


def test_embedding_and_head_are_shared_physically(model):
    """The MTP loss alone has gradients in the embedding and the head; the modules own neither."""
    model.requires_grad_(True)
    model.loss(torch.randint(31, (2, 9))).mtp.backward()
    assert model.lm_head.weight.grad.abs().max() > 0
    assert model.embed_tokens.weight.grad.abs().max() > 0
    assert not any(p.shape == (31, 24) for p in model.mtp.parameters())


def test_a_window_too_short_for_a_depth_has_no_loss_there(model):
    """Oracle: by hand. With two tokens, depth 1 has one term and depth 2 has none."""
    x = torch.tensor([[3, 14, 15]])
    _, first, _ = all_logits(model, x[:, :2])
    expected = -first[0, 0].log_softmax(-1)[15] / 2 / 2
    torch.testing.assert_close(model.loss(x).mtp, expected)
