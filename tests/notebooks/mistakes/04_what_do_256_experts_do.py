"""Typical mistakes for the exercises of 04_what_do_256_experts_do.

Those with a second name are further slips that the checker names.
"""

import torch


def group_scores(affinity, bias, n_group):
    """affinity=[0.9, 0.1, 0.2, 0.6, 0.6, 0.1], bias=[0, 0, 0, -0.2, 0, 0.3], n_group=2: expected
    [1.1, 1], got [0.9, 0.6]. You take the best expert of each group alone, as in DeepSeek-V2"""
    return (affinity + bias).unflatten(-1, (n_group, -1)).amax(dim=-1)


def group_scores__of_all(affinity, bias, n_group):
    """got [1.2, 1.4]. You add all experts of a group."""
    return [[sum(group) for group in row.chunk(n_group)] for row in (affinity + bias).double()]


def group_scores__no_bias(affinity, bias, n_group):
    """got [1.1, 1.2]. You leave out the bias."""
    return affinity.unflatten(-1, (n_group, -1)).topk(2).values.sum(dim=-1)


def group_scores__strided(affinity, bias, n_group):
    """Your groups are not contiguous: the first E/G experts are group 0."""
    choice = affinity + bias
    return torch.stack([choice[:, g::n_group].topk(2).values.sum(-1) for g in range(n_group)], 1)


def group_scores__transposed(affinity, bias, n_group):
    """expected shape (1, 2), got (2, 1)."""
    return (affinity + bias).unflatten(-1, (n_group, -1)).topk(2).values.sum(dim=-1).T


def gates(affinity, bias, K, scale):
    """affinity=[0.8, 0.2, 0.6], bias=[-0.7, 0.1, 0], K=2, scale=2.5: expected [0, 0.625, 1.875],
    got [0, 0.8333333, 1.666667]. You weight with the bias."""
    best = (affinity + bias).topk(K)
    return torch.zeros_like(affinity).scatter(0, best.indices,
                                              scale * best.values / best.values.sum())


def gates__no_bias(affinity, bias, K, scale):
    """got [1.428571, 0, 1.071429]. You choose without the bias."""
    best = affinity.topk(K)
    return torch.zeros_like(affinity).scatter(0, best.indices,
                                              scale * best.values / best.values.sum())


def gates__over_all(affinity, bias, K, scale):
    """got [0, 0.3125, 0.9375]. You divide by the sum over all experts"""
    chosen = (affinity + bias).topk(K).indices.tolist()
    weights = scale * affinity / affinity.sum()
    return [weights[e] if e in chosen else 0 for e in range(len(affinity))]    # a mixed list


def gates__not_scaled(affinity, bias, K, scale):
    """got [0, 0.25, 0.75]. Your gates sum to 1: multiply by scale."""
    chosen = (affinity + bias).topk(K).indices
    return torch.zeros_like(affinity).scatter(0, chosen, affinity[chosen] / affinity[chosen].sum())


def gates__not_divided(affinity, bias, K, scale):
    """got [0, 0.5, 1.5]. You do not divide by the sum of the chosen affinities."""
    chosen = (affinity + bias).topk(K).indices
    return torch.zeros_like(affinity).scatter(0, chosen, scale * affinity[chosen])


def gates__of_the_chosen(affinity, bias, K, scale):
    """expected shape (3,), got (2,)."""
    chosen = (affinity + bias).topk(K).indices
    return scale * affinity[chosen] / affinity[chosen].sum()


def moe_output(u, shared, routed, affinity, experts, scale):
    """u=[1, 3], affinity=[0.9, 0.2, 0.6], experts=[1, 2], scale=2.0: expected [6, 6], got [8, 12].
    You scale the shared expert too"""
    weights = affinity[experts] / affinity[experts].sum()
    return scale * (shared @ u + weights @ (routed[experts] @ u))


def moe_output__no_shared(u, shared, routed, affinity, experts, scale):
    """got [4, 0]. The shared expert is missing."""
    weights = scale * affinity[experts] / affinity[experts].sum()
    return weights @ (routed[experts] @ u)


def moe_output__no_gates(u, shared, routed, affinity, experts, scale):
    """got [4, 4]. You add the chosen experts without their gates."""
    return shared @ u + sum(routed[e] @ u for e in experts)


def moe_output__not_scaled(u, shared, routed, affinity, experts, scale):
    """got [4, 6]. You forgot scale."""
    weights = affinity[experts] / affinity[experts].sum()
    return shared @ u + weights @ (routed[experts] @ u)


def moe_output__transposed(u, shared, routed, affinity, experts, scale):
    """You use the transposed matrices."""
    weights = scale * affinity[experts] / affinity[experts].sum()
    return u @ shared + weights @ (u @ routed[experts])


