"""Exercises of notebook 04: what do 256 experts do? Each has a hint in two steps."""

import oracles
import torch

from .verdict import Products, compare, in_one, normal, numbers


def in_groups(score):
    """Step 3 with another score of a group: groups (N, G, E/G) -> (N, G)."""
    return lambda s, b, G: score((s + b).unflatten(-1, (G, -1)))


def group_scores(student, hint=1):
    """One token in two groups of three by hand, then random ones with biases that matter."""
    by_hand = (torch.tensor([[0.9, 0.1, 0.2, 0.6, 0.6, 0.1]]),
               torch.tensor([0.0, 0.0, 0.0, -0.2, 0.0, 0.3]), 2)
    random = [(normal(N, E, seed=E).sigmoid(), normal(E, seed=N), groups)
              for N, E, groups in [(5, 16, 4), (3, 8, 4), (7, 30, 3)]]
    slips = [
        ("You take the best expert of each group alone, as in DeepSeek-V2. Add the two best.",
         in_groups(lambda groups: groups.amax(-1))),
        ("You add all experts of a group. Add the two best only.",
         in_groups(lambda groups: groups.sum(-1))),
        ("You leave out the bias. Groups are scored by affinity + bias, like experts.",
         lambda s, b, G: oracles.group_scores(s, 0 * b, G)),
        ("Your groups are not contiguous: the first E/G experts are group 0.",
         lambda s, b, G: (s + b).unflatten(-1, (-1, G)).topk(2, dim=1).values.sum(dim=1)),
    ]
    return compare(student, [by_hand, *random], oracles.group_scores, (
        "First add the bias to the affinities, then divide the row of each token into groups.",
        "(affinity + bias).unflatten(1, (n_group, -1)) has the shape (N, G, E/G). topk(2) gives "
        "the two best of each group in .values; add them."), hint,
        describe=lambda s, b, G: f"{listed(affinity=s, bias=b)}, n_group={G}", slips=slips)


def listed(**tensors):
    """Small tensors in full, as a reader would type them, and large ones by their shape."""
    return ", ".join(f"{name}={numbers(value) if value.numel() <= 8 else tuple(value.shape)}"
                     for name, value in tensors.items())


def gates_by(choose, weigh, total):
    """Gates with a mistake: choose and weigh by some score; total of (scores, chosen), times g."""
    def wrong(s, b, K, scale):
        chosen, score = choose(s, b).topk(K).indices, weigh(s, b)
        return torch.zeros_like(s).scatter(0, chosen, score[chosen] * total(score, chosen, scale))
    return wrong


def plain(s, b):
    return s


def biased(s, b):
    return s + b


def to_scale(score, chosen, scale):
    return scale / score[chosen].sum()


def gates(student, hint=1):
    """Three experts by hand, where the bias decides; then random ones, some biases large."""
    by_hand = torch.tensor([0.8, 0.2, 0.6]), torch.tensor([-0.7, 0.1, 0.0]), 2, 2.5
    random = [(normal(E, seed=E).sigmoid(), spread * normal(E, seed=E + 1), K, scale)
              for E, K, spread, scale in [(8, 3, 0.1, 2.5), (16, 4, 3.0, 2.5), (5, 5, 1.0, 1.0)]]
    slips = [
        ("You weight with the bias. The bias is used only to choose.",
         gates_by(biased, biased, to_scale)),
        ("You choose without the bias.", gates_by(plain, plain, to_scale)),
        ("You divide by the sum over all experts. Eq. 13 adds only the chosen ones.",
         gates_by(biased, plain, lambda score, chosen, scale: scale / score.sum())),
        ("Your gates sum to 1: multiply by scale.",
         gates_by(biased, plain, lambda score, chosen, scale: 1 / score[chosen].sum())),
        ("You do not divide by the sum of the chosen affinities.",
         gates_by(biased, plain, lambda score, chosen, scale: scale)),
    ]
    return compare(student, [by_hand, *random], oracles.gates, (
        "You need two different tensors: one to choose with, and one to weight with.",
        "(affinity + bias).topk(K).indices are the chosen experts. Their affinity without bias is "
        "divided by its sum and multiplied by scale. Write it into torch.zeros_like(affinity)."),
        hint, describe=lambda s, b, K, scale: f"{listed(affinity=s, bias=b)}, K={K}, scale={scale}",
        slips=slips)


