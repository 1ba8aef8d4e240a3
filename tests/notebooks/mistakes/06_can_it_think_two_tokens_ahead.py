"""Typical mistakes for the exercises of 06_can_it_think_two_tokens_ahead."""

import torch
import torch.nn.functional as F


def joined_tokens(T, k):
    """T=4, k=1, row by row: expected [1, 2, 2, 3, 3, 4], got [1, 1, 2, 2, 3, 3].
    Your modules predict the token that they are given"""
    joined = torch.arange(k, T)
    return torch.stack([joined, joined], dim=-1)


def joined_tokens__too_early(T, k):
    """join a token that the state below has already read"""
    return [(i + k - 1, i + k + 1) for i in range(T - k)]


def joined_tokens__too_many(T, k):
    """the last states have no known token to join"""
    return [(i + k, i + k + 1) for i in range(T)]


def joined_tokens__of_depth_1(T, k):
    """T=4, k=2, row by row: expected shape (2, 2), got (3, 2).
    These are the pairs of depth 1, whatever k is."""
    return [(i + 1, i + 2) for i in range(T - 1)]


def joined_tokens__from_k(T, k):
    """Your positions begin at k"""
    return [(i + k, i + k + 1) for i in range(k, T)]


def joined_tokens__exchanged(T, k):
    """in the wrong order"""
    return [(i + k + 1, i + k) for i in range(T - k)]


def mtp_loss(logits, tokens, weight):
    """You divide by the T - k terms that exist"""
    depths = [F.cross_entropy(rows, tokens[k + 1:]) for k, rows in enumerate(logits, start=1)]
    return weight * torch.stack(depths).mean()


def mtp_loss__one_too_early(logits, tokens, weight):
    """T=6, depths=2, weight=0.1: expected 0.09698401, got 0.1402798. Your targets are one place
    too early"""
    T = len(tokens) - 1
    return weight * torch.stack([F.cross_entropy(rows, tokens[k:-1], reduction="sum") / T
                                 for k, rows in enumerate(logits, start=1)]).mean()


def mtp_loss__added(logits, tokens, weight):
    """eq. 25 takes their mean"""
    T = len(tokens) - 1
    return weight * sum(F.cross_entropy(rows, tokens[k + 1:], reduction="sum") / T
                        for k, rows in enumerate(logits, start=1))


def mtp_loss__without_weight(logits, tokens, weight):
    """does not contain lambda"""
    T = len(tokens) - 1
    return torch.stack([F.cross_entropy(rows, tokens[k + 1:], reduction="sum") / T
                        for k, rows in enumerate(logits, start=1)]).mean()


def mtp_loss__sums(logits, tokens, weight):
    """never divide by T"""
    return weight * torch.stack([F.cross_entropy(rows, tokens[k + 1:], reduction="sum")
                                 for k, rows in enumerate(logits, start=1)]).mean()


def verify_greedy(drafts, logits):
    """drafts [1, 3], the main model chooses [1, 3, 2]: expected shape (3,), got (2,). You return
    the accepted drafts only."""
    stood = (drafts == logits.argmax(-1)[:-1]).long().cumprod(0).sum()
    return drafts[:stood]


def verify_greedy__counts_matches(drafts, logits):
    """must stop at the first draft that differs"""
    choices = logits.argmax(-1)
    return choices[:(drafts == choices[:-1]).sum() + 1]


def verify_greedy__goes_on(drafts, logits):
    """What was read after a wrong token is useless."""
    return logits.argmax(-1)


def verify_greedy__keeps_the_draft(drafts, logits):
    """The main model's own token must replace it."""
    choices = logits.argmax(-1)
    accepted = (drafts == choices[:-1]).long().cumprod(0).sum()
    return torch.cat([drafts, choices[-1:]])[:accepted + 1]


def replacement(p, q):
    """5 words: expected [0.5714286, 0, 0, 0.4285714, 0], got [0.4, 0.1, 0.3, 0.2, 0]. You draw from
    p."""
    return p


def replacement__not_normalised(p, q):
    """they do not sum to 1"""
    return (p - q).clamp(min=0)


def replacement__exchanged(p, q):
    """Exchange p and q."""
    more = (q - p).clamp(min=0)
    return more / more.sum()


def replacement__distance(p, q):
    """They need nothing more."""
    return (p - q).abs() / (p - q).abs().sum()


def replacement__by_p(p, q):
    """Draw each in proportion to what it still needs."""
    among = torch.where(p > q, p, 0)
    return among / among.sum()


def tokens_per_step(acceptance):
    """acceptance [0.5, 0.5]: expected 1.75, got 2. You add the rates."""
    return 1 + acceptance.sum()


def tokens_per_step__drafts_only(acceptance):
    """You forget the main model's own token"""
    return acceptance.cumprod(0).sum()


def tokens_per_step__all_or_none(acceptance):
    """only where all of them are accepted"""
    return 1 + len(acceptance) * acceptance.prod()


def tokens_per_step__one_draft(acceptance):
    """You count one draft at most."""
    return 1 + acceptance.prod()
