"""Mistakes found in real implementations of this model, and the test that notices each.

Every pitfall is one function or method replaced by a plausible wrong one. Its oracle is a test of
this suite: it must pass on the right code and must fail on the wrong.
"""

import pytest
import torch
import torch.nn.functional as F

from minidsv3 import DeepSeekV3
from minidsv3.model import mla, moe, mtp, objective, rope, transformer
from minidsv3.model.cache import LatentCache
from minidsv3.model.mla import MLA
from minidsv3.model.moe import MoE, Router
from tests.model import test_attention, test_golden, test_moe
from tests.parity import test_transformers

# ---- attention ----


def rope_in_halves(x, table):
    """The Llama convention: pair m in channels m and m + Dr/2."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = table.real, table.imag
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def norm_over_the_rotary_key_too(self, x, table):
    """One RMSNorm over all Rkv + Dr outputs of kv_a_proj."""
    joint = self.kv_a_proj_with_mqa(x)
    joint = joint * torch.rsqrt(joint.square().mean(-1, keepdim=True) + 1e-6)
    c_kv, k_rope = joint.split([self.kv_rank, self.rope_width], dim=-1)
    return torch.cat([self.kv_a_layernorm.weight * c_kv, mla.apply_rope(k_rope, table)], dim=-1)


def no_norm_of_the_latent(self, x, table):
    """c_kv cached as it comes out of its projection."""
    c_kv, k_rope = self.kv_a_proj_with_mqa(x).split([self.kv_rank, self.rope_width], dim=-1)
    return torch.cat([c_kv, mla.apply_rope(k_rope, table)], dim=-1)


def rotary_key_cached_unrotated(self, x, table):
    """k_rope left as it comes out of its projection."""
    c_kv, k_rope = self.kv_a_proj_with_mqa(x).split([self.kv_rank, self.rope_width], dim=-1)
    return torch.cat([self.kv_a_layernorm(c_kv), k_rope], dim=-1)


def all_keys_then_all_values(self, latents):
    """kv_b_proj read as [K of all heads; V of all heads]; it is [K; V] head by head."""
    c_kv, k_rope = latents.split([self.kv_rank, self.rope_width], dim=-1)
    keys, values = self.kv_b_proj(c_kv).split(
        [self.num_heads * self.nope_width, self.num_heads * self.value_width], dim=-1)
    k_nope, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (keys, values))
    k_rope = k_rope[:, None].expand(-1, self.num_heads, -1, -1)
    return torch.cat([k_nope, k_rope], dim=-1), v


def rope_before_nope(self, x, table):
    """Query heads read as [rotary; without position]."""
    q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
    q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
    q_rope, q_nope = q.split([self.rope_width, self.nope_width], dim=-1)
    return torch.cat([q_nope, mla.apply_rope(q_rope, table)], dim=-1)


def scale_without_the_rotary_width(config):
    """d_h^-1/2 in place of (d_h + d_h^R)^-1/2."""
    return rope.softmax_scale(config) * (config.qk_head_dim / config.qk_nope_head_dim) ** 0.5


def temperature_not_squared(config):
    """mscale once on the logits, in place of its square."""
    yarn = config.rope_scaling
    return config.qk_head_dim**-0.5 * rope.yarn_temperature(yarn.factor, yarn.mscale_all_dim)


def temperature_on_both(yarn):
    """mscale on cos and sin as well as squared on the logits."""
    return rope.yarn_temperature(yarn.factor, yarn.mscale)


def ramp_of_the_paper(config, device=None):
    """A ramp in the number of rotations, as in the YaRN paper; the release ramps in the index m."""
    yarn, channels = config.rope_scaling, config.qk_rope_head_dim
    plain = config.rope_theta ** -(torch.arange(0, channels, 2) / channels)
    rotations = yarn.original_max_position_embeddings * plain / (2 * torch.pi)
    ramp = ((yarn.beta_fast - rotations) / (yarn.beta_fast - yarn.beta_slow)).clamp(0, 1)
    return plain * (1 - ramp) + plain / yarn.factor * ramp


def ramp_clamped_to_pairs(yarn, channels, base):
    """The end of the ramp limited to Dr/2 - 1; the release limits it to Dr - 1."""
    low, high = yarn_ramp_ends(yarn, channels, base)
    return low, min(high, channels // 2 - 1)


yarn_ramp_ends = rope.yarn_ramp_ends


def positions_from_zero_in_each_chunk(self, new, make_room=LatentCache.make_room):
    """Cached positions forgotten: every chunk starts at 0."""
    make_room(self, new)
    return self.rope[:new]


# ---- experts ----


def bias_inside_the_gates(self, x):
    """Gate values gathered from s + b."""
    affinity = F.linear(x.float(), self.weight.float()).sigmoid()
    experts = self.choose(affinity)
    weights = (affinity + self.e_score_correction_bias).gather(-1, experts)
    return self.scale * weights / weights.sum(-1, keepdim=True), moe.Routing(affinity, experts)


def keep_groups(self, choice, score, mask):
    groups = choice.unflatten(-1, (self.n_group, -1))
    best = score(groups).topk(self.topk_group, dim=-1).indices
    kept = torch.zeros(groups.shape[:-1], dtype=torch.bool).scatter(-1, best, True)
    return groups.masked_fill(~kept.unsqueeze(-1), mask).flatten(-2)


def groups_scored_by_their_best(self, choice):
    """Each group scored by its maximum, as in DeepSeek-V2, in place of the sum of its two best."""
    return keep_groups(self, choice, lambda g: g.amax(-1), float("-inf"))


def groups_scored_without_bias(self, choice):
    """Groups scored by plain affinities, as one could understand the report's text."""
    def score(groups):
        plain = groups - self.e_score_correction_bias.unflatten(0, (self.n_group, -1))
        return plain.topk(2, dim=-1).values.sum(-1)
    return keep_groups(self, choice, score, float("-inf"))


