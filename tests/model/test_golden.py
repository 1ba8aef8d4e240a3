"""Reference numbers, computed by hand or by an independent program, never by this package.

The numbers of the whole model come from transformers and from the release's own inference code,
both run on one small float32 model. All others can be checked with a pocket calculator.
"""

import math

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig, hf
from minidsv3.config import RopeScaling
from minidsv3.hf.names import places
from minidsv3.measure.evaluate import max_violation
from minidsv3.model.moe import Router
from minidsv3.model.objective import sequence_balance
from minidsv3.model.rope import (
    apply_rope,
    rope_amplitude,
    rope_frequencies,
    softmax_scale,
    yarn_temperature,
)

SMALL = ModelConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, moe_intermediate_size=8,
    num_hidden_layers=3, first_k_dense_replace=1, num_attention_heads=2, kv_lora_rank=8,
    q_lora_rank=6, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=6, n_routed_experts=8,
    n_group=4, topk_group=2, num_experts_per_tok=3, max_position_embeddings=64,
    rope_scaling=RopeScaling(4.0, 16, mscale=1.0, mscale_all_dim=1.0))
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5]])


def fill(tensors, names, start):
    """Set element j = 1, 2, ... of the n-th sorted name to sin(0.37 j + n), scaled by its kind."""
    for n, name in enumerate(sorted(names), start):
        value = torch.sin(0.37 * torch.arange(1, tensors[name].numel() + 1).double() + n)
        if "norm" in name:
            value = 1 + 0.1 * value
        else:
            value = value * (0.2 if "e_score" in name else 0.5)
        tensors[name] = value.view(tensors[name].shape).float()


def build_model():
    """The small model with every weight given by a formula over its released name."""
    model = DeepSeekV3(SMALL)
    tensors = hf.released_tensors(model)
    extra = {name for name in tensors if name.startswith("model.layers.3.")}
    copies = {name for name in extra if "embed_tokens" in name or name.endswith("head.weight")}
    assert (len(set(tensors) - extra), len(extra - copies)) == (91, 42)
    fill(tensors, set(tensors) - extra, 0)
    fill(tensors, extra - copies, 200)
    put(model, tensors)
    return model.requires_grad_(False).eval()


def put(model, tensors):
    """Copy released tensors to their places in a model."""
    with torch.no_grad():
        for name, place in places(model, ()).items():
            place.copy_(tensors[name])


@pytest.fixture
def model():
    return build_model()


def close(got, expected, tolerance=2e-6):
    torch.testing.assert_close(got.double(), torch.as_tensor(expected).double(), rtol=tolerance,
                               atol=tolerance)


def test_logits_of_the_whole_model(model):
    """Oracle: transformers in float32; the release's own code agrees with it to 6e-7."""
    logits = model(TOKENS)
    close(logits[0, 11, :8], [-.118445, .388122, .844054, 1.189871, 1.380458, 1.390950, 1.219978,
                              .889848])
    close(logits[1, 5, :4], [-.136563, .382317, .851319, 1.209259])
    close(logits.mean(), .01280184)
    close(model.hidden_states(TOKENS)[0][0, 11, :4], [-.910307, -.656658, .905729, -.753437])
    assert logits.argmax(-1).tolist() == [[0, 13, 2, 13, 21, 22, 31, 4, 21, 19, 3, 22],
                                          [14, 4, 13, 22, 31, 22, 31, 22, 31, 22, 20, 3]]


def test_loss_terms_of_the_whole_model(model):
    """Oracle: next-token mean; eq. 24, T-1 terms divided by T; eq. 17 summed over the blocks."""
    terms = model.loss(TOKENS)
    close(terms.next_token, 3.504088)
    close(terms.mtp, 3.018658)                                     # 66.410484 / 11 / 2
    _, routings = model.hidden_states(TOKENS[:, :11])
    written = [sequence_balance(r.affinity, r.affinity.topk(3, dim=-1).indices) for r in routings]
    routed = [sequence_balance(r.affinity, r.experts) for r in routings]
    close(torch.stack(written), [[1.08677743, 1.03987894], [1.09174824, 1.02312492]])
    close(torch.stack(routed), [[.89829115, .93203199], [.91819664, .96574014]])
    without_mtp = DeepSeekV3(SMALL.replace(num_nextn_predict_layers=0))
    put(without_mtp, hf.released_tensors(model))
    close(without_mtp.loss(TOKENS).balance, torch.stack(written).mean(dim=1).sum())
    routed_loss = without_mtp.loss(TOKENS, balance_over="routed")
    close(routed_loss.balance, torch.stack(routed).mean(dim=1).sum())
    close(routed_loss.total, routed_loss.next_token + 1e-4 * routed_loss.balance)


