"""Experts against a plain loop, routing with unusual biases, and loads that count once."""

import pytest
import torch
import torch.nn.functional as F

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.device import groups_products
from minidsv3.kernels.grouped import assign_slots
from minidsv3.measure.evaluate import max_violation
from minidsv3.model import experts as experts_module
from minidsv3.model.experts import Experts
from minidsv3.model.moe import MoE, Router, Routing, hits
from minidsv3.model.objective import sequence_balance

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=32, intermediate_size=48, moe_intermediate_size=16,
    num_hidden_layers=3, first_k_dense_replace=1, num_attention_heads=2, q_lora_rank=12,
    kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=8,
    num_experts_per_tok=3, n_group=4, topk_group=2, rope_scaling=None, max_position_embeddings=64)


def loop_over_experts(layer, x, weights, routing):
    """The routed sum of eq. 12, one token and one expert at a time."""
    rows = []
    for token, gates, chosen in zip(x, weights, routing.experts):
        y = torch.zeros_like(token)
        for g, e in zip(gates, chosen):
            gate, up = (layer.gate_up_proj[e] @ token).chunk(2)
            y = y + g * (layer.down_proj[e] @ (F.silu(gate) * up))
        rows.append(y)
    return torch.stack(rows)


def routings(N, E, K):
    """{name: experts (N, K)}: three ways to route N tokens."""
    everywhere = torch.rand(N, E).topk(K, dim=1).indices
    return {"mixed": everywhere,
            "two experts idle": torch.rand(N, E - 2).topk(K, dim=1).indices + 1,
            "all on the same": torch.tensor([5, 0, 2]).expand(N, K).contiguous()}


@pytest.fixture
def layer():
    torch.manual_seed(0)
    made = Experts(CONFIG)
    with torch.no_grad():
        made.gate_up_proj.normal_(std=0.2)
        made.down_proj.normal_(std=0.2)
    return made


def outputs_and_gradients(function, layer, x, weights, experts):
    leaves = [x.clone().requires_grad_(), weights.clone().requires_grad_(), *layer.parameters()]
    y = function(leaves[0], leaves[1], Routing(torch.zeros(len(x), 8), experts))
    probe = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((y * probe).sum(), leaves)]


@pytest.mark.parametrize("kind, tokens", [
    ("mixed", 37), ("two experts idle", 37), ("all on the same", 37), ("mixed", 1), ("mixed", 3),
    ("all on the same", 2), ("mixed", 5)])         # up to three tokens take a path of their own
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)],
                         ids=["grouped", "sorted"])
def test_experts_equal_a_loop(layer, kind, tokens, dtype, tolerance):
    """Oracle: the loop in float64, outputs and all gradients; max|difference| / max|oracle|."""
    x, weights = torch.randn(tokens, 32), torch.rand(tokens, 3)
    experts = routings(37, 8, 3)[kind][:tokens]
    assert groups_products(layer.gate_up_proj.to(dtype)) == (dtype == torch.float32)
    got = outputs_and_gradients(layer.to(dtype), layer, x.to(dtype), weights.to(dtype), experts)
    layer.double()
    expected = outputs_and_gradients(
        lambda *a: loop_over_experts(layer, *a), layer, x.double(), weights.double(), experts)
    for ours, oracle in zip(got, expected):
        assert (ours.double() - oracle).abs().max() <= tolerance * oracle.abs().max()


def test_spare_rows_change_nothing(layer, monkeypatch):
    """Oracle: the same experts without padding rows, in float64."""
    x, weights = torch.randn(37, 32).double(), torch.rand(37, 3).double()
    experts = routings(37, 8, 3)["two experts idle"]
    layer.double()
    expected = outputs_and_gradients(layer, layer, x, weights, experts)
    monkeypatch.setattr(experts_module, "row_multiple", lambda x: 16)
    got = outputs_and_gradients(layer, layer, x, weights, experts)
    for ours, oracle in zip(got, expected):
        torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-12)


