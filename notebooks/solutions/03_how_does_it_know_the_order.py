"""Solutions to 03_how_does_it_know_the_order: read them after you have tried."""

import math

import torch


def rotate(x, position, theta):
    """As complex numbers: neighbours are one number, and a turn is one product."""
    pairs = torch.view_as_complex(x.reshape(-1, 2))                    # (Dr/2,)
    turned = pairs * torch.exp(1j * position * theta)
    return torch.view_as_real(turned).flatten()                        # (Dr,)


def frequencies(width, base):
    """Pair m holds channels 2m and 2m + 1, and the exponent counts channels: 0, 2, 4, ..."""
    return base ** -(torch.arange(0, width, 2) / width)


def turns(window, theta):
    """The window turns a pair by window * theta radians, and a turn has 2 pi of them."""
    return window * theta / (2 * math.pi)


def half_order(width):
    """Pair m has its first component in channel 2m, and it must come to place m."""
    return [*range(0, width, 2), *range(1, width, 2)]


def angles(theta, new, cached):
    """The first new token stands behind all cached ones; keys in the cache keep their turn."""
    positions = torch.arange(cached, cached + new)
    return positions[:, None] * theta                                  # (new, Dr/2)
