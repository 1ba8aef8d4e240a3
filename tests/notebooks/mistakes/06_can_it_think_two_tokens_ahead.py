"""Typical mistakes for the exercises of 06_can_it_think_two_tokens_ahead."""

import torch
import torch.nn.functional as F


def joined_tokens(T, k):
    """one place behind the token that is joined"""
    joined = torch.arange(k, T)
    return torch.stack([joined, joined], dim=-1)


def tokens_per_step(acceptance):
    """chances of a chain are multiplied"""
    return 1 + acceptance.sum()


def mtp_loss(logits, tokens, weight):
    """not by the T - k terms"""
    depths = [F.cross_entropy(rows, tokens[k + 1:]) for k, rows in enumerate(logits, start=1)]
    return weight * torch.stack(depths).mean()


def verify_greedy(drafts, logits):
    """the main model's own verdict follow"""
    stood = (drafts == logits.argmax(-1)[:-1]).long().cumprod(0).sum()
    return drafts[:stood]


def replacement(p, q):
    """must not come any more"""
    return p