def test_experts_without_bags_equal_a_loop(layer, monkeypatch):
    """Oracle: the loop in float64, for the form of devices that cannot weigh rows in one call."""
    x, weights = torch.randn(37, 32).double(), torch.rand(37, 3).double()
    experts = routings(37, 8, 3)["two experts idle"]
    layer.double()
    expected = outputs_and_gradients(
        lambda *a: loop_over_experts(layer, *a), layer, x, weights, experts)
    monkeypatch.setattr(experts_module, "has_bags", lambda rows: False)
    got = outputs_and_gradients(layer, layer, x, weights, experts)
    for ours, oracle in zip(got, expected):
        torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-12)


def test_slots_by_hand():
    """Experts 1 0 1, multiple 2: expert 0 has rows 0-1 (one is padding), expert 1 has rows 2-3."""
    experts = torch.tensor([1, 0, 1])
    slots, counts = assign_slots(experts, hits(experts, 2), multiple=2)
    assert (slots.tolist(), counts.tolist()) == ([2, 0, 3], [2, 2])
    experts = torch.tensor([2, 0, 2, 0, 0])
    assert hits(experts, 4).tolist() == [3, 0, 2, 0]
    slots, counts = assign_slots(experts, hits(experts, 4))
    assert (slots.tolist(), counts.tolist()) == ([3, 0, 4, 1, 2], [3, 0, 2, 0])


def choose_by_sorting(affinity, bias, config):
    """The release's selection rule for one token, in plain Python."""
    score = [s + b for s, b in zip(affinity, bias)]
    size = len(score) // config.n_group
    groups = [range(g * size, (g + 1) * size) for g in range(config.n_group)]
    groups.sort(key=lambda g: -sum(sorted((score[e] for e in g), reverse=True)[:2]))
    allowed = [e for g in groups[:config.topk_group] for e in g]
    return set(sorted(allowed, key=lambda e: -score[e])[:config.num_experts_per_tok])


@pytest.mark.parametrize("spread", [0.0, 0.1, 12.0])
def test_router_equals_sorting_and_gates_ignore_the_bias(spread):
    """Oracle: sorting in plain Python; biases of 0, about 0.1 and about 12, of both signs."""
    torch.manual_seed(3)
    router = Router(CONFIG).requires_grad_(False)
    router.weight.normal_(std=0.3)
    router.e_score_correction_bias.uniform_(-spread, spread)
    x = torch.randn(50, 32)
    weights, routing = router(x)
    for n in range(50):
        s, chosen = routing.affinity[n].tolist(), routing.experts[n].tolist()
        assert set(chosen) == choose_by_sorting(s, router.e_score_correction_bias.tolist(), CONFIG)
        total = sum(s[e] for e in chosen)
        expected = torch.tensor([2.5 * s[e] / total for e in chosen])
        torch.testing.assert_close(weights[n], expected)


def test_tiny_affinities_keep_their_ratios():
    """Oracle: float64. Adding a bias of 12 and subtracting it would lose affinities of 1e-8."""
    router = Router(CONFIG.replace(hidden_size=8)).requires_grad_(False)
    router.weight.copy_(torch.eye(8))
    router.e_score_correction_bias.fill_(12.0)
    logits = torch.tensor([[-18.0, -18.7, -30, -30, -17.0, -31, -30, -30]])
    weights, routing = router(logits)
    expected = logits.double().sigmoid().gather(-1, routing.experts)
    expected = 2.5 * expected / expected.sum()
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=0)
    router.e_score_correction_bias.fill_(0.0)
    assert router(torch.full((1, 8), -200.0))[0].isfinite().all()  # every affinity underflows


