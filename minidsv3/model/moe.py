"""DeepSeekMoE: many small experts, few of them at work for each token (report, section 2.1.2).

    s = sigmoid(W_gate x)                                  affinity of the token to each expert
    chosen = top-K of s + b, within the best groups        the bias b only *chooses*
    g = scale * s / sum of the chosen s                    how much each counts
    y = shared(x) + sum over chosen of g * expert(x)       eq. 12-16

Balance comes from b: after each optimiser step it is lowered for experts that got more than the
mean and raised for those that got less, with no gradient and no loss. A very weak sequence-wise
loss (eq. 17-20) only guards against a single sequence that leans on few experts.
No token is ever dropped.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .layers import Linear, SwiGLU, at_least_float32


class Routing(NamedTuple):
    """What the router decided for every token of a batch."""

    affinity: torch.Tensor                                 # (B, T, E)  s, float32 or wider
    experts: torch.Tensor                                  # (B, T, K)  indices of the chosen


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
        groups = choice.unflatten(-1, (self.n_group, -1))              # (..., G, E/G)
        score = groups.topk(2, dim=-1).values.sum(dim=-1)              # (..., G)
        kept = torch.zeros_like(score, dtype=torch.bool)               # (..., G)
        kept.scatter_(-1, score.topk(self.topk_group, dim=-1).indices, True)
        # -inf, not 0: a biased score may be negative, and 0 would then beat it.
        return groups.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(-2)  # (..., E)

    @torch.no_grad()
    def update_bias(self, gamma):
        """b <- b + gamma * sign(mean load - load), from the whole step's load; then count anew."""
        load = self.load.double()                                      # (E,)
        self.e_score_correction_bias += (gamma * (load.mean() - load).sign()).float()
        self.load.zero_()

    def _apply(self, fn, recurse=True):
        """Keep the bias float32 when the model is cast: bfloat16 would swallow steps of 0.001."""
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        moved = self.e_score_correction_bias
        if moved.dtype != torch.float32:
            self.e_score_correction_bias = bias.to(moved.device)
        return self


class Experts(nn.Module):
    """All routed experts of a layer, stacked, so that one grouped product serves them all."""

    def __init__(self, config):
        super().__init__()
        E, C, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * inner, C))  # gate rows, then up rows
        self.down_proj = nn.Parameter(torch.empty(E, C, inner))

    def forward(self, x, weights, experts):
        """x (N, C), weights (N, K), experts (N, K) -> sum over K of weight * expert(x), (N, C)."""
        if 0 < len(x) <= 3 and x.device.type == "cpu":
            return self.one_by_one(x, weights, experts)
        return self.in_groups(x, weights, experts, row_multiple(x))

    def in_groups(self, x, weights, experts, multiple=1):
        """All tokens of an expert at once; its rows are filled up to a multiple of so many."""
        top_k = experts.size(-1)
        slots, counts = assign_slots(experts.flatten(), len(self.down_proj), multiple)
        tokens = slots.new_zeros(counts.sum())                         # (M,)  spare rows: token 0
        tokens[slots] = torch.arange(len(slots), device=x.device) // top_k
        rows = x.index_select(0, tokens)                               # (M, C)  dispatch
        rows = self.feed_forward(rows, counts).index_select(0, slots)  # (N*K, C)  no spare rows
        rows = rows.unflatten(0, (-1, top_k))                          # (N, K, C)
        return (weights.to(x.dtype)[:, None] @ rows).squeeze(1)        # (N, C)  combine, eq. 12

    def feed_forward(self, rows, counts):
        """rows (M, C) sorted by expert, counts (E,) -> (M, C); another precision overrides this."""
        gate, up = grouped_linear(rows, self.gate_up_proj, counts).chunk(2, dim=-1)
        return grouped_linear(F.silu(gate) * up, self.down_proj, counts)

    def one_by_one(self, x, weights, experts):
        """The same for very few tokens, where sorting and gathering would take longer than this."""
        y = []
        for row, gates, chosen in zip(x.split(1), weights.to(x.dtype).split(1), experts.tolist()):
            outputs = []
            for expert in chosen:
                gate, up = F.linear(row, self.gate_up_proj[expert].to(x.dtype)).chunk(2, dim=-1)
                outputs.append(F.linear(F.silu(gate) * up, self.down_proj[expert].to(x.dtype)))
            y.append(gates @ torch.cat(outputs))                       # (1, C)  combine, eq. 12
        return torch.cat(y)                                            # (N, C)


