"""Solutions to 01_what_is_deepseek_v3: read them after you have tried."""

import math

import torch
import torch.nn.functional as F


def rms_norm(x, gain, eps):
    """keepdim leaves (..., 1), which divides (..., C) row by row."""
    return gain * x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def swiglu(x, gate, up, down):
    """The gate's branch is switched by silu, the other stays linear."""
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def active_parameters(width, inner, routed, shared, chosen):
    """Three matrices for each expert at work, and the gate, which must score all of them."""
    return (shared + chosen) * 3 * width * inner + routed * width


def bits_a_byte(nats, text):
    """Bytes of the file, not characters: "€" is one character and three bytes."""
    return nats.sum() / math.log(2) / len(text.encode("utf-8"))


def mtp_pairs(tokens):
    """The joined token was its own target: the module only had to copy it. The target is the next
    one, so the last position has none and falls away."""
    i = torch.arange(len(tokens) - 2)
    return torch.stack([i, tokens[i + 1], tokens[i + 2]], dim=1)
