"""Exercises of notebook 08: how do you stretch a window? Each has a hint in two steps."""

import oracles
import torch

from .verdict import compare, normal


def yarn_frequencies(student, hint=1):
    """YaRN's frequencies, with beta 32 and 1; by hand: the small model of the notebook."""
    # The last one ramps beyond its last pair.
    cases = [(32, 156.25, 40, 64), (8, 100.0, 4, 128), (16, 1e4, 40, 256), (10, 30.0, 5, 64),
             (64, 1e4, 40, 4096), (16, 1e4, 4, 20_000)]
    return compare(student, cases, oracles.yarn_frequencies, (
        "The ramp is linear in the index of the pair, clamped to 0 ... 1; 0 keeps a frequency, 1 "
        "divides it.",
        "The ends: low is m(32) rounded down and at least 0, high is m(1) rounded up. The ramp is "
        "(m - low) / (high - low), and m counts pairs: 0, 1, 2, ..."), hint)


def sharpened_scale(student, hint=1):
    """By hand: a width of 4 halves the scores; then V3, and windows that are not stretched."""
    cases = [(4, 1), (192, 40), (48, 40), (24, 4), (16, 1)]
    return compare(student, cases, oracles.sharpened_scale, (
        "Query and key are each multiplied by the temperature. How often does it then stand in "
        "their product?",
        "The scale is width^-1/2 times the square of 0.1 ln(factor) + 1; math.log is the natural "
        "logarithm."), hint)


def exact_answers(student, hint=1):
    """By hand: two answers of two tokens, of which one is half right; then random ones."""
    tokens = torch.tensor([[5, 0, 1, 2], [5, 3, 1, 0]])
    predicted = torch.tensor([[9, 1, 2, 9], [9, 1, 4, 9]])             # of the next place
    random = normal(6, 5, 3, seed=1)
    answers = torch.cat([torch.zeros(6, 1), random.argmax(-1)[:, :-1]], dim=1).long()
    answers[0, 1] = (answers[0, 1] + 1) % 3          # outside of an answer of 2: does not matter
    answers[1:3, -1] = (answers[1:3, -1] + 1) % 3
    cases = [(torch.nn.functional.one_hot(predicted).float(), tokens, 2),
             (random, answers, 2), (random, answers, 1), (random, answers, 4)]
    return compare(student, cases, oracles.exact_answers, (
        "An answer counts if all of its tokens are right, so ask for all of a row before you take "
        "the mean over rows.",
        "logits[:, t] predicts token t + 1: compare logits[:, -answer_length - 1:-1].argmax(-1) "
        "with tokens[:, -answer_length:]."), hint)


def haystack(student, hint=1):
    """By hand: a text of 10 tokens for a length of 8, the note in the middle; then others."""
    note, question = torch.tensor([70, 71]), torch.tensor([70])
    cases = [(torch.arange(10), note, question, 8, depth) for depth in (0.4, 0.0, 1.0)]
    cases += [(torch.arange(500), torch.tensor([901, 902, 903]), torch.tensor([901, 904]), length,
               depth) for length, depth in ((20, 0.8), (64, 0.25), (300, 1.0))]
    return compare(student, cases, oracles.haystack, (
        "How many tokens of text are there in a haystack of this length? The depth is a share of "
        "these, not of the whole text.",
        "First room = length - len(note) - len(question), then cut the text to this room, and only "
        "then choose the place: round(depth * room)."), hint)
