"""Oracles of notebook 08: how do you stretch a window?"""

import math

import torch


def yarn_frequencies(width, base, factor, window, beta_fast=32, beta_slow=1):
    """YaRN as released: a ramp in the pair's index between two numbers of turns -> (width/2,)."""
    def pair_that_turns(times):
        return width * math.log(window / (times * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_that_turns(beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(beta_slow)), width - 1)
    high = high if high != low else low + 0.001
    blended = []
    for m in range(width // 2):
        plain = float(base) ** (-2 * m / width)
        ramp = min(max((m - low) / (high - low), 0), 1)
        blended.append((1 - ramp) * plain + ramp * plain / factor)
    return torch.tensor(blended, dtype=torch.float64)


def sharpened_scale(width, factor):
    """The usual scale, times the temperature of the query, times that of the key."""
    temperature = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    query_side = key_side = temperature
    return query_side * key_side / math.sqrt(width)


def exact_answers(logits, tokens, answer_length):
    """Row by row and token by token: one wrong token makes the whole answer wrong."""
    exact = 0
    for scores, row in zip(logits.tolist(), tokens.tolist()):
        right = True
        for place in range(len(row) - answer_length, len(row)):
            before = scores[place - 1]               # the logits that predict the token at `place`
            right = right and before.index(max(before)) == row[place]
        exact += right
    return exact / len(tokens)


def haystack(text, note, question, length, depth):
    """Token by token: text, the note at its place, text again, and the question at the end."""
    room = length - len(note) - len(question)
    place, built = round(depth * room), []
    for position, token in enumerate(text.tolist()[:room]):
        if position == place:
            built += note.tolist()
        built.append(token)
    if place == room:
        built += note.tolist()
    return torch.tensor(built + question.tolist())
