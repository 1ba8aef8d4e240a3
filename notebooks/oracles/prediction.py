"""Oracles of notebook 06: can it think two tokens ahead?"""

import math

import torch


def joined_tokens(T, k):
    """Position i of depth k joins token i+k and predicts token i+k+1 -> (T-k, 2)."""
    return torch.tensor([[i + k, i + k + 1] for i in range(T - k)])


def tokens_per_step(acceptance):
    """Mean over all ends of a step: n drafts are accepted, the next is rejected, n + 1 tokens."""
    rates, mean, reached = acceptance.tolist(), 0.0, 1.0
    for stood, rate in enumerate(rates):
        mean += reached * (1 - rate) * (stood + 1)
        reached *= rate
    return torch.tensor(mean + reached * (len(rates) + 1), dtype=torch.float64)


def mtp_loss(logits, tokens, weight):
    """Eq. 24: -log p of each target over T; eq. 25: lambda times the mean over depths."""
    T, total = len(tokens) - 1, 0.0
    for k, rows in enumerate(logits, start=1):
        for i, row in enumerate(rows.tolist()):
            total -= row[int(tokens[i + k + 1])] - math.log(sum(math.exp(z) for z in row))
    return torch.tensor(weight / len(logits) * total / T, dtype=torch.float64)


def verify_greedy(drafts, logits):
    """The model's best token at each place, up to the first that differs from its draft."""
    new = []
    for place, row in enumerate(logits.tolist()):
        new.append(max(range(len(row)), key=row.__getitem__))
        if place == len(drafts) or new[-1] != int(drafts[place]):
            break
    return torch.tensor(new)


def replacement(p, q):
    """The distribution after a rejection: max(p - q, 0), divided by its sum -> (V,)."""
    missing = [max(wanted - drafted, 0.0) for wanted, drafted in zip(p.tolist(), q.tolist())]
    return torch.tensor([part / math.fsum(missing) for part in missing], dtype=torch.float64)


def outcome(p, q):
    """Probability of each token: drafted and accepted, or drawn after a rejection -> (V,)."""
    kept, lost = [], 0.0
    for wanted, drafted in zip(p.tolist(), q.tolist()):
        rate = min(1.0, wanted / drafted)
        kept.append(drafted * rate)
        lost += drafted * (1 - rate)
    new = replacement(p, q).tolist()
    return torch.tensor([stays + lost * comes for stays, comes in zip(kept, new)],
                        dtype=torch.float64)
