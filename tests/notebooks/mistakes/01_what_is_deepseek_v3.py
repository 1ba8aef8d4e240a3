"""One typical mistake for each exercise of 01; the docstring is what the hint must say."""

import math

import torch
import torch.nn.functional as F


def rms_norm(x, gain, eps):
    """over the last axis alone"""
    return gain * x / (x.square().mean() + eps).sqrt()


def swiglu(x, gate, up, down):
    """silu belongs on the gate's branch"""
    return ((x @ gate.T) * F.silu(x @ up.T)) @ down.T


def active_parameters(width, inner, routed, shared, chosen):
    """the gate scores all routed experts"""
    return (shared + chosen) * 3 * width * inner + chosen * width


def bits_a_byte(nats, text):
    """bytes of the text in UTF-8"""
    return nats.sum() / math.log(2) / len(text)


def mtp_pairs(tokens):
    """must not be its own target"""
    i = torch.arange(len(tokens) - 1)
    return torch.stack([i, tokens[i + 1], tokens[i + 1]], dim=1)
