"""Solutions to 01_what_is_deepseek_v3: read them after you have tried."""

import math

import torch.nn.functional as F


def rms_norm(x, gain, eps):
    """keepdim leaves (..., 1), which divides (..., C) row by row."""
    return gain * x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def swiglu(x, gate, up, down):
    """The gate's branch is switched by silu, the other stays linear."""
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def active_parameters(width, inner, routed, shared, chosen):
    """Three matrices for each expert that works, and the router, which scores all routed ones."""
    return (shared + chosen) * 3 * width * inner + routed * width


def bits_a_byte(nats, text):
    """Bytes of the file, not characters: "€" is one character and three bytes."""
    return nats.sum() / math.log(2) / len(text.encode("utf-8"))


def fused_block(out, stream, norm_1, attention, norm_2, ffn):
    """The norms replaced the stream, so everything that was added before them was scaled down. The
    stream itself is only added to; a normed copy goes into attention and into ffn."""
    stream = stream + out
    stream = stream + attention(norm_1(stream))
    return ffn(norm_2(stream)), stream