def assign_slots(experts, num_experts, multiple=1):
    """Give every copy of a token a row, expert by expert.

    experts (N*K,) -> slots (N*K,), counts (E,): rows of each expert, rounded up to the multiple.
    Example: experts 1 0 1, two experts, multiple 2 -> slots 2 0 3, counts 2 2; row 1 is spare.
    """
    load = experts.bincount(minlength=num_experts)                     # (E,)
    counts = (load + multiple - 1) // multiple * multiple
    shift = (counts.cumsum(0) - counts) - (load.cumsum(0) - load)      # (E,)  spare rows before it
    order = experts.argsort(stable=True)                               # (N*K,)
    slots = torch.empty_like(order)
    slots[order] = torch.arange(len(order), device=order.device) + shift[experts[order]]
    return slots, counts


def row_multiple(x):
    """What an expert's number of rows is rounded up to.

    On CPUs a bfloat16 product compiles a kernel for each new number of rows, so the numbers must
    repeat to be fast; a few tokens are not worth it, and elsewhere any number will do.
    """
    return 64 if x.device.type == "cpu" and x.dtype == torch.bfloat16 and len(x) > 256 else 1


def grouped_linear(rows, weight, counts):
    """Each run of rows times its own matrix: rows (N, I) sorted, weight (E, O, I) -> (N, O).

    counts (E,) says how many rows belong to each matrix; none is allowed.
    """
    weight = weight.to(rows.dtype)
    if can_group(weight):
        return grouped_mm(rows, weight.transpose(1, 2), offs=counts.cumsum(0).int())
    # The same by a loop: torch's grouped product wants 16-byte rows and at most float32.
    parts = rows.split(counts.tolist())
    return torch.cat([part @ matrix.T for part, matrix in zip(parts, weight, strict=True)])


def can_group(weight):
    """Whether torch's grouped product takes matrices of this device, dtype and size."""
    dtypes = {"cpu": (torch.float32, torch.bfloat16, torch.float16), "cuda": (torch.bfloat16,)}
    aligned = all(size * weight.element_size() % 16 == 0 for size in weight.shape[1:])
    return aligned and weight.dtype in dtypes.get(weight.device.type, ())


grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm       # its older name


class MoE(nn.Module):
    """The feed-forward network of a sparse block: shared experts for all, K of E for each token."""

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
        y = self.experts(x.flatten(0, 1), weights.flatten(0, 1), routing.experts.flatten(0, 1))
        y = y.view_as(x)                                               # (B, T, C)
        if self.shared_experts is not None:
            y = y + self.shared_experts(x)                             # never scaled by the gate
        return y, routing


def sequence_balance(affinity, chosen):
    """Sum over experts of f * P, one number a sequence, 1 when balanced (eq. 17-20 without alpha).

    affinity (B, T, E), chosen (B, T, K) -> (B,). f is a count and carries no gradient; P does.
    """
    T, E = affinity.shape[1:]
    K = chosen.size(-1)
    hits = F.one_hot(chosen, E).sum(dim=(1, 2))                        # (B, E)
    f = hits.to(affinity.dtype) * E / (K * T)                          # (B, E)  eq. 18
    share = affinity / affinity.sum(dim=-1, keepdim=True)              # (B, T, E)  eq. 19
    P = share.mean(dim=1)                                              # (B, E)  eq. 20
    return (f * P).sum(dim=-1)                                         # (B,)    eq. 17


def max_violation(load):
    """MaxVio: the busiest expert's load over the mean, less 1: (..., E) -> (...); 0 is balance."""
    load = load.double()
    mean = load.mean(dim=-1).clamp(min=1e-12)
    return load.amax(dim=-1) / mean - 1
