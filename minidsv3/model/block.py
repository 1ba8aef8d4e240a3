"""One block of the network: attention and a feed-forward network, each behind a norm.

    x <- x + MLA(RMSNorm(x))
    x <- x + FFN(RMSNorm(x))          FFN: dense SwiGLU in the first blocks, MoE in all others
"""

from torch import nn

from .layers import RMSNorm, SwiGLU
from .mla import MLA
from .moe import MoE


class Block(nn.Module):
    """A pre-norm residual block; `sparse` decides between experts and one dense network."""

    def __init__(self, config, sparse):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MLA(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config) if sparse else SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(self, x, rope, cache=None):
        """x (B, T, C) -> x (B, T, C) and the Routing of its tokens, None in a dense block."""
        x = x + self.self_attn(self.input_layernorm(x), rope, cache)
        y = self.mlp(self.post_attention_layernorm(x))
        y, routing = y if isinstance(y, tuple) else (y, None)
        return x + y, routing