def layer_with(routed_part, shared_scale=lambda scale: 1.0):
    """The layer with a mistake: routed_part(outputs (K, C), affinity, experts, scale) -> (C,)."""
    def wrong(u, shared, routed, s, experts, scale):
        outputs = routed[experts] @ u
        return shared_scale(scale) * shared @ u + routed_part(outputs, s, experts, scale)
    return wrong


def weighed(outputs, s, experts, scale):
    return scale * s[experts] / s[experts].sum() @ outputs


def moe_output(student, hint=1):
    """Two numbers by hand: shared doubles, expert 1 negates, expert 2 swaps; then random.

    Experts that are not chosen hold no numbers (NaN): who lets them compute gets no numbers either.
    Who computes with all of them, at once or one by one, and then takes the chosen ones is seen in
    the last case, where the outputs of all experts are many more numbers than a right answer needs.
    """
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    routed = torch.stack([torch.full((2, 2), torch.nan), -torch.eye(2), swap])
    by_hand = (torch.tensor([1.0, 3.0]), 2 * torch.eye(2), routed,
               torch.tensor([0.9, 0.2, 0.6]), torch.tensor([1, 2]), 2.0)
    cases = [by_hand]
    for C, E, experts in [(3, 4, [3, 0]), (5, 8, [6, 1, 4]), (3, 32, [7, 20])]:
        idle = torch.ones(E, dtype=torch.bool)
        idle[experts] = False
        matrices = normal(E, C, C, seed=C + 2)
        matrices[idle] = torch.nan
        cases.append((normal(C, seed=C), normal(C, C, seed=C + 1), matrices,
                      normal(E, seed=C + 3).sigmoid(), torch.tensor(experts), 2.5))

    def only_the_chosen(*case):
        E, C = case[2].shape[:2]
        with Products() as seen:
            got = student(*case)
        formed = sum(torch.Size(shape).numel() for shape in seen.shapes)
        if formed >= E * C and E > 8:
            raise ValueError("experts compute that were not chosen: your products have "
                             f"{formed} numbers, but only {len(case[4])} of {E} experts were "
                             "chosen")
        if got is not None and in_one(got).isnan().any():
            raise ValueError("an expert that was not chosen has computed: its matrix is NaN")
        return got

    slips = [
        ("You scale the shared expert too. It has no gate, and scale does not apply to it.",
         layer_with(weighed, shared_scale=lambda scale: scale)),
        ("The shared expert is missing.", layer_with(weighed, shared_scale=lambda scale: 0.0)),
        ("You add the chosen experts without their gates.",
         layer_with(lambda outputs, s, experts, scale: outputs.sum(dim=0))),
        ("You forgot scale.", layer_with(lambda outputs, s, experts, scale:
                                         weighed(outputs, s, experts, 1.0))),
        ("Your result includes u: the block adds it later.",
         lambda u, *rest: u + layer_with(weighed)(u, *rest)),
        ("You do not divide by the sum of the chosen affinities.",
         layer_with(lambda outputs, s, experts, scale: scale * s[experts] @ outputs)),
        ("You use the transposed matrices. An expert is matrix @ u.",
         lambda u, shared, routed, *rest: layer_with(weighed)(u, shared.mT, routed.mT, *rest)),
    ]
    return compare(only_the_chosen, cases, oracles.moe_output, (
        "The shared expert is never scaled. The gate of a chosen expert is scale * s, divided by "
        "the sum of the chosen s.",
        "routed[experts] has the chosen matrices (K, C, C), and routed[experts] @ u their outputs "
        "(K, C). With the gates g (K,) their weighted sum is g @ outputs."), hint,
        describe=lambda u, shared, routed, s, experts, scale:
        f"{listed(u=u, affinity=s, experts=experts)}, scale={scale}", slips=slips)


