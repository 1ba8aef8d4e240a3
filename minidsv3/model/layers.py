"""The parts that the model is made of: Linear, Embedding, RMSNorm, SwiGLU.

    RMSNorm(x) = w * x / sqrt(mean(x^2) + eps)
    SwiGLU(x)  = W_down( silu(W_gate x) * W_up x )

Weights may be wider than activations: training keeps float32 weights and lets bfloat16
activations flow. Each layer casts its weight to the dtype of its input, so precision is visible
here and not hidden in an autocast context. No layer of DeepSeek-V3 has a bias vector.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.norm import rms_norm


def at_least_float32(x):
    """x as float32, or untouched where it is wider: a float64 model stays float64 throughout."""
    return x if x.dtype == torch.float64 else x.float()


def product(x, weight):
    """W x in the dtype of x: x (..., in), weight (out, in) -> (..., out)."""
    return F.linear(x, weight.to(x.dtype))


class Linear(nn.Linear):
    """y = W x in the dtype of x; W has shape (out, in). Another precision replaces `product`."""

    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features, bias=False)
        self.product = product

    def reset_parameters(self):
        """Left to `DeepSeekV3.initialize`, which draws every weight of the model once."""

    def forward(self, x):
        return self.product(x, self.weight)                            # (..., in) -> (..., out)


class Embedding(nn.Embedding):
    """One vector per token of the vocabulary: tokens (...) -> (..., C)."""

    def reset_parameters(self):
        """Left to `DeepSeekV3.initialize`."""


class RMSNorm(nn.Module):
    """Scale each vector to unit mean square, then by a learnt gain; in float32 or wider."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)                      # (..., C)


def swiglu(x, gate_proj, up_proj, down_proj):
    """x (..., C) through the three layers of a SwiGLU -> (..., C)."""
    return down_proj(F.silu(gate_proj(x)) * up_proj(x))


class SwiGLU(nn.Module):
    """The gated feed-forward network of dense blocks and of the shared expert."""

    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj = Linear(width, inner)
        self.up_proj = Linear(width, inner)
        self.down_proj = Linear(inner, width)
        self.swiglu = swiglu

    def forward(self, x):
        return self.swiglu(x, self.gate_proj, self.up_proj, self.down_proj)
