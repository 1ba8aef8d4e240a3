"""Solutions to 06_can_it_think_two_tokens_ahead: read them after you have tried."""

import torch
import torch.nn.functional as F


def joined_tokens(T, k):
    """Each depth has read one token more, so position i joins i + k and guesses the next one.

    The last known token is x_(T-1), so the last k positions have nothing to join.
    """
    joined = torch.arange(k, T)                                        # (T-k,)
    return torch.stack([joined, joined + 1], dim=-1)                   # (T-k, 2)


def mtp_loss(logits, tokens, weight):
    """Sums, not means: eq. 24 divides the T - k terms by T, the same for each depth."""
    T = len(tokens) - 1
    depths = [F.cross_entropy(rows, tokens[k + 1:], reduction="sum") / T
              for k, rows in enumerate(logits, start=1)]
    return weight * torch.stack(depths).mean()


def verify_greedy(drafts, logits):
    """Accepted drafts equal the main model's choices, so the choices themselves are returned.

    cumprod is 1 up to the first draft that differs, and 0 from there on.
    """
    choices = logits.argmax(-1)                                        # (k+1,)
    accepted = (drafts == choices[:-1]).long().cumprod(0).sum()
    return choices[:accepted + 1]


def replacement(p, q):
    """Accepted drafts give min(p, q) of each word; this is the rest of p, made to sum to 1."""
    missing = (p - q).clamp(min=0)                                     # (V,)
    return missing / missing.sum()


def tokens_per_step(acceptance):
    """One token in any case, and draft n if it and all before it are accepted: a product.

    The rates are shares of the drafts that are judged, so they are not chances in all steps.
    """
    return 1 + acceptance.cumprod(0).sum()
