"""Exercises of notebook 01: what is DeepSeek-V3?"""

import oracles
import torch

from .verdict import compare, normal


def rms_norm(student):
    """By hand: (3, 4) over sqrt(12.5)."""
    cases = [(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0),
             (normal(2, 3, 5, seed=1), normal(5, seed=2), 0.5)]
    return compare(student, cases, oracles.rms_norm, "Is it the root of the mean of the squares, "
                   "over the last axis alone, with eps inside the root and the gain outside?")


def swiglu(student):
    """By hand: one inner channel."""
    cases = [(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]),
              torch.tensor([[1.0], [-1.0]])),
             (normal(3, 4, seed=1), normal(5, 4, seed=2), normal(5, 4, seed=3),
              normal(4, 5, seed=4))]
    return compare(student, cases, oracles.swiglu,
                   "silu(x gate^T) * (x up^T), then down^T: the silu belongs on the gate's branch, "
                   "and nothing is added.")


def active_parameters(student):
    """By hand: 3 matrices of 2 by 1, for 1 + 1 experts, and a gate of 4 rows of 2."""
    cases = [(2, 1, 4, 1, 1), (7168, 2048, 256, 1, 8), (2048, 1408, 64, 2, 6)]
    return compare(student, cases, oracles.active_parameters, "Three matrices an expert; chosen "
                   "and shared ones work; the gate scores all routed experts.")


def bits_a_byte(student):
    """By hand: one nat on one byte."""
    cases = [(torch.tensor([1.0]), "a"), (torch.tensor([0.5, 2.0, 0.25]), "é€ = 1")]
    return compare(student, cases, oracles.bits_a_byte, "Divide by the bytes of the text in UTF-8, "
                   "not by its characters or tokens; and are the nats bits by then?")


def mtp_pairs(student):
    """By hand: tokens 10 to 14."""
    cases = [(torch.tensor([10, 11, 12, 13, 14]),), (torch.tensor([5, 3, 9, 3, 5, 7, 1, 2]),)]
    return compare(student, cases, oracles.mtp_pairs, "The target lies two places after the state: "
                   "the joined token must not be its own target, and one triple fewer is left.")