def masked_with_zero(self, choice):
    """0 in place of -inf, although 0 is larger than every negative score."""
    return keep_groups(self, choice, lambda g: g.topk(2, dim=-1).values.sum(-1), 0.0)


def no_scaling_factor(self, x):
    """routed_scaling_factor forgotten."""
    weights, routing = router_forward(self, x)
    return weights / self.scale, routing


router_forward = Router.forward


def shared_expert_scaled(self, x):
    """routed_scaling_factor on the shared expert too."""
    y, routing = moe_forward(self, x)
    return y + (self.gate.scale - 1) * self.shared_experts(x), routing


moe_forward = MoE.forward


def bias_cast_with_the_model(self, fn, recurse=True):
    """nn.Module's own rule: model.to(dtype) casts every floating-point buffer, the bias too."""
    return torch.nn.Module._apply(self, fn, recurse)


def bias_updated_in_every_micro_batch(self, tokens, *weights):
    """One bias update per micro-batch; it should be one per optimiser step."""
    terms = loss(self, tokens, *weights)
    self.update_router_bias(1e-3)
    return terms


loss = DeepSeekV3.loss


def counted_inside_the_block(self, x):
    """Loads counted in the forward pass, which recomputation runs twice."""
    weights, routing = router_forward(self, x)
    self.load += routing.experts.flatten().bincount(minlength=len(self.load))
    return weights, routing


def balance_over_the_batch(affinity, chosen):
    """f and P computed over all sequences together, not for each one."""
    batch = objective.sequence_balance(affinity.flatten(0, 1)[None], chosen.flatten(0, 1)[None])
    return batch.expand(len(affinity))


def bias_pulled_the_wrong_way(self, gamma):
    """The sign reversed: b grows with the load."""
    load = self.load.double()
    self.e_score_correction_bias -= (gamma * (load.mean() - load).sign()).float()
    self.load.zero_()


# ---- multi-token prediction ----


def hidden_state_first(self, hidden, embedded, table, cache=None):
    """Eq. 21 as written; the released matrix has the embedding first."""
    joined = torch.cat([self.hnorm(hidden), self.enorm(embedded)], dim=-1)
    x, routing = mtp.Block.forward(self, self.eh_proj(joined), table, cache)
    return self.shared_head["norm"](x), routing


def state_before_the_final_norm(self, hidden, tokens):
    """h^0 without the gain of model.norm."""
    return mtp_states(self, hidden / self.norm.weight, tokens)


mtp_states = DeepSeekV3.mtp_states


