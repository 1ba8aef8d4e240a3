"""What training minimises (report, eq. 17-20 and 24-25): functions of states and of routings.

    total = next_token + mtp_weight * mtp + balance_weight * balance

Each function needs only what one part of the model has computed, so the stages of a pipeline can
use them as `DeepSeekV3.loss` does: the stage with the head has the states, every stage has the
routings of its own blocks, and `combine` takes the terms of all of them in the order of the blocks.
"""

from typing import NamedTuple

import torch

from ..kernels.cross_entropy import cross_entropy
from .moe import hits


class LossTerms(NamedTuple):
    """The training loss and its parts; the parts are unweighted."""

    total: torch.Tensor              # next_token + mtp_weight * mtp + balance_weight * balance
    next_token: torch.Tensor         # mean cross-entropy [nats]
    mtp: torch.Tensor                # mean over depths of eq. 24 [nats]; 0 without modules
    balance: torch.Tensor            # sum over sparse blocks, MTP's too; 1 per block when balanced


def next_token_loss(hidden, head, targets):
    """Mean -log p of targets (B, T) for states hidden (B, T, C); head (V, C) -> scalar [nats]."""
    return cross_entropy(hidden.flatten(0, 1), head, targets.flatten()) / targets.numel()


def mtp_losses(states, head, targets):
    """The loss of every MTP depth (eq. 24): states [(B, T-k, C)], targets (B, T) -> [scalar].

    Depth k predicts the targets from place k on. Its T-k terms are divided by T, as in eq. 24.
    """
    return [cross_entropy(state.flatten(0, 1), head, targets[:, k:].flatten()) / targets.numel()
            for k, state in enumerate(states, start=1)]


def balance_losses(routings, balance_over="affinity"):
    """The balance loss of every sparse block, mean over sequences, without alpha -> [scalar].

    balance_over: "affinity" counts the top-K of the plain affinities, as eq. 18 is written;
    "routed" counts the experts really chosen, as the code of DeepSeek-V2 did.
    """
    losses = []
    for routing in routings:
        chosen = routing.experts                                       # (B, T, K)
        if balance_over == "affinity":
            chosen = routing.affinity.detach().topk(chosen.size(-1), dim=-1).indices
        losses.append(sequence_balance(routing.affinity, chosen).mean())
    return losses


def sequence_balance(affinity, chosen):
    """Sum over experts of f * P per sequence, 1 when balanced (eq. 17-20, without alpha).

    affinity (B, T, E), chosen (B, T, K) -> (B,). f is a count and carries no gradient; P does.
    """
    T, E = affinity.shape[1:]
    K = chosen.size(-1)
    f = hits(chosen.flatten(1), E).to(affinity.dtype) * E / (K * T)    # (B, E)  eq. 18
    share = affinity / affinity.sum(dim=-1, keepdim=True)              # (B, T, E)  eq. 19
    P = share.mean(dim=1)                                              # (B, E)  eq. 20
    return (f * P).sum(dim=-1)                                         # (B,)    eq. 17


def combine(next_token, mtp, balance, mtp_weight, balance_weight):
    """All terms as one loss; mtp: one scalar per depth, balance: one per sparse block."""
    zero = next_token.new_zeros(())
    mtp = torch.stack(mtp).mean() if mtp else zero                     # eq. 25 / lambda
    balance = sum(balance, start=zero)
    total = next_token + mtp_weight * mtp + balance_weight * balance
    return LossTerms(total, next_token, mtp, balance)