def test_mtp_logits_of_the_whole_model(model):
    """Oracle: logits from joining [embedding of the next token; state after the final norm]."""
    states, _ = model.mtp_states(model.hidden_states(TOKENS)[0], TOKENS)
    close(model.lm_head(states[0])[0, 10, :8],
          [.073415, .158323, .222576, .257791, .259375, .227121, .165237, .081796])


def test_expert_loads_of_the_whole_model(model):
    """Oracle: tokens per expert in one step, and the bias step that follows from them by hand."""
    before = [router.e_score_correction_bias.clone() for router in model.routers()]
    model.train().loss(TOKENS)
    model.eval()
    loads = model.update_router_bias(1e-3)
    assert loads[:2].tolist() == [[20, 19, 17, 1, 1, 1, 2, 5], [22, 22, 18, 0, 0, 0, 0, 4]]
    close(max_violation(loads[:2]), [1.424242, 1.666667])
    for router, old in list(zip(model.routers(), before))[:2]:
        close(router.e_score_correction_bias - old, [-1e-3] * 3 + [1e-3] * 5, 1e-7)
    for router, old in zip(model.routers(), before):
        router.e_score_correction_bias.copy_(old)


def router(experts, groups, kept, top_k, bias):
    """A router with the identity as its gate, so that its input equals its logits."""
    config = SMALL.replace(hidden_size=experts, n_routed_experts=experts, n_group=groups,
                           topk_group=kept, num_experts_per_tok=top_k)
    made = Router(config).requires_grad_(False)
    made.weight.copy_(torch.eye(experts))
    made.e_score_correction_bias.copy_(torch.tensor(bias))
    return made


def chosen(router, logits):
    weights, routing = router(torch.tensor([logits]))
    return dict(zip(routing.experts[0].tolist(), weights[0].tolist()))


def test_router_on_hand_worked_tokens():
    """Oracle: by hand. Expert 3 has the largest affinity, but bias and group limit exclude it."""
    gate = router(8, 4, 2, 3, [.10, -.20, 0, -.90, .30, .05, -.10, -.60])
    got = chosen(gate, [1, .5, -1, 2, 0, .25, -.5, 1.5])
    assert got == pytest.approx({0: 1.01918960, 4: .69706428, 5: .78374630}, abs=1e-6)
    got = chosen(gate, [-2, -1.5, -3, -2.5, -1, -3.5, -2, -.5])
    assert got == pytest.approx({4: 1.61059523, 0: .71386421, 5: .17554060}, abs=1e-6)


def test_forbidden_group_loses_to_a_negative_score():
    """Oracle: by hand. If the mask were 0, not -inf, a forbidden expert would replace expert 1."""
    gate = router(8, 4, 2, 4, [.10, -.50, 0, 0, 0, 0, 0, 0])
    affinity = [.60, .30, .20, .15, .55, .50, .10, .05]
    got = chosen(gate, [math.log(s / (1 - s)) for s in affinity])
    assert got == pytest.approx({0: .7692308, 4: .7051283, 5: .6410256, 1: .3846154}, abs=1e-6)


def test_bias_update_by_hand():
    """Oracle: by hand. Counts 5 1 2 0, mean 2: biases go down, up, stay, up; MaxVio 5/2 - 1."""
    gate = router(4, 1, 1, 2, [0.0] * 4)
    gate.load.copy_(torch.tensor([5, 1, 2, 0]))
    assert max_violation(gate.load).item() == 1.5
    gate.update_bias(1e-3)
    assert gate.e_score_correction_bias.tolist() == pytest.approx([-1e-3, 1e-3, 0, 1e-3])
    assert gate.load.tolist() == [0, 0, 0, 0]