def test_no_gradient_through_the_choice():
    """The bias gets no gradient, and an expert that is not chosen gets none from the gates."""
    torch.manual_seed(0)
    router = Router(CONFIG)
    torch.nn.init.normal_(router.weight, std=0.3)
    weights, routing = router(torch.randn(1, 32))
    weights[0, 0].backward()
    idle = set(range(8)) - set(routing.experts[0].tolist())
    assert not router.e_score_correction_bias.requires_grad
    assert all(router.weight.grad[e].abs().max() == 0 for e in idle)
    assert router.weight.grad[routing.experts[0, 0]].abs().max() > 0


def test_bias_stays_float32_when_the_model_is_cast():
    """In bfloat16, numbers near 0.5 are 0.0039 apart, so updates of 0.001 would be lost."""
    model = DeepSeekV3(CONFIG)
    for router in model.routers():
        router.e_score_correction_bias.fill_(0.5123)
    for cast in (model.bfloat16(), model.to(torch.float16), model.double()):
        for router in cast.routers():
            assert router.e_score_correction_bias.dtype == torch.float32
            assert router.e_score_correction_bias[0].item() == pytest.approx(0.5123, abs=1e-7)
    assert model.bfloat16()(torch.zeros(1, 3, dtype=torch.long)).dtype == torch.bfloat16


def test_affinities_are_float32_in_a_bfloat16_model_and_float64_in_a_float64_one():
    """Oracle: the dtypes. Affinities in bfloat16 could be rounded to another choice of experts."""
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        layer = MoE(CONFIG).to(dtype)
        _, routing = layer(torch.zeros(1, 2, 32, dtype=dtype))
        assert routing.affinity.dtype == expected


def test_balance_gradient_equals_finite_differences():
    """Oracle: central differences in float64 of eq. 17 with f held fixed."""
    torch.manual_seed(0)
    s = torch.rand(2, 5, 6, dtype=torch.float64, requires_grad=True)
    chosen = s.detach().topk(2, dim=-1).indices
    assert torch.autograd.gradcheck(lambda s: sequence_balance(s, chosen), (s,))


def test_balance_is_per_sequence():
    """Two sequences use one expert each: the batch as a whole is balanced, each sequence is not."""
    s = torch.full((2, 4, 2), 0.01)
    s[0, :, 0] = s[1, :, 1] = 0.99
    got = sequence_balance(s, s.topk(1, dim=-1).indices)
    torch.testing.assert_close(got, torch.tensor([1.98, 1.98]))


def loads_after(model, parts, recompute):
    model.recompute = recompute
    for part in parts:
        model.loss(part).total.backward()
    return torch.stack([router.load.clone() for router in model.routers()])


def test_loads_count_each_token_once():
    """Recomputation and evaluation count nothing; micro-batches count as the whole batch does."""
    torch.manual_seed(0)
    model, tokens = DeepSeekV3(CONFIG), torch.randint(61, (4, 10))
    once = loads_after(model, [tokens], recompute=False)
    assert once.sum(dim=1).tolist() == [4 * 9 * 3] * 2 + [4 * 8 * 3]  # MTP has one position fewer
    assert torch.equal(model.update_router_bias(0.0), once)
    assert torch.equal(loads_after(model, [tokens], recompute=True), once)
    model.update_router_bias(0.0)
    assert torch.equal(loads_after(model, tokens.split(1), recompute=False), once)
    model.eval().loss(tokens)
    assert torch.equal(torch.stack([router.load for router in model.routers()]), once)


def test_recomputation_changes_no_gradient():
    """Oracle: the same step without recomputation, bit for bit, since the kernels are the same."""
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model, tokens = DeepSeekV3(CONFIG), torch.randint(61, (2, 10))
        loads_after(model, [tokens], recompute)
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_max_violation_of_an_idle_router_is_finite():
    """Oracle: by hand, -1 for loads of zero and 0 for equal loads."""
    assert max_violation(torch.zeros(2, 8)).tolist() == [-1, -1]
    assert max_violation(torch.ones(8)).item() == 0
