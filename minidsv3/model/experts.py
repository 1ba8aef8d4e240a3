"""The routed experts of a layer: dispatch -> feed_forward -> combine (report, section 2.1.2).

    y = sum over the chosen of g * expert(x)               eq. 12, without the shared expert

Every token is copied K times, the copies are sorted by expert, each expert computes its own, and
the weighted results return to their tokens. Sizes follow from N and K, and the counts of experts
stay on the device, so the host reads nothing where torch has grouped products.

A subclass may override each of the three methods alone: experts on several machines have another
dispatch and combine. Another precision replaces the function `swiglu` that Experts holds.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..device import has_bags, reads_are_free, row_multiple
from ..kernels.few_tokens import one_by_one
from ..kernels.grouped import Runs, assign_slots, grouped_swiglu


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
        plain = self.swiglu is grouped_swiglu
        # The short cut calls none of the three methods, so it is not for subclasses.
        if plain and type(self) is Experts and 0 < len(x) <= 3 and reads_are_free(x.device):
            chosen = routing.experts.flatten(0, -2)                    # (N, K)
            return one_by_one(x, weights, chosen, self.gate_up_proj, self.down_proj)
        # In another precision, rows may share a scale, which padding rows would change.
        rows, slots, runs = self.dispatch(x, routing, row_multiple(x) if plain else 1)  # (M, C)
        return self.combine(self.feed_forward(rows, runs), slots, weights)

    def dispatch(self, x, routing, multiple=1):
        """Copies of tokens sorted by expert: x (N, C) -> rows (M, C), slots (N*K,), their Runs.

        slots: the row of each copy. The rows of every expert are padded to the multiple, so M is
        N*K or more.
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
        if has_bags(rows):
            # A token is a bag of K rows: one call reads, weighs and adds them. The form below would
            # take 6.5 ms in place of 3.6 (tiny in bfloat16, forward and backward).
            return F.embedding_bag(slots.view_as(weights), rows, mode="sum",
                                   per_sample_weights=weights.to(rows.dtype))
        rows = rearrange(rows.index_select(0, slots), "(n k) c -> n k c", k=weights.size(-1))
        return (weights.to(rows.dtype)[:, None] @ rows).squeeze(1)     # (N, C)