def moe_output__all_compute(u, shared, routed, affinity, experts, scale):
    """an expert that was not chosen has computed: its matrix is NaN."""
    weights = torch.zeros_like(affinity)
    weights[experts] = scale * affinity[experts] / affinity[experts].sum()
    return shared @ u + weights @ (routed @ u)


def moe_output__with_u(u, shared, routed, affinity, experts, scale):
    """got [7, 9]. Your result includes u: the block adds it later."""
    weights = scale * affinity[experts] / affinity[experts].sum()
    return u + shared @ u + weights @ (routed[experts] @ u)


def moe_output__not_divided(u, shared, routed, affinity, experts, scale):
    """got [5.2, 6]. You do not divide by the sum of the chosen affinities."""
    return shared @ u + scale * affinity[experts] @ (routed[experts] @ u)


def moe_output__all_compute_and_few_are_used(u, shared, routed, affinity, experts, scale):
    """experts compute that were not chosen: your products have"""
    weights = scale * affinity[experts] / affinity[experts].sum()
    return shared @ u + weights @ (routed @ u)[experts]


def moe_output__each_computes_and_few_are_used(u, shared, routed, affinity, experts, scale):
    """experts compute that were not chosen: your products have"""
    outputs = [matrix @ u for matrix in routed]
    weights = scale * affinity[experts] / affinity[experts].sum()
    return shared @ u + sum(w * outputs[e] for w, e in zip(weights, experts.tolist()))


def visits(kinds, experts, n_kinds, n_experts):
    return torch.stack([experts[kinds == k].flatten().bincount(minlength=n_experts)
                        for k in range(n_kinds)])


def visit_share(kinds, experts, n_kinds, n_experts):
    """kinds=[0, 1, 1], experts=[[0, 2], [2, 1], [2, 0]]: expected [1, 0, 1, 0.5, 0.5, 1], got
    [1, 0, 1, 1, 1, 2]. You count visits."""
    return visits(kinds, experts, n_kinds, n_experts)


def visit_share__of_visitors(kinds, experts, n_kinds, n_experts):
    """got [0.5, 0, 0.3333333, 0.5, 1, 0.6666667]. You give the share of an expert's visitors"""
    counts = visits(kinds, experts, n_kinds, n_experts)
    return counts / counts.sum(dim=0)


def visit_share__of_visits(kinds, experts, n_kinds, n_experts):
    """got [0.5, 0, 0.5, 0.25, 0.25, 0.5]. Each of your rows sums to 1."""
    counts = visits(kinds, experts, n_kinds, n_experts)
    return counts / counts.sum(dim=1, keepdim=True)


def visit_share__of_all_tokens(kinds, experts, n_kinds, n_experts):
    """You divide by the number of all tokens."""
    return visits(kinds, experts, n_kinds, n_experts) / len(kinds)


def masked_by(number):
    """A router whose forbidden experts get this number."""
    def choose(affinity, bias, n_group, topk_group, K):
        groups = (affinity + bias).view(n_group, -1)
        score = groups.topk(2, dim=1).values.sum(dim=1)
        kept = torch.zeros(n_group, dtype=torch.bool)
        kept[score.topk(topk_group).indices] = True
        chosen = torch.zeros(len(affinity))
        chosen[groups.masked_fill(~kept[:, None], number).flatten().topk(K).indices] = 1
        return chosen
    return choose


def choose_experts(affinity, bias, n_group, topk_group, K):
    """Their 0 is larger than a negative score."""
    return masked_by(0.0)(affinity, bias, n_group, topk_group, K)


def choose_experts__a_small_number(affinity, bias, n_group, topk_group, K):
    """A score can be lower than -1."""
    return masked_by(-1.0)(affinity, bias, n_group, topk_group, K)


def choose_experts__a_somewhat_smaller_number(affinity, bias, n_group, topk_group, K):
    """Experts of a forbidden group are chosen."""
    return masked_by(-10.0)(affinity, bias, n_group, topk_group, K)


def choose_experts__best_alone(affinity, bias, n_group, topk_group, K):
    """affinity=(9,), bias=(9,), n_group=3, topk_group=1, K=2: right shape, values off by up to 1.
    You keep groups by their best expert alone."""
    groups = (affinity + bias).view(n_group, -1)
    out = torch.ones(n_group, 1, dtype=torch.bool)
    out[groups.amax(dim=1).topk(topk_group).indices] = False
    experts = groups.masked_fill(out, float("-inf")).flatten().topk(K).indices.tolist()
    return [int(e in experts) for e in range(len(affinity))]


def choose_experts__no_bias(affinity, bias, n_group, topk_group, K):
    """You leave out the bias."""
    return masked_by(float("-inf"))(affinity, 0 * bias, n_group, topk_group, K)


def choose_experts__all_groups(affinity, bias, n_group, topk_group, K):
    """You keep every group."""
    return torch.zeros(len(affinity)).scatter(0, (affinity + bias).topk(K).indices, 1.0)
