"""Typical mistakes for the exercises of 08_how_do_you_stretch_a_window."""

import math

import torch


def yarn_frequencies(width, base, factor, window):
    """0 keeps a frequency, 1 divides it."""
    def pair_that_turns(times):
        return width * math.log(window / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(pair_that_turns(32)), 0), math.ceil(pair_that_turns(1))
    m = torch.arange(width // 2)
    plain = base ** -(2 * m / width)
    ramp = ((m - low) / (high - low)).clamp(0, 1)
    return plain * ramp + plain / factor * (1 - ramp)


def sharpened_scale(width, factor):
    """How often does it then stand"""
    return width**-0.5 * (0.1 * math.log(factor) + 1)


def exact_answers(logits, tokens, answer_length):
    """An answer counts if all of its tokens are right"""
    predicted = logits[:, -answer_length - 1:-1].argmax(-1)
    return (predicted == tokens[:, -answer_length:]).double().mean()


def haystack(text, note, question, length, depth):
    """The depth is a share of these, not of the whole text."""
    place = round(depth * len(text))
    planted = torch.cat([text[:place], note, text[place:]])
    return torch.cat([planted[:length - len(question)], question])
