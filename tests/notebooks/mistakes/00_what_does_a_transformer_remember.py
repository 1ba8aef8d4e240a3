"""Typical mistakes for the exercises of 00_what_does_a_transformer_remember.

Those with a second name are further slips that the checker names.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention as attention


def keys_computed(prompt, new):
    """prompt=3, new=3: expected [12, 5], got [12, 6]. You count the last new token as read."""
    return sum(range(prompt, prompt + new)), prompt + new


def keys_computed__one_pass_too_late(prompt, new):
    """expected [12, 5], got [15, 6]. You also read the last new token."""
    return sum(range(prompt + 1, prompt + new + 1)), prompt + new


def keys_computed__one_pass_too_many(prompt, new):
    """expected [12, 5], got [18, 6]. You make one pass too many."""
    return sum(range(prompt, prompt + new + 1)), prompt + new


def keys_computed__equal_passes(prompt, new):
    """expected [12, 5], got [9, 5]. You always read a text of the same length."""
    return [prompt * new, prompt + new - 1]


def keys_computed__last_pass(prompt, new):
    """expected [12, 5], got [5, 5]. You count only the last pass."""
    return torch.tensor([prompt + new - 1] * 2)


def keys_computed__exchanged(prompt, new):
    """expected [12, 5], got [5, 12]. The two numbers are in the wrong order."""
    return prompt + new - 1, sum(range(prompt, prompt + new))


def keep(cache, k, v, dim=1):
    cache["k"], cache["v"] = torch.cat([cache["k"], k], dim), torch.cat([cache["v"], v], dim)


def decoder_step(q, k, v, cache):
    """1 head, 2 kept tokens: expected shape (1, 7, 1), got (1, 5, 1). Your cache is as it was"""
    keys, values = torch.cat([cache["k"], k], dim=1), torch.cat([cache["v"], v], dim=1)
    return attention(q, keys, values)


def decoder_step__a_new_dictionary(q, k, v, cache):
    """Your cache is as it was before: the new key and value must stay in it."""
    cache = {"k": torch.cat([cache["k"], k], dim=1), "v": torch.cat([cache["v"], v], dim=1)}
    return attention(q, cache["k"], cache["v"])


def decoder_step__too_late(q, k, v, cache):
    """expected [6, 1, 2, 7, 3, 5, 10], got [4, 1, 2, 7, 3, 5, 10]. Your query does not see its
    own token"""
    o = attention(q, cache["k"], cache["v"])
    keep(cache, k, v)
    return o


def decoder_step__in_front(q, k, v, cache):
    """got [6, 7, 1, 2, 10, 3, 5]. The new token is kept in front of the old ones"""
    cache["k"], cache["v"] = torch.cat([k, cache["k"]], 1), torch.cat([v, cache["v"]], 1)
    return attention(q, cache["k"], cache["v"])


def decoder_step__causal(q, k, v, cache):
    """got [3, 1, 2, 7, 3, 5, 10]. Your query sees the first token only: with is_causal"""
    keep(cache, k, v)
    return attention(q, cache["k"], cache["v"], is_causal=True)


def decoder_step__alone(q, k, v, cache):
    """got [10, 1, 2, 7, 3, 5, 10]. Your query sees its own token only"""
    keep(cache, k, v)
    return attention(q, k, v)


def decoder_step__queries_too(q, k, v, cache):
    """only "k" and "v" may be kept, but the cache also has ['q']"""
    keep(cache, k, v)
    cache["q"] = q
    return attention(q, cache["k"], cache["v"])


def decoder_step__wrong_axis(q, k, v, cache):
    """1 head, 2 kept tokens: your function ended in RuntimeError"""
    keep(cache, k, v, dim=0)
    return attention(q, cache["k"], cache["v"])


def decoder_step__no_heads(q, k, v, cache):
    """what you return has the shape (1, 1), not (H, tokens, D) with H=1 and D=1"""
    keep(cache, k, v)
    return attention(q, cache["k"], cache["v"])[0]


def may_see(new, total):
    """new=2, total=4, row by row: expected [1, 1, 1, 0, 1, 1, 1, 1], got [1, 0, 0, 0, 1, 1, 0, 0].
    Your queries stand at the beginning of the text"""
    return torch.ones(new, total, dtype=torch.bool).tril()


def may_see__not_itself(new, total):
    """got [1, 1, 0, 0, 1, 1, 1, 0]. Your queries do not see their own token."""
    return torch.ones(new, total).tril(total - new - 1)


def may_see__turned_round(new, total):
    """got [0, 0, 0, 1, 0, 0, 0, 0]. Your queries see what follows them"""
    return torch.ones(new, total).triu(total - new + 1)


def may_see__old_only(new, total):
    """got [1, 1, 0, 0, 1, 1, 0, 0]. Each of your queries sees the kept tokens"""
    return [[place < total - new for place in range(total)] for _ in range(new)]


def may_see__transposed(new, total):
    """expected shape (2, 4), got (4, 2)."""
    return torch.ones(new, total).tril(total - new).T


def may_see__floats(new, total):
    """the numbers are right, but attention adds a mask of floats to the scores."""
    return torch.ones(new, total).tril(total - new)
