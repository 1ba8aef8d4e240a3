"""Exercises of notebook 05: who keeps the experts busy? Each has a hint in two steps."""

import oracles
import torch

from .verdict import compare, normal


def max_violation(student, hint=1):
    """By hand: (5, 1, 2, 0), mean 2; then layers with unequal sums, and others."""
    slips = [
        ("You give the busiest load divided by the mean. Subtract 1.",
         lambda load: load.double().amax(-1) / load.double().mean(-1)),
        ("You give the difference in tokens. Divide it by the mean.",
         lambda load: load.double().amax(-1) - load.double().mean(-1)),
        ("You take the mean over all layers. Each layer is measured by its own mean.",
         lambda load: load.double().amax(-1) / load.double().mean() - 1),
        ("You take the busiest expert of all layers. Each layer has its own.",
         lambda load: load.double().amax() / load.double().mean(-1) - 1),
        ("You also count experts with too few tokens. MaxVio looks at the busiest expert only.",
         lambda load: (load.double() / load.double().mean(-1, keepdim=True) - 1).abs().amax(-1)),
        ("You take the mean over the layers at the end. Return one number per layer.",
         lambda load: (load.double().amax(-1) / load.double().mean(-1) - 1).mean()),
    ]
    cases = [(torch.tensor([[5, 1, 2, 0]]),), (torch.tensor([[5, 1, 2, 0], [6, 6, 6, 2]]),),
             (torch.tensor([[3, 3, 3, 3], [0, 0, 9, 3]]),),
             ((20 * normal(3, 7, seed=1)).abs().long(),)]
    return compare(student, cases, oracles.max_violation, (
        "For each layer: divide the largest load by the mean load, and subtract 1.",
        "Begin with load.double(), because whole numbers have no mean in torch. Then amax(dim=-1) "
        "and mean(dim=-1): both run over the experts, which are the last axis."), hint,
        describe=lambda load: f"load={load.tolist()}", slips=slips)


