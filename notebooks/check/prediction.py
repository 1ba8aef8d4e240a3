"""Exercises of notebook 06: can it think two tokens ahead? Each has a hint in two steps."""

import oracles
import torch

from .verdict import compare, normal


def joined_tokens(student, hint=1):
    """By hand: the table of the notebook, depth 1 of four inputs; then deeper and longer ones."""
    def pairs(positions, joined, target):
        return lambda T, k: torch.tensor([[joined(i, k), target(i, k)] for i in positions(T, k)])

    def all_known(T, k):
        return range(T - k)

    slips = [
        ("Your modules predict the token that they are given, so they only need to copy it.",
         pairs(all_known, lambda i, k: i + k, lambda i, k: i + k)),
        ("Your modules join a token that the state below has already read, so one token is never "
         "joined.", pairs(all_known, lambda i, k: i + k - 1, lambda i, k: i + k + 1)),
        ("Your row has a position for each of the T inputs, but the last states have no known "
         "token to join.",
         pairs(lambda T, k: range(T), lambda i, k: i + k, lambda i, k: i + k + 1)),
        ("Your positions begin at k. They begin at 0 at every depth; only the tokens move.",
         pairs(lambda T, k: range(k, T), lambda i, k: i + k, lambda i, k: i + k + 1)),
        ("These are the pairs of depth 1, whatever k is.",
         pairs(lambda T, k: range(T - 1), lambda i, k: i + 1, lambda i, k: i + 2)),
        ("The two numbers of each pair are in the wrong order.",
         pairs(all_known, lambda i, k: i + k + 1, lambda i, k: i + k)),
    ]
    return compare(student, [(4, 1), (4, 2), (7, 3), (9, 1)], oracles.joined_tokens, (
        "Up to which token has the state of depth k - 1 at position i read? Join the one after it, "
        "and predict the one after that.",
        "At position i, depth k joins token i + k and predicts token i + k + 1. The tokens x_0 to "
        "x_(T-1) are the inputs, so i ends at T - k - 1."), hint,
        describe=lambda T, k: f"T={T}, k={k}, row by row", slips=slips)


def mtp_loss(student, hint=1):
    """By hand: 1/2, 1/4 and 1/8 in depth 1; then more depths. Eq. 24 and 25."""
    by_hand = torch.tensor([[1 / 2, 1 / 2], [1 / 4, 3 / 4], [1 / 8, 7 / 8]],
                           dtype=torch.float64).log()
    cases = [([by_hand], torch.zeros(5, dtype=torch.long), 0.3)]
    for T, V, depths in ((6, 5, 2), (9, 4, 3)):
        logits = [normal(T - k, V, seed=10 * T + k) for k in range(1, depths + 1)]
        cases.append((logits, normal(T + 1, seed=V).mul(10).long().abs() % V, 0.1))

    def variant(target=1, over=lambda T, k: T, depths=len, lam=lambda weight: weight):
        def loss(logits, tokens, weight):
            T, total = len(tokens) - 1, 0.0
            for k, rows in enumerate(logits, start=1):
                wanted = tokens[k + target:][:len(rows)].tolist()
                chances = rows.double().log_softmax(-1)
                total -= sum(row[n] for row, n in zip(chances, wanted)) / over(T, k)
            return torch.as_tensor(lam(weight) / depths(logits) * total)
        return loss

    slips = [
        ("You divide by the T - k terms that exist, but eq. 24 divides by T.",
         variant(over=lambda T, k: T - k)),
        ("Your targets are one place too early: at position i, depth k predicts token i + k + 1.",
         variant(target=0)),
        ("You add the depths up, but eq. 25 takes their mean.", variant(depths=lambda logits: 1)),
        ("Your loss does not contain lambda, the weight.", variant(lam=lambda weight: 1.0)),
        ("You add up all terms and never divide by T.", variant(over=lambda T, k: 1)),
    ]
    return compare(student, cases, oracles.mtp_loss, (
        "Which tokens are the targets of depth k, and by what does eq. 24 divide their sum?",
        'The targets are tokens[k + 1:]. F.cross_entropy(rows, targets, reduction="sum") adds up '
        "-log p; divide by T = len(tokens) - 1, take the mean over depths, times the weight."),
        hint, describe=lambda logits, tokens, weight: f"T={len(tokens) - 1}, depths="
        f"{len(logits)}, weight={weight}", slips=slips)