def visit_share(student, hint=1):
    """Three tokens of two kinds by hand; then random ones. Every kind occurs."""
    cases = [(torch.tensor([0, 1, 1]), torch.tensor([[0, 2], [2, 1], [2, 0]]), 2, 3)]
    for N, K, kinds, E in [(20, 2, 3, 5), (50, 4, 4, 16), (9, 1, 2, 3)]:
        kind = torch.cat([torch.arange(kinds), normal(N - kinds, seed=N).abs().long() % kinds])
        cases.append((kind, normal(N, E, seed=K).topk(K).indices, kinds, E))

    def counted(kinds, experts, n_kinds, n_experts):
        visits = torch.zeros(n_kinds, n_experts)
        for kind, chosen in zip(kinds, experts):
            visits[kind, chosen] += 1
        return visits

    slips = [
        ("You count visits. Divide each count by the number of tokens of its kind.", counted),
        ("You give the share of an expert's visitors that are of a kind. The exercise asks for the "
         "share of a kind's tokens that visit the expert.",
         lambda *case: counted(*case) / counted(*case).sum(dim=0).clamp(min=1)),
        ("Each of your rows sums to 1. But a token visits K experts, so a row sums to K.",
         lambda *case: counted(*case) / counted(*case).sum(dim=1, keepdim=True)),
        ("You divide by the number of all tokens. Divide by the number of tokens of the kind.",
         lambda kinds, *rest: counted(kinds, *rest) / len(kinds)),
    ]
    return compare(student, cases, oracles.visit_share, (
        "Take one kind after the other. Which rows of experts belong to its tokens?",
        "experts[kinds == k].flatten().bincount(minlength=n_experts) counts the visits of kind k. "
        "Divide by the number of its tokens, and stack the rows."), hint,
        describe=lambda kinds, experts, n_kinds, n_experts:
        f"kinds={numbers(kinds)}, experts={experts.tolist()}" if len(kinds) < 4 else
        f"{len(kinds)} tokens, {n_kinds} kinds, {n_experts} experts", slips=slips)


def chosen_by(score, mask, bias=1.0):
    """Step 2 to 4 with a mistake: the score of a group, the mask, or how far the bias counts."""
    def wrong(s, b, G, kept_groups, K):
        groups = (s + bias * b).view(G, -1)
        kept = score(groups).topk(kept_groups).indices
        out = torch.ones(G, 1, dtype=torch.bool).index_fill(0, kept, False)
        chosen = groups.masked_fill(out, mask).flatten().topk(K).indices
        return torch.zeros(len(s)).scatter(0, chosen, 1.0)
    return wrong


def two_best(groups):
    return groups.topk(2).values.sum(-1)


def choose_experts(student, hint=1):
    """The token on which the colleague's mask goes wrong, then biases of both signs."""
    lost = float("-inf")
    by_hand = (torch.tensor([0.60, 0.30, 0.20, 0.15, 0.55, 0.50, 0.10, 0.05]),
               torch.tensor([0.10, -0.50, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]), 4, 2, 4)
    # Group 0 has the largest sum, group 1 the best expert, group 2 the two best.
    sums = (torch.tensor([0.5, 0.5, 0.5, 0.9, 0.1, 0.1, 0.7, 0.6, 0.1]), torch.zeros(9), 3, 1, 2)
    random = [(normal(E, seed=seed).sigmoid(), normal(E, seed=seed + 9) - 1, groups, kept, K)
              for seed, E, groups, kept, K in [(1, 12, 3, 2, 5), (2, 16, 4, 2, 4), (3, 6, 3, 1, 2),
                                               (4, 32, 8, 4, 8)]]
    slips = [
        ("Experts of a forbidden group are chosen. Their 0 is larger than a negative score.",
         chosen_by(two_best, 0.0)),
        ("Experts of a forbidden group are chosen. A score can be lower than -1.",
         chosen_by(two_best, -1.0)),
        ("You keep groups by their best expert alone. Add the two best.",
         chosen_by(lambda groups: groups.amax(-1), lost)),
        ("You keep groups by the sum of all their experts. Add the two best only.",
         chosen_by(lambda groups: groups.sum(-1), lost)),
        ("You leave out the bias.", chosen_by(two_best, lost, bias=0.0)),
        ("You keep every group.",
         lambda s, b, G, kept, K: chosen_by(two_best, lost)(s, b, G, G, K)),
    ]
    deep = by_hand[0], by_hand[1] - 100, 4, 2, 4           # every score is far below -1
    return compare(student, [by_hand, sums, *random, deep], oracles.choose_experts, (
        "What is s + b of expert 1 for the second token? Which number does the colleague give to "
        "forbidden experts?",
        "A forbidden expert must lose against every number, however negative: "
        'float("-inf").'), hint,
        describe=lambda s, b, G, kept, K:
        f"{listed(affinity=s, bias=b)}, n_group={G}, topk_group={kept}, K={K}", slips=slips)
