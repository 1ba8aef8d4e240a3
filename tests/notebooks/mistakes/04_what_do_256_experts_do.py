"""The typical mistakes in the exercises of 04_what_do_256_experts_do."""

import torch


def group_scores(affinity, bias, n_group):
    """sum of its two best"""
    return (affinity + bias).unflatten(-1, (n_group, -1)).amax(dim=-1)  # as in DeepSeek-V2


def gates(affinity, bias, K, scale):
    """affinity without bias"""
    best = (affinity + bias).topk(K)                    # and weighs with what it chose by
    weights = best.values / best.values.sum()
    return torch.zeros_like(affinity).scatter(0, best.indices, scale * weights)


def moe_output(u, shared, routed, affinity, experts, scale):
    """shared expert is never scaled"""
    weights = affinity[experts] / affinity[experts].sum()
    return scale * (shared @ u + weights @ (routed[experts] @ u))


def choose_experts(affinity, bias, n_group, topk_group, K):
    """lose even against a negative score"""
    choice = affinity + bias
    groups = choice.view(n_group, -1)
    score = groups.topk(2, dim=1).values.sum(dim=1)
    kept = torch.zeros(n_group, dtype=torch.bool)
    kept[score.topk(topk_group).indices] = True
    masked = groups.masked_fill(~kept[:, None], 0.0)    # 0 beats a negative score
    chosen = torch.zeros(len(affinity))
    chosen[masked.flatten().topk(K).indices] = 1
    return chosen
