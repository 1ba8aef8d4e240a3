"""Oracles of notebook 00: what does a transformer remember?"""

import math

import torch


def keys_computed(prompt, new):
    """Pass by pass: the keys computed if all is read again, and the tokens that are ever read."""
    text, computed, read = list(range(prompt)), 0, set()
    for _ in range(new):
        computed += len(text)                        # a pass over the text so far ...
        read.update(text)
        text.append(len(text))                       # ... gives one more token
    return [computed, len(read)]


def decoder_step(q, k, v, keys, values):
    """The new token over all kept ones and itself, head by head: (H, 1 + 2 (S + 1), D).

    In this order: the output, the keys that are kept now, the values that are kept now.
    """
    together = []
    for head in range(len(q)):
        kept = [row.double() for row in (*keys[head], k[head, 0])]
        worth = [row.double() for row in (*values[head], v[head, 0])]
        powers = [math.exp(float(q[head, 0].double() @ key) / math.sqrt(q.shape[2]))
                  for key in kept]
        output = sum(power / sum(powers) * value for power, value in zip(powers, worth))
        together.append(torch.stack([output, *kept, *worth]))
    return torch.stack(together)


def may_see(new, total):
    """Query t stands at position total - new + t, and sees no later position: (new, total)."""
    return [[position <= total - new + t for position in range(total)] for t in range(new)]