def test_sequence_balance_by_hand():
    """Oracle: by hand. Four tokens, two of four experts; balanced choices give exactly 1."""
    s = torch.tensor([[[.9, .6, .2, .1], [.8, .3, .5, .1], [.7, .2, .4, .6], [.6, .9, .1, .3]]])
    close(sequence_balance(s, s.topk(2, dim=-1).indices), [1.25664345], 1e-7)
    biased = (s + torch.tensor([-.35, 0, 0, .1])).topk(2, dim=-1).indices
    close(sequence_balance(s, biased), [1.0], 1e-7)


def test_rope_by_hand():
    """Oracle: by hand, for (1, 2, 3, 4) at position 3, theta = (1, 0.01), interleaved pairs."""
    angle = 3.0 * torch.tensor([[1.0, 0.01]])
    table = torch.polar(torch.ones_like(angle), angle)
    got = apply_rope(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), table)
    close(got[0], [-1.27223251, -1.83886499, 2.87866810, 4.08818664], 1e-7)


V3_FREQUENCIES = [
    1.0, .749894202, .562341332, .421696514, .316227764, .237137362, .177827939, .133352146,
    .100000001, .0749894157, .0562341288, .0390069261, .0268793609, .0183781441, .0124479560,
    .00833450910, .00550000044, .00356199732, .00224936521, .00137051346, 7.90569407e-4,
    4.14990413e-4, 1.77827940e-4, 3.33380340e-5, 2.49999994e-5, 1.87473543e-5, 1.40585325e-5,
    1.05424124e-5, 7.90569447e-6, 5.92843435e-6, 4.44569832e-6, 3.33380353e-6]
FREQUENCIES = {
    "v3": (64, 1e4, RopeScaling(40.0, 4096), V3_FREQUENCIES),
    "x40 of 256": (16, 1e4, RopeScaling(40.0, 256), [
        1.0, .239147246, .0512499996, .00849862210, 2.50000012e-4, 7.90569466e-5, 2.49999994e-5,
        7.90569447e-6]),
    "x4 of 128": (16, 1e4, RopeScaling(4.0, 128), [
        1.0, .237170815, .0499999970, .00790569465, .00249999994, 7.90569466e-4, 2.50000012e-4,
        7.90569466e-5]),
    "x8 of 64": (8, 1e4, RopeScaling(8.0, 64), [1.0, .0562500022, .00124999997, 1.25000006e-4]),
}


@pytest.mark.parametrize("case", FREQUENCIES.values(), ids=FREQUENCIES)
def test_yarn_frequencies(case):
    """Oracle: transformers, which agrees with a float64 formula to 1.3e-7."""
    channels, theta, scaling, expected = case
    config = SMALL.replace(qk_rope_head_dim=channels, rope_theta=theta, rope_scaling=scaling)
    close(rope_frequencies(config) / torch.tensor(expected), torch.ones(len(expected)), 2e-7)


def test_yarn_with_equal_betas_is_a_step():
    """With Kimi-K2's setting, pair 19 is kept and pair 20 is stretched; nothing is blended."""
    config = SMALL.replace(qk_rope_head_dim=64, rope_theta=5e4,
                           rope_scaling=RopeScaling(32.0, 4096, beta_fast=1.0, beta_slow=1.0))
    got = rope_frequencies(config)[19:21]
    close(got / torch.tensor([.00162175996, 3.61404673e-5]), [1.0, 1.0], 2e-7)


def test_softmax_scale_and_temperature():
    """Oracle: 192^-1/2 * 1.3689^2 for V3's softmax; without mscale cos and sin grow instead."""
    v3 = ModelConfig.preset("v3-671b")
    assert softmax_scale(v3) == pytest.approx(0.1352337789, abs=1e-10)
    assert softmax_scale(v3.replace(rope_scaling=None)) == pytest.approx(0.0721687836, abs=1e-10)
    assert rope_amplitude(v3.rope_scaling) == 1.0
    plain = RopeScaling(40.0, 4096)
    assert rope_amplitude(plain) == pytest.approx(1.3688879454, abs=1e-10)
    assert softmax_scale(v3.replace(rope_scaling=plain)) == pytest.approx(192**-0.5)
    assert yarn_temperature(32.0, 1.0) ** 2 == pytest.approx(1.8132604340, abs=1e-9)
