"""Exercises of notebook 02: why does a 671B model need so little cache?"""

import oracles
import torch

from .verdict import compare, normal


def cache_bytes_per_token(student):
    """By hand: one layer that keeps 3 + 1 numbers of 2 bytes."""
    cases = [(1, 2, 3, 1, 2), (61, 128, 512, 64, 2), (27, 16, 512, 64, 4)]
    return compare(student, cases, oracles.cache_bytes_per_token,
                   "One latent serves keys and values of all heads: no factor 2 for K and V, "
                   "and no factor for the heads. Every layer keeps one; times the bytes of a "
                   "number.")


def absorb_query(student):
    """By hand: the query (1, -0.5) of the notebook."""
    by_hand = torch.tensor([[[1.0, 0.0, 0.5], [-1.0, 2.0, 0.0]]])
    cases = [(torch.tensor([[[1.0, -0.5]]]), by_hand),
             (normal(3, 4, 5, seed=1), normal(3, 5, 7, seed=2))]
    return compare(student, cases, oracles.absorb_query, "Sum over Dn, the width of a key, and "
                   "within each head alone: q_nope stands on the left of W_UK.")


def keys_of_heads(student):
    """By hand: one token, two heads of one key and two values."""
    cases = [(torch.tensor([[1.0, 10.0, 11.0, 2.0, 20.0, 21.0]]), 2, 1),
             (normal(5, 3 * (4 + 2), seed=1), 3, 4)]
    return compare(student, cases, oracles.keys_of_heads, "kv_b_proj writes head by head: key and "
                   "value of head 0, then key and value of head 1.")


def break_even(student):
    """By hand: expanding costs 3 * 2, a query 2 or 6."""
    cases = [(3, 1, 1), (512, 128, 128), (96, 16, 48)]
    return compare(student, cases, oracles.break_even, "An absorbed query reads the latent twice, "
                   "once for the score and once for the value.")


def absorbed_attention(student):
    """By hand: the two cached tokens of the notebook; then several queries, which need a mask."""
    by_hand = (torch.tensor([[[1.0, -0.5]]]), torch.tensor([[[0.3, 0.2]]]),
               torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]]),
               torch.tensor([[0.1, -0.4], [0.6, 0.2]]),
               torch.tensor([[[1.0, 0.0, 0.5], [-1.0, 2.0, 0.0]]]),
               torch.tensor([[[0.5, 1.0, 0.0], [0.0, -1.0, 1.0]]]), 0.5)
    H, T, S, Dn, Dr, Dv, Rkv = 3, 4, 6, 5, 2, 4, 7
    several = (normal(H, T, Dn, seed=1), normal(H, T, Dr, seed=2), normal(S, Rkv, seed=3),
               normal(S, Dr, seed=4), normal(H, Dn, Rkv, seed=5), normal(H, Dv, Rkv, seed=6), 0.3)
    return compare(student, [by_hand, several], oracles.expanded_attention,
                   "The T queries are the last of the S positions: query t may see positions "
                   "0 to S - T + t, and no later one; the scale is for both parts of a logit.")
