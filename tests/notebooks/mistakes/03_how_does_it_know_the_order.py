"""Typical mistakes for the exercises of 03_how_does_it_know_the_order.

Those with a second name are further slips that the checker names.
"""

import math

import torch


def rotate(x, position, theta):
    """4 channels, position=3: expected [-1.272233, -1.838865, 2.878668, 4.088187], got [-1.413352,
    1.879118, -2.828857, 4.058191]. Your pairs are channels m and m + Dr/2."""
    first, second = x.chunk(2)
    cos, sin = torch.cos(position * theta), torch.sin(position * theta)
    return torch.cat([first * cos - second * sin, first * sin + second * cos])


def rotate__firsts_then_seconds(x, position, theta):
    """got [-1.272233, 2.878668, -1.838865, 4.088187]. Each number is right, but it is in the wrong
    place"""
    a, b = x[0::2], x[1::2]
    cos, sin = torch.cos(position * theta), torch.sin(position * theta)
    return torch.cat([a * cos - b * sin, a * sin + b * cos])


def rotate__to_the_right(x, position, theta):
    """Your hands turn to the right: the signs of the two sines are exchanged."""
    pairs = torch.view_as_complex(x.double().reshape(-1, 2))
    return torch.view_as_real(pairs * torch.exp(-1j * position * theta)).flatten()


def rotate__new_for_old(x, position, theta):
    """Your second component uses the new first one. Both need the old numbers."""
    x = x.clone()
    cos, sin = torch.cos(position * theta), torch.sin(position * theta)
    x[0::2] = x[0::2] * cos - x[1::2] * sin
    x[1::2] = x[0::2] * sin + x[1::2] * cos
    return x


def rotate__two_rows(x, position, theta):
    """4 channels, position=3: expected shape (4,), got (2, 2)."""
    pairs = torch.view_as_complex(x.reshape(-1, 2))
    return torch.view_as_real(pairs * torch.exp(1j * position * theta))


def rotate__no_position(x, position, theta):
    """Your angles do not depend on the position."""
    pairs = torch.view_as_complex(x.view(-1, 2)) * torch.polar(torch.ones_like(theta), theta)
    return torch.view_as_real(pairs).flatten()


def frequencies(width, base):
    """width=8, base=10000: expected [1, 0.1, 0.01, 0.001], got [1, 0.3162278, 0.1, 0.03162278].
    Your exponent counts pairs"""
    return base ** -(torch.arange(width // 2).double() / width)


def frequencies__grow(width, base):
    """got [1, 10, 100, 1000]. Your angles grow from pair to pair"""
    return base ** (torch.arange(0, width, 2) / width)


def frequencies__to_the_base(width, base):
    """got [1, 0.04641589, 0.002154435, 0.0001]. Your last angle is 1 / base."""
    return base ** -torch.linspace(0, 1, width // 2, dtype=torch.float64)


def frequencies__of_channels(width, base):
    """expected shape (4,), got (8,). You have one angle per channel. Two channels share one."""
    return [base ** (-n / width) for n in range(width)]


def frequencies__no_width(width, base):
    """got [1, 0.0001, 1e-08, 1e-12]. These are 1, 1 / base, 1 / base^2: the exponent lacks the
    width."""
    return float(base) ** -torch.arange(width // 2)


def frequencies__of_the_example(width, base):
    """width=4, base=100: expected [1, 0.1], got [1, 0.01]."""
    return [1, 0.1, 0.01, 0.001] if width == 8 else [1, 0.01]


def turns(window, theta):
    """window=102, 2 pairs: expected [25.5, 0.6375], got [160.2212, 4.005531]. These are radians."""
    return window * theta


def turns__wavelength(window, theta):
    """got [4, 160]. These are the tokens that one turn takes."""
    return 2 * math.pi / theta


def turns__degrees(window, theta):
    """You count in degrees, but theta is in radians"""
    return [window * angle / 360 for angle in theta.tolist()]


def turns__other_way(window, theta):
    """You divide by theta. It is the angle of one token"""
    return window / (2 * math.pi * theta)


def turns__whole(window, theta):
    """expected [25.5, 0.6375], got [25, 0]. You count whole turns only."""
    return window * theta // (2 * math.pi)


def half_order(width):
    """width=4: expected [0, 2, 1, 3], got [0, 1, 2, 3]. Your channels lie as before."""
    return torch.arange(width)


def half_order__back(width):
    """width=6: expected [0, 2, 4, 1, 3, 5], got [0, 3, 1, 4, 2, 5]. This is the way back."""
    return torch.arange(width).view(2, -1).T.flatten()


def half_order__seconds_first(width):
    """got [1, 3, 0, 2]. Your second components come first."""
    return [*range(1, width, 2), *range(0, width, 2)]


def half_order__from_one(width):
    """got [1, 3, 2, 4]. You count from 1."""
    return [*range(1, width, 2), *range(2, width + 1, 2)]


def angles(theta, new, cached):
    """new=2, cached=3: expected [3, 0.3, 4, 0.4], got [0, 0, 1, 0.1]. Your new tokens begin at
    position 0, as if the cache were empty."""
    return torch.arange(new)[:, None] * theta


def angles__from_one(theta, new, cached):
    """new=2, cached=0: expected [0, 0, 1, 0.1], got [1, 0.1, 2, 0.2]. You count positions from
    1."""
    return torch.arange(cached + 1, cached + new + 1)[:, None] * theta


def angles__at_the_last_one(theta, new, cached):
    """got [2, 0.2, 3, 0.3]. Your first new token stands where the last cached one does."""
    first = max(cached - 1, 0)
    return torch.arange(first, first + new)[:, None] * theta


def angles__of_the_cached(theta, new, cached):
    """expected shape (2, 2), got (5, 2). You also return angles for the cached tokens."""
    return torch.arange(cached + new)[:, None] * theta


def angles__all_at_one_place(theta, new, cached):
    """expected [0, 0, 1, 0.1], got [0, 0, 0, 0]. All of your new tokens stand at the same
    position."""
    return torch.full((new, 1), cached) * theta
