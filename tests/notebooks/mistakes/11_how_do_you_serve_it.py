"""Typical mistakes for the exercises of 11_how_do_you_serve_it."""

import torch


def puzzle():
    """expected [9, 9, 9, 9], got [10, 8, 9, 9]. These are the loads of your GPUs."""
    return [[0, 2, 3], [0, 3, 4], [0, 6, 1], [5, 3, 7]]


def replicate(load, slots):
    """expected [3, 1, 1, 3, 1, 1, 1, 1], got [5, 1, 1, 1, 1, 1, 1, 1]. What is the load of an
    expert's copy"""
    copies = [1] * len(load)
    copies[load.index(max(load))] += slots - len(load)
    return copies


def slots_of(chosen, slots, count):
    """expected [0, 1, 3, 4, 5, 0], got [0, 1, 3, 4, 5, -1]. Which slot is -1 in Python?"""
    turn = torch.arange(len(chosen))[:, None]
    return slots[chosen, turn % slots.shape[1]]


def pour(amount, levels):
    """expected [3, 2, 0], got [4.666667, 3.666667, -3.333333]. Does a vessel that is above the
    surface give water back?"""
    surface = (amount + sum(levels)) / len(levels)
    return [surface - level for level in levels]


def waits(arrivals, service):
    """expected [0, 1, 2, 0], got [0, 1, 2, -1]. When does a request begin that arrives while
    nobody else is there?"""
    return [n * service - arrival for n, arrival in enumerate(arrivals)]
