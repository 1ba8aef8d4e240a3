"""The routed experts of a layer: dispatch -> feed_forward -> combine (report, section 2.1.2).

    y = sum over the chosen of g * expert(x)               eq. 12, without the shared expert

Every token is copied K times, the copies are sorted by expert, each expert computes its own, and
the results go back to their tokens, weighed. Nothing here has to be read by the host: sizes follow
from N and K, and the counts of each expert stay where they are.

Each of the three methods can be overridden alone: experts on several machines have another dispatch
and combine (and a `forward` that is `in_groups`, since `one_by_one` calls neither). The products
are a function that Experts holds, so that another precision can be put in its place from outside.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..device import reads_are_free, row_multiple
from ..kernels.grouped import Runs, grouped_linear


def grouped_swiglu(rows, gate_up_proj, down_proj, runs):
    """SwiGLU of every expert on its own rows.

    rows (M, C) sorted by expert, gate_up_proj (E, 2F, C), down_proj (E, C, F), Runs -> (M, C).
    """
    gate, up = grouped_linear(rows, gate_up_proj, runs).chunk(2, dim=-1)    # (M, F) each
    return grouped_linear(F.silu(gate) * up, down_proj, runs)


class Experts(nn.Module):
    """All routed experts of a layer, stacked, so that one grouped product serves them all."""

    def __init__(self, config):
        super().__init__()
        E, C, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * inner, C))  # gate rows, then up rows
        self.down_proj = nn.Parameter(torch.empty(E, C, inner))
        self.swiglu = grouped_swiglu

    def forward(self, x, weights, routing):
        """x (N, C), weights (N, K), their Routing -> sum over K of weight * expert(x), (N, C)."""
        if self.swiglu is not grouped_swiglu:
            # Its rows may depend on each other (FP8 has one scale for several), so padding rows
            # would change them, and a few tokens alone must not get another precision.
            return self.in_groups(x, weights, routing)
        if 0 < len(x) <= 3 and reads_are_free(x.device):
            return self.one_by_one(x, weights, routing)
        return self.in_groups(x, weights, routing, row_multiple(x))

    def in_groups(self, x, weights, routing, multiple=1):
        """All tokens of an expert at once; its rows are padded up to a multiple of so many."""
        rows, slots, runs = self.dispatch(x, routing, multiple)        # (M, C)
        return self.combine(self.feed_forward(rows, runs), slots, weights)

    def dispatch(self, x, routing, multiple=1):
        """Copies of tokens sorted by expert: x (N, C) -> rows (M, C), slots (N*K,), their Runs.

        slots: the row of each copy. M is N*K, and more where there are padding rows.
        """
        slots, counts = assign_slots(routing.experts.flatten(), routing.load, multiple)
        size = len(slots) if multiple == 1 else int(counts.sum())      # padding: CPUs only
        tokens = slots.new_zeros(size)                                 # (M,)  padding rows: token 0
        tokens[slots] = torch.arange(len(slots), device=x.device) // routing.experts.size(-1)
        return x.index_select(0, tokens), slots, Runs(counts)          # (M, C)

    def feed_forward(self, rows, runs):
        """rows (M, C) sorted by expert, Runs -> (M, C)."""
        return self.swiglu(rows, self.gate_up_proj, self.down_proj, runs)

    def combine(self, rows, slots, weights):
        """Back to the tokens: rows (M, C), slots (N*K,), weights (N, K) -> (N, C).  eq. 12"""
        rows = rows.index_select(0, slots)                             # (N*K, C)  no padding rows
        rows = rows.unflatten(0, (-1, weights.size(-1)))               # (N, K, C)
        return (weights.to(rows.dtype)[:, None] @ rows).squeeze(1)     # (N, C)

    def one_by_one(self, x, weights, routing):
        """The same for very few tokens, where sorting and gathering would take longer than this."""
        y, experts = [], routing.experts.flatten(0, -2).tolist()       # (N, K)
        for row, gates, chosen in zip(x.split(1), weights.to(x.dtype).split(1), experts):
            outputs = []
            for expert in chosen:
                gate, up = F.linear(row, self.gate_up_proj[expert].to(x.dtype)).chunk(2, dim=-1)
                outputs.append(F.linear(F.silu(gate) * up, self.down_proj[expert].to(x.dtype)))
            y.append(gates @ torch.cat(outputs))                       # (1, C)  combine, eq. 12
        return torch.cat(y)                                            # (N, C)


def assign_slots(experts, load, multiple=1):
    """Give every copy of a token a row, expert by expert.

    experts (N*K,), load (E,) -> slots (N*K,), counts (E,): rows of each expert, rounded up to the
    multiple. Example: experts 1 0 1, load 1 2, multiple 2 -> slots 2 0 3, counts 2 2; row 1 is
    padding.
    """
    counts = (load + multiple - 1) // multiple * multiple
    shift = (counts.cumsum(0) - counts) - (load.cumsum(0) - load)      # (E,)  padding before it
    order = experts.argsort(stable=True)                               # (N*K,)
    slots = torch.empty_like(order)
    slots[order] = torch.arange(len(order), device=order.device) + shift[experts[order]]
    return slots, counts
