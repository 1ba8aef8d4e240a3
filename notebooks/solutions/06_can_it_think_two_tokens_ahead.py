"""Solutions to 06_can_it_think_two_tokens_ahead: read them after you have tried."""

import torch
import torch.nn.functional as F


def joined_tokens(T, k):
    """Depth k has read k tokens more than the main model's state, and guesses the one behind."""
    joined = torch.arange(k, T)                                        # (T-k,)
    return torch.stack([joined, joined + 1], dim=-1)                   # (T-k, 2)


def tokens_per_step(acceptance):
    """One token in any case, and draft n if it and all before it stand: a product of chances."""
    return 1 + acceptance.cumprod(0).sum()


def mtp_loss(logits, tokens, weight):
    """Sums, not means: eq. 24 divides the T - k terms by T, the same for each depth."""
    T = len(tokens) - 1
    depths = [F.cross_entropy(rows, tokens[k + 1:], reduction="sum") / T
              for k, rows in enumerate(logits, start=1)]
    return weight * torch.stack(depths).mean()


def verify_greedy(drafts, logits):
    """The drafts that stand are equal to the verdicts, so the verdicts themselves are returned."""
    verdicts = logits.argmax(-1)                                       # (k+1,)
    stood = (drafts == verdicts[:-1]).long().cumprod(0).sum()
    return verdicts[:stood + 1]


def replacement(p, q):
    """Accepted drafts give min(p, q) of each word; this is the rest of p, made to sum to 1."""
    missing = (p - q).clamp(min=0)                                     # (V,)
    return missing / missing.sum()
