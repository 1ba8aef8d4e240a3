"""Typical mistakes for the exercises of 03_how_does_it_know_the_order."""

import math

import torch


def frequencies(width, base):
    """two for each pair"""
    return base ** -(torch.arange(width // 2) / width)


def turns(window, theta):
    """a whole turn 2 pi radians"""
    return window * theta


def rotate(x, position, theta):
    """Are the partners neighbours"""
    first, second = x.chunk(2)
    cos, sin = torch.cos(position * theta), torch.sin(position * theta)
    return torch.cat([first * cos - second * sin, first * sin + second * cos])


def angles(theta, new, cached):
    """Which position has the first new token"""
    positions = torch.arange(new)
    return positions[:, None] * theta


def yarn_frequencies(width, base, factor, window):
    """0 keeps a frequency, 1 divides it."""
    def pair_that_turns(times):
        return width * math.log(window / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(pair_that_turns(32)), 0), math.ceil(pair_that_turns(1))
    m = torch.arange(width // 2)
    plain = base ** -(2 * m / width)
    ramp = ((m - low) / (high - low)).clamp(0, 1)
    return plain * ramp + plain / factor * (1 - ramp)
