"""Oracles of notebook 05: who keeps the experts busy?"""

import torch


def max_violation(load):
    """MaxVio of each layer, for loads (layers, E): arXiv 2408.15664, eq. 4."""
    rows = []
    for row in load.tolist():
        mean = sum(row) / len(row)
        rows.append((max(row) - mean) / mean)
    return torch.tensor(rows, dtype=torch.float64)


def worst_violation(routed, chosen):
    """MaxVio if all N tokens choose the same K of E experts: N each, where the mean is N K / E."""
    return 1 / (chosen / routed) - 1


def bias_step(bias, load, gamma):
    """The new biases, case by case: arXiv 2408.15664, algorithm 1."""
    mean = sum(load.tolist()) / len(load)
    moved = []
    for b, count in zip(bias.tolist(), load.tolist(), strict=True):
        if count > mean:
            b -= gamma
        elif count < mean:
            b += gamma
        moved.append(b)
    return torch.tensor(moved, dtype=torch.float64)


def sequence_balance(affinity, chosen):
    """Eq. 17-20 without alpha, for one sequence: affinity (T, E), `chosen` experts per token."""
    T, E = affinity.shape
    counts, shares = [0] * E, [0.0] * E
    for row in affinity.tolist():
        for expert in sorted(range(E), key=lambda i: -row[i])[:chosen]:
            counts[expert] += 1
        for expert in range(E):
            shares[expert] += row[expert] / sum(row) / T
    return sum(counts[i] * E / (chosen * T) * shares[i] for i in range(E))


def update_once(bias, micro_loads, gamma):
    """One bias step from the summed load of all micro-batches; micro_loads (M, E)."""
    whole = [sum(column) for column in zip(*micro_loads.tolist(), strict=True)]
    return bias_step(bias, torch.tensor(whole), gamma)


def biased_gates(affinity, bias, chosen):
    """Eq. 13-16 for one token: {expert: weight}. The bias only chooses."""
    s, b = affinity.tolist(), bias.tolist()
    best = sorted(range(len(s)), key=lambda i: -(s[i] + b[i]))[:chosen]
    return {i: s[i] / sum(s[j] for j in best) for i in best}
