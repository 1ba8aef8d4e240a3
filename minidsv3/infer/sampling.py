"""From logits to a token: greedy, or drawn after temperature, top-k, top-p and min-p.

The order is: divide the logits by the temperature; keep the top_k most likely tokens; of these keep
the fewest whose probabilities reach top_p together; of these keep the ones with at least min_p
times the probability of the most likely token; then draw. Every sequence draws from a generator of
its own, so its text does not depend on the other sequences of the batch.

Probabilities are computed on the device of the model, for a whole batch, and copied to the CPU at
once. Drawing a token and accepting a draft happen there, in float64, which not every device has.
"""

from typing import NamedTuple

import torch

from ..command import UserError
from ..model.layers import at_least_float32


class Sampler(NamedTuple):
    """How a sequence's tokens are chosen; `checked` raises UserError for a value out of range."""

    temperature: float = 0.0                     # 0 always takes the most likely token
    top_k: int | None = None                     # None keeps all
    top_p: float = 1.0                           # 1 keeps all
    min_p: float = 0.0                           # 0 keeps all

    def checked(self):
        """The sampler itself, if every value is in range."""
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature} must not be negative or infinite; "
                            "0 is greedy, 1 as trained.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is a probability; choose above 0, up to 1 "
                            "(1 keeps all).")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p} is a share of the likeliest token's probability; "
                            "choose 0 to 1 (0 keeps all).")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} must be at least 1; leave it out to keep all.")
        return self

    def probabilities(self, logits):
        """Probabilities to draw from: logits (..., V) -> (..., V), sum 1, float32 or wider."""
        scaled = at_least_float32(logits)
        if self.temperature == 0:
            return torch.zeros_like(scaled).scatter_(-1, scaled.argmax(-1, keepdim=True), 1.0)
        # The largest logit becomes 0 before the division, so no temperature can cause overflow.
        scaled = (scaled - scaled.amax(dim=-1, keepdim=True)) / max(self.temperature, 1e-6)
        if self.top_k is not None and self.top_k < scaled.size(-1):
            smallest = scaled.topk(self.top_k, dim=-1).values[..., -1:]
            scaled = scaled.masked_fill(scaled < smallest, float("-inf"))
        kept = scaled.softmax(dim=-1)                                  # (..., V)
        if self.top_p < 1:
            kept = keep_nucleus(kept, self.top_p)
        if self.min_p > 0:
            kept = kept.masked_fill(kept < self.min_p * kept.amax(-1, keepdim=True), 0.0)
        return kept / kept.sum(dim=-1, keepdim=True)


def distributions(sequences, logits):
    """Probabilities each sequence draws from: logits (B, ..., V) -> (B, ..., V) on the CPU.

    One copy for the whole batch. None if all sequences are greedy, since these draw nothing.
    """
    samplers = {sequence.sampler for sequence in sequences}
    if all(sampler.temperature == 0 for sampler in samplers):
        return None
    if len(samplers) == 1:
        return samplers.pop().probabilities(logits).cpu()
    return torch.stack([sequence.sampler.probabilities(rows)
                        for sequence, rows in zip(sequences, logits)]).cpu()


def keep_nucleus(probabilities, top_p):
    """Keep the fewest most likely tokens that together reach top_p: (..., V) -> (..., V).

    The others become 0. The result is not normalised.
    """
    ordered, index = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered                          # sum of all more likely ones
    kept = ordered.masked_fill(before >= top_p, 0.0)                   # the first is always kept
    return torch.zeros_like(probabilities).scatter(-1, index, kept)


def draw(probabilities, generator):
    """Draw a token: unnormalised probabilities (V,) on the CPU -> int, by one random number."""
    cumulative = probabilities.double().cumsum(dim=-1)                 # (V,)
    mark = torch.rand((), generator=generator, dtype=torch.float64).item() * cumulative[-1].item()
    token = int(torch.searchsorted(cumulative, mark, right=True))
    # Rounding may put the mark at the very end: then take the last token of nonzero probability.
    return min(token, int(probabilities.nonzero()[-1]))
