"""Typical mistakes for the exercises of 03_how_does_it_know_the_order."""

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