def verify_greedy(student, hint=1):
    """By hand: three rows of the notebook; then drafts of which some, all or none are accepted."""
    verdicts = torch.eye(5)[[1, 3, 2]]
    cases = [(torch.tensor(drafts), verdicts) for drafts in ([1, 3], [1, 0], [0, 3])]
    for k, accepted in ((4, 2), (4, 4), (3, 0)):
        logits = normal(k + 1, 6, seed=k)
        drafts = logits.argmax(-1)[:k].clone()
        if accepted < k:
            drafts[accepted] = (drafts[accepted] + 1) % 6
        cases.append((drafts, logits))

    def right(drafts, logits):
        return (drafts == logits.argmax(-1)[:-1]).long()

    def unchanged(drafts, logits):
        return right(drafts, logits).cumprod(0).sum()

    slips = [
        ("You return the accepted drafts only. The main model's own token after them is free.",
         lambda drafts, logits: drafts[:unchanged(drafts, logits)]),
        ("You count all matches, but must stop at the first draft that differs.",
         lambda drafts, logits: logits.argmax(-1)[:right(drafts, logits).sum() + 1]),
        ("You continue after the first draft that differs. What was read after a wrong token is "
         "useless.", lambda drafts, logits: logits.argmax(-1)),
        ("You keep the draft that differs. The main model's own token must replace it.",
         lambda drafts, logits: torch.cat([drafts, logits.argmax(-1)[-1:]])[
             :unchanged(drafts, logits) + 1]),
    ]
    return compare(student, cases, oracles.verify_greedy, (
        "Which drafts equal the main model's choice, up to the first that does not? And which "
        "token comes after them?",
        "logits.argmax(-1) are the k + 1 choices. If n drafts are accepted, the answer is the "
        "first n + 1 choices; (drafts == choices[:-1]).long().cumprod(0).sum() is n."), hint,
        describe=lambda drafts, logits: f"drafts {drafts.tolist()}, the main model chooses "
        f"{logits.argmax(-1).tolist()}", slips=slips)


def replacement(student, hint=1):
    """By hand: the five words of the notebook; then random pairs of distributions."""
    p = torch.tensor([0.4, 0.1, 0.3, 0.2, 0])
    q = torch.tensor([0.2, 0.4, 0.3, 0.05, 0.05])
    cases = [(p, q)] + [tuple(normal(2, size, seed=size).softmax(-1)) for size in (3, 7)]

    def share(weights):
        return weights / weights.sum()

    slips = [
        ("You draw from p. But words that were accepted often enough must not be drawn again.",
         lambda p, q: p),
        ("Your numbers are what each word still needs, but they do not sum to 1.",
         lambda p, q: (p - q).clamp(min=0)),
        ("Your numbers are large for words that q gives too often. Exchange p and q.",
         lambda p, q: share((q - p).clamp(min=0))),
        ("You also count words that q gives too often. They need nothing more.",
         lambda p, q: share((p - q).abs())),
        ("You draw from p among the words that need more. Draw each in proportion to what it still "
         "needs.", lambda p, q: share(p * (p > q))),
    ]
    return compare(student, cases, oracles.replacement, (
        "Accepted drafts give each word min(p, q). How much does each word then still need to "
        "reach p?",
        "Each word needs max(p - q, 0): (p - q).clamp(min=0). Divide this by its sum, so that "
        "it is a distribution."), hint,
        describe=lambda p, q: f"{len(p)} words", slips=slips)


def tokens_per_step(student, hint=1):
    """By hand: one draft and two drafts, half of them accepted; then other rates."""
    cases = [(torch.tensor([0.5]),), (torch.tensor([0.5, 0.5]),),
             (torch.tensor([0.8, 0.75, 0.9]),), (normal(4, seed=1).sigmoid(),)]
    slips = [
        ("You add the rates. But the second draft is judged only where the first was accepted.",
         lambda acceptance: 1 + acceptance.sum()),
        ("You forget the main model's own token, which every step gives.",
         lambda acceptance: acceptance.cumprod(0).sum()),
        ("You count drafts only where all of them are accepted.",
         lambda acceptance: 1 + len(acceptance) * acceptance.prod()),
        ("You count one draft at most.", lambda acceptance: 1 + acceptance.prod()),
    ]
    return compare(student, cases, oracles.tokens_per_step, (
        "In what share of all steps is the second draft judged at all, and in what share accepted?",
        "Draft n counts only if all drafts before it were accepted too, so the rates are "
        "multiplied: acceptance.cumprod(0). And each step gives one token in any case."), hint,
        describe=lambda acceptance: f"acceptance {[round(a, 3) for a in acceptance.tolist()]}",
        slips=slips)
