"""Solutions to 04_what_do_256_experts_do: read them after you have tried."""

import torch


def group_scores(affinity, bias, n_group):
    """The bias counts here too, since it decides what will be chosen.

    Two, because at full size 8 experts over at most 4 groups make two for each.
    """
    groups = (affinity + bias).unflatten(-1, (n_group, -1))            # (N, G, E/G)
    return groups.topk(2, dim=-1).values.sum(dim=-1)                   # (N, G)


def gates(affinity, bias, K, scale):
    """The bias chooses and never weighs: the output must not depend on how busy an expert is."""
    experts = (affinity + bias).topk(K).indices
    weights = affinity[experts] / affinity[experts].sum()
    return torch.zeros_like(affinity).scatter(0, experts, scale * weights)


def moe_output(u, shared, routed, affinity, experts, scale):
    """Only routed experts have gates. The shared one works for every token, at full strength.

    The matrices are chosen before they are multiplied, so that the others cost nothing.
    """
    weights = scale * affinity[experts] / affinity[experts].sum()      # (K,)
    outputs = routed[experts] @ u                                      # (K, C)
    return shared @ u + weights @ outputs


def visit_share(kinds, experts, n_kinds, n_experts):
    """Each kind is divided by its own number of tokens, so a rare kind can be compared as well."""
    rows = []
    for k in range(n_kinds):
        mine = experts[kinds == k]                                     # (tokens of the kind, K)
        rows.append(mine.flatten().bincount(minlength=n_experts) / len(mine))
    return torch.stack(rows)                                           # each row sums to K


def choose_experts(affinity, bias, n_group, topk_group, K):
    """A biased score may be negative, and then 0 beats it: only -inf loses against all."""
    groups = (affinity + bias).view(n_group, -1)                       # (G, E/G)
    score = groups.topk(2, dim=1).values.sum(dim=1)                    # (G,)
    kept = torch.zeros(n_group, dtype=torch.bool)
    kept[score.topk(topk_group).indices] = True
    masked = groups.masked_fill(~kept[:, None], float("-inf"))         # (G, E/G)
    chosen = torch.zeros(len(affinity))
    chosen[masked.flatten().topk(K).indices] = 1
    return chosen
