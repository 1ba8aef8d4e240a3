"""Oracles of notebook 04: what do 256 experts do?"""

import torch


def group_scores(affinity, bias, n_group):
    """The sum of the two best biased affinities of each group, found by sorting."""
    rows = []
    for s in affinity.tolist():
        choice = [a + b for a, b in zip(s, bias.tolist())]
        size = len(choice) // n_group
        groups = [choice[g * size:(g + 1) * size] for g in range(n_group)]
        rows.append([sum(sorted(group)[-2:]) for group in groups])
    return torch.tensor(rows)


def gates(affinity, bias, K, scale):
    """eq. 13 and 16 for one token, without groups."""
    s, b = affinity.tolist(), bias.tolist()
    chosen = sorted(range(len(s)), key=lambda e: -(s[e] + b[e]))[:K]
    total = sum(s[e] for e in chosen)
    return torch.tensor([scale * s[e] / total if e in chosen else 0.0 for e in range(len(s))])


def moe_output(u, shared, routed, affinity, experts, scale):
    """eq. 12 without the residual, number by number; here an expert is one matrix."""
    u, s, chosen = u.tolist(), affinity.tolist(), experts.tolist()

    def apply(matrix):
        return [sum(w * x for w, x in zip(row, u)) for row in matrix.tolist()]

    y = apply(shared)
    for e in chosen:
        g = scale * s[e] / sum(s[i] for i in chosen)
        y = [a + g * r for a, r in zip(y, apply(routed[e]))]
    return torch.tensor(y)


def choose_experts(affinity, bias, n_group, topk_group, K):
    """Sort the groups by the sum of their two best, then sort the experts of the kept groups."""
    choice = [s + b for s, b in zip(affinity.tolist(), bias.tolist())]
    size = len(choice) // n_group
    members = [list(range(g * size, (g + 1) * size)) for g in range(n_group)]
    members.sort(key=lambda group: -sum(sorted((choice[e] for e in group), reverse=True)[:2]))
    allowed = [e for group in members[:topk_group] for e in group]
    chosen = sorted(allowed, key=lambda e: -choice[e])[:K]
    return torch.tensor([float(e in chosen) for e in range(len(choice))])