def worst_violation(student, hint=1):
    """By hand: all tokens at 2 of 4 experts, twice the mean each."""
    slips = [
        ("An expert cannot get all choices: a token uses K different experts.",
         lambda routed, chosen: routed - 1),
        ("This is the largest load divided by the mean. MaxVio is 1 less.",
         lambda routed, chosen: routed / chosen),
        ("You round down: the number need not be whole.",
         lambda routed, chosen: routed // chosen - 1),
        ("You exchanged the two numbers: the mean load is smaller than N.",
         lambda routed, chosen: chosen / routed - 1),
    ]
    cases = [(4, 2), (16, 2), (10, 4), (64, 6), (256, 8)]
    return compare(student, cases, oracles.worst_violation, (
        "Let all N tokens choose the same experts. How many tokens does each of these get?",
        "N tokens choose K experts each: that is N K choices of E experts, so the mean is N K / E. "
        "The busiest expert has N tokens."), hint,
        describe=lambda routed, chosen: f"routed={routed}, chosen={chosen}", slips=slips)


def bias_step(student, hint=1):
    """By hand: (5, 1, 2, 0) moves b by -, +, 0, +; then biases that are not 0."""
    def moved(step):
        return lambda bias, load, gamma: bias + gamma * step(load.double().mean() - load)

    slips = [
        ("The wrong way round: the overloaded expert must go down.",
         moved(lambda lack: -lack.sign())),
        ("Your step grows with the difference. Only its sign counts.", moved(lambda lack: lack)),
        ("An expert exactly at the mean must stay where it is.",
         moved(lambda lack: torch.where(lack < 0, -1, 1))),
        ("An expert exactly at the mean must stay where it is.",
         moved(lambda lack: torch.where(lack > 0, 1, -1))),
        ("You give only the step: add it to the old bias.",
         lambda bias, load, gamma: gamma * (load.double().mean() - load).sign()),
        ("You move only the busiest expert. All biases move, each by its own load.",
         lambda bias, load, gamma: bias - gamma * (load == load.max())),
    ]
    # 0.25 and whole numbers: the mean is exact, so that one expert is exactly at it.
    cases = [(torch.zeros(4), torch.tensor([5, 1, 2, 0]), 0.001),
             (torch.tensor([0.5, -0.5, 1.0]), torch.tensor([2, 7, 3]), 0.25),
             (normal(9, seed=2), (20 * normal(9, seed=3)).abs().long(), 0.25)]
    return compare(student, cases, oracles.bias_step, (
        "Compare each load with the mean load. The bias of an expert with more goes down by gamma, "
        "that of an expert with less goes up by gamma.",
        "load.double() first. One line is enough: bias + gamma * (...).sign(). Which difference is "
        "positive for an expert that got too few tokens?"), hint,
        describe=lambda bias, load, gamma: f"load={load.tolist()}, gamma={gamma:g}, bias="
        f"{[round(b, 3) for b in bias.tolist()]}", slips=slips)


def sequence_balance(student, hint=1):
    """By hand: the four tokens of the notebook, 1.2566; then others."""
    def term(f=None, P=None):
        def value(affinity, K):
            T, E = affinity.shape
            counts = affinity.topk(K, dim=-1).indices.flatten().bincount(minlength=E)
            fair = counts * E / (K * T) if f is None else f(counts, T, E, K)
            liked = P(affinity) if P else (affinity / affinity.sum(-1, keepdim=True)).mean(0)
            return (fair * liked).sum()
        return value

    slips = [
        ("Eq. 19 is missing: each token's row is divided by its own sum before the mean.",
         term(P=lambda s: s.mean(0))),
        ("You divide by the sum of a column; eq. 19 divides a token's row by the sum of this row.",
         term(P=lambda s: (s / s.sum(0)).mean(0))),
        *[("Your f lacks a factor: eq. 18 multiplies the count by E / (K T), since a token fills K "
           "places.", term(f=f))
          for f in (lambda counts, T, E, K: counts, lambda counts, T, E, K: counts * E / T,
                    lambda counts, T, E, K: counts / T, lambda counts, T, E, K: counts / (K * T))],
    ]
    s = torch.tensor([[.9, .6, .2, .1], [.8, .3, .5, .1], [.7, .2, .4, .6], [.6, .9, .1, .3]])
    idle = torch.tensor([[.9, .8, .1], [.7, .6, .2]])    # the last expert is never chosen
    cases = [(s, 2), (idle, 2), (normal(5, 7, seed=4).sigmoid(), 3)]
    return compare(student, cases, oracles.sequence_balance, (
        "Three parts: the counts (eq. 18), the shares of each token (eq. 19), their mean over the "
        "tokens (eq. 20).",
        "affinity.topk(K, dim=-1).indices, then flatten() and bincount(minlength=E) give the "
        "counts; affinity.sum(dim=-1, keepdim=True) gives the sum of each row."), hint,
        describe=lambda affinity, K: f"affinity of {len(affinity)} tokens to {affinity.shape[1]} "
        f"experts, K={K}", slips=slips)


def update_once(student, hint=1):
    """By hand: totals 11, 7, 7, 7, mean 8; then others."""
    def lacks(micro_loads):
        return micro_loads.double().mean(-1, keepdim=True) - micro_loads         # (M, E)

    slips = [
        ("This is still one step for each micro-batch. Add up the micro-batches first.",
         lambda bias, loads, gamma: bias + gamma * lacks(loads).sign().sum(0)),
        ("Here each micro-batch counts the same, with few tokens or with many.",
         lambda bias, loads, gamma: bias + gamma * lacks(loads).sign().sum(0).sign()),
        ("You use the last micro-batch only.",
         lambda bias, loads, gamma: bias + gamma * lacks(loads)[-1].sign()),
        ("The wrong way round: the overloaded expert must go down.",
         lambda bias, loads, gamma: bias - gamma * lacks(loads).sum(0).sign()),
    ]
    cases = [(torch.zeros(4), torch.tensor([[8, 0, 0, 0], [1, 3, 2, 2], [1, 2, 3, 2],
                                            [1, 2, 2, 3]]), 0.001),
             (torch.tensor([0.5, 0.0, -0.5]), torch.tensor([[9, 0, 0], [1, 4, 4]]), 0.25),
             (torch.zeros(3), torch.tensor([[5, 1, 0], [1, 3, 2]]), 0.25),     # one at the mean, 4
             (normal(6, seed=5), (20 * normal(3, 6, seed=6)).abs().long(), 0.125)]
    return compare(student, cases, oracles.update_once, (
        "The sign of a sum is not the sum of the signs. What should be added up, and when?",
        "micro_loads.sum(dim=0) is the load of the whole step. Take one step of the bias with it."),
        hint, describe=lambda bias, micro_loads, gamma: f"micro_loads={micro_loads.tolist()}, "
        f"gamma={gamma:g}", slips=slips)
