"""DeepSeekMoE: many small experts, few of them activated per token (report, section 2.1.2).

    s = sigmoid(W_gate x)                                  affinity of the token to each expert
    chosen = top-K of s + b, within the best groups        the bias b only *chooses*
    g = scale * s / sum of the chosen s                    how much each counts
    y = shared(x) + sum over chosen of g * expert(x)       eq. 12-16

Balance comes from b: after each optimiser step it is lowered for experts that got more than the
mean and raised for those that got less, with no gradient and no loss. A very weak sequence-wise
loss (eq. 17-20, in `objective.py`) only keeps a single sequence from using few experts.
No token is ever dropped.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .experts import Experts
from .layers import Linear, SwiGLU, at_least_float32


class Routing:
    """What the router decided for every token of a batch."""

    def __init__(self, affinity, experts):
        self.affinity = affinity                           # (..., E)  s, float32 or wider
        self.experts = experts                             # (..., K)  indices of the chosen
        self._load = None

    @property
    def load(self):
        """Tokens sent to each expert, (E,): counted once, to sort them and to step the bias."""
        if self._load is None:
            self._load = hits(self.experts.flatten(), self.affinity.size(-1))
        return self._load


class Router(Linear):
    """Choose K of E experts for every token by sigmoid affinity (eq. 13-16).

    x (..., C) -> weights (..., K), Routing. The bias steers which experts are chosen, never how
    much they count. All of it is float32 or wider: rounding must not decide near ties.
    """

    def __init__(self, config):
        super().__init__(config.hidden_size, config.n_routed_experts)
        self.top_k = config.num_experts_per_tok
        self.n_group, self.topk_group = config.n_group, config.topk_group
        self.normalize, self.scale = config.norm_topk_prob, config.routed_scaling_factor
        E = config.n_routed_experts
        self.register_buffer("e_score_correction_bias", torch.zeros(E))        # b
        # Tokens sent to each expert since the last bias update.
        self.register_buffer("load", torch.zeros(E, dtype=torch.long), persistent=False)

    def forward(self, x):
        logits = F.linear(at_least_float32(x), at_least_float32(self.weight))
        affinity = logits.sigmoid()                                    # (..., E)  eq. 15
        experts = self.choose(affinity)                                # (..., K)  eq. 16
        # Gather from affinity: taking the bias off again would round small values away.
        weights = affinity.gather(-1, experts)                         # (..., K)
        if self.normalize:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)  # eq. 13; never 0/0
        return self.scale * weights, Routing(affinity, experts)

    def choose(self, affinity):
        """The K experts with the largest s + b within the best groups: (..., E) -> (..., K)."""
        choice = affinity.detach() + self.e_score_correction_bias      # (..., E)
        if self.n_group > 1:
            choice = self.keep_best_groups(choice)
        return choice.topk(self.top_k, dim=-1, sorted=False).indices   # (..., K)  eq. 16

    def keep_best_groups(self, choice):
        """Mask all but the topk_group best groups, scored by the sum of their two best experts."""
        groups = rearrange(choice, "... (g e) -> ... g e", g=self.n_group)     # (..., G, E/G)
        score = groups.topk(2, dim=-1).values.sum(dim=-1)              # (..., G)
        kept = torch.zeros_like(score, dtype=torch.bool)               # (..., G)
        kept.scatter_(-1, score.topk(self.topk_group, dim=-1).indices, True)
        # -inf, not 0: a biased score may be negative, and 0 would then beat it.
        groups = groups.masked_fill(~kept[..., None], float("-inf"))
        return rearrange(groups, "... g e -> ... (g e)")               # (..., E)

    @torch.no_grad()
    def update_bias(self, gamma):
        """b <- b + gamma * sign(mean load - load), from the whole step's load; then count anew."""
        # Times E, so that the mean is a whole number too and the sign exact.
        deviation = self.load.sum() - len(self.load) * self.load       # (E,) int64
        self.e_score_correction_bias += gamma * deviation.sign().float()
        self.load.zero_()

    def _apply(self, fn, recurse=True):
        """Keep the bias float32 when the model is cast: bfloat16 would lose steps of 0.001."""
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        moved = self.e_score_correction_bias
        if moved.dtype != torch.float32:
            self.e_score_correction_bias = bias.to(moved.device)
        return self


class MoE(nn.Module):
    """The feed-forward network of a sparse block: shared experts, and K of E routed experts."""

    def __init__(self, config):
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        # Several shared experts are one SwiGLU of their summed width.
        inner = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = SwiGLU(config.hidden_size, inner) if inner else None

    def forward(self, x):
        """x (B, T, C), normed -> y (B, T, C), Routing."""
        weights, routing = self.gate(x)                                # (B, T, K)
        y = self.experts(x.flatten(0, 1), weights.flatten(0, 1), routing)
        y = y.view_as(x)                                               # (B, T, C)
        if self.shared_experts is not None:
            y = y + self.shared_experts(x)                             # never scaled by the gate
        return y, routing


def hits(chosen, num_experts):
    """How often each expert is chosen: indices (..., M) -> (..., E), with no read by the host.

    Example: 1 0 1 of three experts -> 1 2 0.
    """
    zeros = chosen.new_zeros(*chosen.shape[:-1], num_experts)
    return zeros.scatter_add_(-1, chosen, torch.ones_like(chosen))


def max_violation(load):
    """MaxVio: the busiest expert's load over the mean, less 1: (..., E) -> (...), on the CPU.

    0 is balance.
    """
    load = load.cpu().double()
    mean = load.mean(dim=-1).clamp(min=1e-12)
    return load.amax(dim=-1) / mean - 1
