"""Multi-Token Prediction: modules that look one token further each (report, section 2.2).

Module k joins what the model thinks at position i with the token that really follows k places
later, and predicts the next one after that:

    h'_i = M [ norm(Emb(t_{i+k})) ; norm(h_i) ]            eq. 21, in the released weights' order
    h_i  = TRM(h')_i                                       eq. 22, one whole sparse block
    p    = OutHead(norm(h_i)), predicts t_{i+k+1}          eq. 23, the main model's own head

The report writes the hidden state first; the released matrix takes the embedding first, and so does
ours. A module can be dropped after training, or draft tokens for speculative decoding.
"""

import torch
from torch import nn

from .block import Block
from .layers import Linear, RMSNorm


class MTP(Block):
    """One prediction module: a sparse block behind a projection that joins state and token."""

    def __init__(self, config):
        super().__init__(config, sparse=True)
        width, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(width, eps)                               # of the embedding
        self.hnorm = RMSNorm(width, eps)                               # of the hidden state
        self.eh_proj = Linear(2 * width, width)                        # M
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(width, eps)})  # the head itself is shared

    def forward(self, hidden, embedded, rope, cache=None):
        """hidden (B, T, C) of depth k-1, normed, and the later tokens' embeddings (B, T, C)
        -> normed hidden state of depth k (B, T, C), Routing.
        """
        x, routing = super().forward(self.join(hidden, embedded), rope, cache)  # eq. 22
        return self.shared_head["norm"](x), routing

    def join(self, hidden, embedded):
        """h' of eq. 21: (B, T, C) each -> (B, T, C)."""
        return self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1))

    def remember(self, hidden, embedded, rope, cache):
        """Append the latents of these positions to the cache, and compute nothing else.

        Later positions need nothing else of a single block. The arguments are those of `forward`.
        """
        x = self.input_layernorm(self.join(hidden, embedded))
        cache.append(self.self_attn.compress(x, rope))
