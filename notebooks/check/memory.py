"""Exercises of notebook 00: what does a transformer remember? Each has a hint in two steps."""

import oracles
import torch

from .verdict import compare, in_one, normal


def keys_computed(student, hint=1):
    """By hand: the table of the notebook; then others."""
    def counts(passes, read):
        return lambda prompt, new: [sum(passes(prompt, new)), read(prompt, new)]

    def usual(prompt, new):
        return range(prompt, prompt + new)

    def usually_read(prompt, new):
        return prompt + new - 1

    slips = [
        ("You also read the last new token. The text ends there, so nobody reads it.",
         counts(lambda prompt, new: range(prompt + 1, prompt + new + 1), lambda p, n: p + n)),
        ("You make one pass too many. The last pass writes the last new token, which nobody reads.",
         counts(lambda prompt, new: range(prompt, prompt + new + 1), lambda p, n: p + n)),
        ("You count the last new token as read. The text ends there, so nobody reads it.",
         counts(usual, lambda prompt, new: prompt + new)),
        ("You always read a text of the same length. But it grows by one token per pass.",
         counts(lambda prompt, new: [prompt] * new, usually_read)),
        ("You count only the last pass.",
         counts(lambda prompt, new: [prompt + new - 1], usually_read)),
        ("The two numbers are in the wrong order.",
         lambda *case: oracles.keys_computed(*case)[::-1]),
    ]
    return compare(student, [(3, 3), (3, 1), (1, 4), (9, 66), (100, 900)], oracles.keys_computed, (
        "How long is the text in the first pass, in the second one, in the last one?",
        "The passes read prompt, prompt + 1, ..., prompt + new - 1 tokens; their sum is the first "
        "number. The tokens that the last pass reads are all that are ever read."), hint,
        describe=lambda prompt, new: f"prompt={prompt}, new={new}", slips=slips)


def decoder_step(student, hint=1):
    """By hand: one head, one channel, two kept tokens and equal scores; then several heads."""
    by_hand = [torch.tensor([[[number]]]) for number in (0.0, 7.0, 10.0)]
    by_hand += [torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0], [5.0]]])]
    cases = [tuple(by_hand)]
    for H, S, D in ((2, 5, 3), (4, 1, 6), (1, 9, 2)):
        cases.append((*normal(3, H, 1, D, seed=S), *normal(2, H, S, D, seed=S + 1)))

    def with_cache(function):
        return lambda q, k, v, keys, values: all_that_stays(function, q, k, v, keys, values)

    return compare(with_cache(student), cases, oracles.decoder_step, (
        "First keep the new key and the new value behind the old ones, then let the query see all "
        "that is kept. (The numbers are: what is returned, the kept keys, the kept values.)",
        "torch.cat with dim=1 joins along the tokens; dim=0 is the axis of the heads. All kept "
        "tokens are older than the query or its own, so attention needs no mask."), hint,
        describe=lambda q, k, v, keys, values: f"{len(q)} {'head' if len(q) == 1 else 'heads'}, "
        f"{keys.shape[1]} kept {'token' if keys.shape[1] == 1 else 'tokens'}",
        slips=[(words, with_cache(slip)) for words, slip in STEP_SLIPS])


def all_that_stays(function, q, k, v, keys, values):
    """What a step returns and what it keeps, in one tensor (H, 1 + keys + values, D)."""
    cache = {"k": keys, "v": values}
    output = function(q, k, v, cache)
    if output is None:
        return None
    if extra := sorted(set(cache) - {"k", "v"}):
        raise ValueError(f"only \"k\" and \"v\" may be kept, but the cache also has {extra}")
    parts = [torch.as_tensor(part).double() for part in (output, cache["k"], cache["v"])]
    for name, part in zip(("what you return", 'cache["k"]', 'cache["v"]'), parts):
        if part.dim() != 3 or part.shape[::2] != q.shape[::2]:
            raise ValueError(f"{name} has the shape {tuple(part.shape)}, not (H, tokens, D) with "
                             f"H={len(q)} and D={q.shape[2]}")
    return torch.cat(parts, dim=1)


def attend(q, keys, values):
    """softmax(q k^T / sqrt(D)) v."""
    return (q @ keys.transpose(1, 2) / q.shape[-1]**0.5).softmax(-1) @ values


def keep(cache, k, v):
    """The new key and value behind the old ones."""
    cache["k"] = torch.cat([cache["k"], k], dim=1)
    cache["v"] = torch.cat([cache["v"], v], dim=1)


def forgets(q, k, v, cache):
    """Sees all, and keeps nothing."""
    return attend(q, torch.cat([cache["k"], k], dim=1), torch.cat([cache["v"], v], dim=1))


def looks_first(q, k, v, cache):
    """Sees the old tokens only, and keeps the new one too late."""
    output = attend(q, cache["k"], cache["v"])
    keep(cache, k, v)
    return output


def keeps_in_front(q, k, v, cache):
    """Keeps the new token before the old ones."""
    cache["k"], cache["v"] = torch.cat([k, cache["k"]], dim=1), torch.cat([v, cache["v"]], dim=1)
    return attend(q, cache["k"], cache["v"])


def sees_the_first(q, k, v, cache):
    """torch's causal mask lets a single query see the first key alone."""
    keep(cache, k, v)
    return cache["v"][:, :1]


def sees_itself(q, k, v, cache):
    """Keeps everything, but looks at the new token alone."""
    keep(cache, k, v)
    return v


STEP_SLIPS = [
    ("Your cache is as it was before: the new key and value must stay in it.", forgets),
    ("Your query does not see its own token: keep the new key and value before you attend.",
     looks_first),
    ("The new token is kept in front of the old ones: it belongs behind them.", keeps_in_front),
    ("Your query sees the first token only: with is_causal, torch lets a single query see no more.",
     sees_the_first),
    ("Your query sees its own token only: use the kept keys and values.", sees_itself),
]


def may_see(student, hint=1):
    """By hand: two new tokens, five in all; then one new token, all new, and others."""
    def mask(sees):
        return lambda new, total: [[sees(t, position, total - new) for position in range(total)]
                                   for t in range(new)]

    slips = [
        ("Your queries stand at the beginning of the text: they are the last ones.",
         mask(lambda t, position, old: position <= t)),
        ("Your queries do not see their own token.",
         mask(lambda t, position, old: position < old + t)),
        ("Your queries see what follows them, and not what stands before: True means that a query "
         "may look there.", mask(lambda t, position, old: position > old + t)),
        ("Each of your queries sees the kept tokens and none of the new ones.",
         mask(lambda t, position, old: position < old)),
    ]
    def usable(new, total):
        seen = student(new, total)
        seen = None if seen is None else in_one(seen)
        if seen is None or not seen.is_floating_point():
            return seen
        if torch.equal(seen, torch.tensor(oracles.may_see(new, total)).to(seen)):
            raise ValueError("the numbers are right, but attention adds a mask of floats to the "
                             "scores. Return True and False: .bool() makes them")
        return seen

    # Rows of 0 and 1 in the verdict, since a mask of two rows is easy to compare by eye.
    return compare(usable, [(2, 4), (1, 5), (3, 3), (2, 7), (5, 6)], oracles.may_see, (
        "At which position does the first new query stand? It sees this position and all before.",
        "Query t stands at position total - new + t. torch.ones(new, total).tril(n) is 1 where "
        "column <= row + n: which n is needed? At the end .bool() makes True and False of it."),
        hint,
        describe=lambda new, total: f"new={new}, total={total}, row by row", slips=slips)
