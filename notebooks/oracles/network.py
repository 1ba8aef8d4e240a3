"""Oracles of notebook 01: what is DeepSeek-V3?"""

import math

import torch


def rms_norm(x, gain, eps):
    """Every number of every row divided by the row's root mean square."""
    rows = x.reshape(-1, x.size(-1)).tolist()
    normed = [[g * value / math.sqrt(sum(v * v for v in row) / len(row) + eps)
               for value, g in zip(row, gain.tolist())] for row in rows]
    return torch.tensor(normed, dtype=torch.float64).view(x.shape)


def swiglu(x, gate, up, down):
    """Row by row and channel by channel; silu written out."""
    def times(matrix, vector):
        return [sum(m * v for m, v in zip(row, vector)) for row in matrix.tolist()]

    rows = []
    for row in x.tolist():
        inner = [g / (1 + math.exp(-g)) * u for g, u in zip(times(gate, row), times(up, row))]
        rows.append(times(down, inner))
    return torch.tensor(rows, dtype=torch.float64)


def active_parameters(width, inner, routed, shared, chosen):
    """Count the matrices that one token uses, one after the other, and the router."""
    total = 0
    for _ in range(shared + chosen):
        for rows, columns in [(inner, width), (inner, width), (width, inner)]:
            total += rows * columns
    return total + routed * width


def bits_a_byte(nats, text):
    """-log2 of the probability of the whole text, divided by its length in bytes."""
    return sum(value / math.log(2) for value in nats.tolist()) / len(text.encode("utf-8"))


def fused_block(out, stream, norm_1, attention, norm_2, ffn):
    """The report's figure 2 with every sum written out, the last one left to the next block."""
    read = stream.double() + out.double()
    attended = attention(norm_1(read.float())).double()
    return torch.stack([ffn(norm_2((read + attended).float())).double(), read + attended])
