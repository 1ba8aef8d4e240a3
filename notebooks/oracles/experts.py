"""Oracles of notebook 04: what do 256 experts do? Plain loops over lists of numbers."""

import math

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


def apply(matrix, u):
    """matrix (rows, columns) times a list u, number by number."""
    return [sum(w * x for w, x in zip(row, u)) for row in matrix.tolist()]


def moe_output(u, shared, routed, affinity, experts, scale):
    """eq. 12 without the residual, number by number; here an expert is one matrix."""
    u, s, chosen = u.tolist(), affinity.tolist(), experts.tolist()
    y = apply(shared, u)
    for e in chosen:
        g = scale * s[e] / sum(s[i] for i in chosen)
        y = [a + g * r for a, r in zip(y, apply(routed[e], u))]
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


def visit_share(kinds, experts, n_kinds, n_experts):
    """Count the tokens of each kind, and those of them that visit each expert."""
    seen, visits = [0] * n_kinds, [[0] * n_experts for _ in range(n_kinds)]
    for kind, chosen in zip(kinds.tolist(), experts.tolist()):
        seen[kind] += 1
        for e in chosen:
            visits[kind][e] += 1
    return torch.tensor([[number / total for number in row] for row, total in zip(visits, seen)])


def swiglu(u, gate, up, down):
    """down (silu(gate u) * up u)."""
    hidden = [g / (1 + math.exp(-g)) * x for g, x in zip(apply(gate, u), apply(up, u))]
    return apply(down, hidden)


def moe_layer(u, weights, n_group, topk_group, K, scale):
    """eq. 12 to 16 for one token u (C,), without the residual; an expert is a SwiGLU.

    weights: a layer's state, by the names that the released checkpoint gives them; routed experts
    stacked as gate_up_proj (E, 2I, C), gate rows first, and down_proj (E, C, I).
    """
    u = u.tolist()
    affinity = [1 / (1 + math.exp(-x)) for x in apply(weights["gate.weight"], u)]       # eq. 15
    bias = weights["gate.e_score_correction_bias"].double()
    chosen = choose_experts(torch.tensor(affinity, dtype=torch.float64), bias, n_group,
                            topk_group, K).nonzero().flatten().tolist()                 # eq. 16
    y = swiglu(u, *(weights[f"shared_experts.{name}_proj.weight"]
                    for name in ("gate", "up", "down")))
    for e in chosen:                                                                # eq. 12, 13
        g = scale * affinity[e] / sum(affinity[i] for i in chosen)
        gate, up = weights["experts.gate_up_proj"][e].chunk(2)
        out = swiglu(u, gate, up, weights["experts.down_proj"][e])
        y = [a + g * r for a, r in zip(y, out)]
    return torch.tensor(y, dtype=torch.float64)