def targets_one_too_early(states, head, targets):
    """Depth 1 predicts the token that is its input."""
    return [F.cross_entropy((state @ head.T).flatten(0, 1), targets[:, :-k].flatten(),
                            reduction="sum") / targets.numel()
            for k, state in enumerate(states, start=1)]


def mean_over_valid_positions(states, head, targets):
    """1/(T-k) in place of eq. 24's 1/T."""
    T = targets.size(1)
    return [loss * T / (T - k)
            for k, loss in enumerate(objective.mtp_losses(states, head, targets), start=1)]


# ---- the table ----


def golden(test):
    return lambda: test(test_golden.build_model())


logits = golden(test_golden.test_logits_of_the_whole_model)
terms = golden(test_golden.test_loss_terms_of_the_whole_model)
draft = golden(test_golden.test_mtp_logits_of_the_whole_model)


def cached():
    test_attention.test_cached_equals_uncached_in_irregular_chunks(test_attention.CONFIG, [5, 12])


def v3_frequencies():
    test_golden.test_yarn_frequencies(test_golden.FREQUENCIES["v3"])


def long_window_frequencies():
    test_transformers.test_yarn_frequencies_equal(*test_transformers.LONG_WINDOW)


PITFALLS = [
    (mla, "apply_rope", rope_in_halves, logits),
    (MLA, "compress", norm_over_the_rotary_key_too, logits),
    (MLA, "compress", no_norm_of_the_latent, logits),
    (MLA, "compress", rotary_key_cached_unrotated, logits),
    (MLA, "expand", all_keys_then_all_values, logits),
    (MLA, "query", rope_before_nope, logits),
    (mla, "softmax_scale", scale_without_the_rotary_width, logits),
    (mla, "softmax_scale", temperature_not_squared, logits),
    (rope, "rope_amplitude", temperature_on_both, logits),
    (test_golden, "rope_frequencies", ramp_of_the_paper, v3_frequencies),
    (rope, "yarn_ramp_ends", ramp_clamped_to_pairs, long_window_frequencies),
    (LatentCache, "make_room", positions_from_zero_in_each_chunk, cached),
    (Router, "forward", bias_inside_the_gates, test_golden.test_router_on_hand_worked_tokens),
    (Router, "keep_best_groups", groups_scored_by_their_best,
     lambda: test_moe.test_router_equals_sorting_and_gates_ignore_the_bias(0.1)),
    (Router, "keep_best_groups", groups_scored_without_bias,
     lambda: test_moe.test_router_equals_sorting_and_gates_ignore_the_bias(0.1)),
    (Router, "keep_best_groups", masked_with_zero,
     test_golden.test_forbidden_group_loses_to_a_negative_score),
    (Router, "forward", no_scaling_factor, logits),
    (MoE, "forward", shared_expert_scaled, logits),
    (Router, "_apply", bias_cast_with_the_model,
     test_moe.test_bias_stays_float32_when_the_model_is_cast),
    (moe, "at_least_float32", lambda x: x,
     test_moe.test_affinities_are_float32_in_a_bfloat16_model_and_float64_in_a_float64_one),
    (DeepSeekV3, "loss", bias_updated_in_every_micro_batch,
     test_moe.test_loads_count_each_token_once),
    (Router, "forward", counted_inside_the_block, test_moe.test_loads_count_each_token_once),
    (test_moe, "sequence_balance", balance_over_the_batch, test_moe.test_balance_is_per_sequence),
    (Router, "update_bias", bias_pulled_the_wrong_way, test_golden.test_bias_update_by_hand),
    (mtp.MTP, "forward", hidden_state_first, draft),
    (DeepSeekV3, "mtp_states", state_before_the_final_norm, draft),
    (transformer, "mtp_losses", targets_one_too_early, terms),
    (transformer, "mtp_losses", mean_over_valid_positions, terms),
]
NAMES = [wrong.__name__ if wrong.__name__ != "<lambda>" else "router_in_bfloat16"
         for _, _, wrong, _ in PITFALLS]


@pytest.mark.parametrize("place, name, wrong, oracle", PITFALLS, ids=NAMES)
def test_the_suite_notices(place, name, wrong, oracle, monkeypatch):
    """Oracle: a test of this suite, which passes on the right code and fails on the wrong."""
    oracle()
    monkeypatch.setattr(place, name, wrong)
    with pytest.raises(AssertionError):
        oracle()
