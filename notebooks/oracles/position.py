"""Oracles of notebook 03: how does it know the order of the words?"""

import math

import torch


def frequencies(width, base):
    """Angle per token of channel pair m: base^(-2m / width), pair after pair -> (width/2,)."""
    return torch.tensor([float(base) ** (-2 * m / width) for m in range(width // 2)],
                        dtype=torch.float64)


def turns(window, theta):
    """Full turns of each pair within a window: window / wavelength -> (Dr/2,)."""
    return torch.tensor([window / (2 * math.pi / angle) for angle in theta.tolist()],
                        dtype=torch.float64)


def rotate(x, position, theta):
    """Rotate neighbouring channels (2m, 2m+1) by position * theta_m, with cosine and sine."""
    turned = []
    for m, angle in enumerate(theta.tolist()):
        a, b = x[2 * m].item(), x[2 * m + 1].item()
        cos, sin = math.cos(position * angle), math.sin(position * angle)
        turned += [a * cos - b * sin, a * sin + b * cos]
    return torch.tensor(turned, dtype=torch.float64)


def angles(theta, new, cached):
    """Angles of the tokens cached, cached + 1, ..., cached + new - 1 -> (new, Dr/2)."""
    return torch.tensor([[position * angle for angle in theta.tolist()]
                         for position in range(cached, cached + new)], dtype=torch.float64)


def half_order(width):
    """Which interleaved channel comes to each place of the half-split layout -> (width,)."""
    order = [0] * width
    for m in range(width // 2):
        order[m], order[m + width // 2] = 2 * m, 2 * m + 1
    return torch.tensor(order)
