"""The sampling rules against a brute-force version in numpy."""

import numpy as np
import pytest
import torch

from minidsv3.infer.sampling import Sampler, draw, keep_nucleus


def kept_by_brute_force(logits, temperature, top_k, top_p, min_p):
    """One row of logits -> {token: probability}: temperature, then top-k, top-p and min-p."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[:top_k]
    weights = np.exp((np.array(logits)[order] - max(logits)) / temperature)
    weights /= weights.sum()
    kept, mass = {}, 0.0
    for token, weight in zip(order, weights):
        if mass >= top_p or weight < min_p * weights[0]:
            break
        kept[token] = weight
        mass += weight
    return {token: weight / sum(kept.values()) for token, weight in kept.items()}


SETTINGS = pytest.mark.parametrize("settings", [
    (1.0, None, 1.0, 0.0), (0.5, None, 1.0, 0.0), (2.0, 3, 1.0, 0.0), (1.0, None, 0.6, 0.0),
    (0.8, 5, 0.8, 0.0), (1.0, 1, 1.0, 0.0), (1.0, None, 1e-9, 0.0), (1.0, 99, 0.999, 0.0),
    (1.0, None, 1.0, 0.2), (1.5, 6, 0.9, 0.3), (1.0, None, 1.0, 1.0)], ids=str)


@SETTINGS
def test_probabilities_are_those_of_the_brute_force(settings):
    """Oracle: the definition, row by row in numpy; two leading axes, as for drafts."""
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(7)).double() * 2
    got = Sampler(*settings).probabilities(logits)
    for row, probabilities in zip(logits.flatten(0, 1), got.flatten(0, 1)):
        expected = torch.zeros(9, dtype=torch.float64)
        for token, probability in kept_by_brute_force(row.tolist(), *settings).items():
            expected[token] = probability
        torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-12)


def test_frequencies_are_the_probabilities():
    """Oracle: the probabilities, within four standard deviations; 20,000 draws."""
    p = torch.tensor([0.0, 0.5, 0.0, 0.125, 0.375, 0.0])
    generator = torch.Generator().manual_seed(3)
    draws = torch.tensor([draw(7 * p, generator) for _ in range(20_000)])   # need not sum to 1
    shares = draws.bincount(minlength=6) / len(draws)
    assert ((shares - p).abs() <= 4 * (p * (1 - p) / len(draws)).sqrt()).all()


def test_a_draw_at_the_very_end_is_still_a_token(monkeypatch):
    """Oracle: the last token of nonzero probability; rounding would have gone beyond it."""
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(1.0, dtype=torch.float64))
    assert draw(torch.tensor([0.3, 0.7, 0.0, 0.0]), None) == 1


def test_the_nucleus_by_hand():
    """Oracle: 0.5 + 0.3 reach 0.7, and the token that crosses 0.7 is kept, in whatever order."""
    kept = keep_nucleus(torch.tensor([[0.05, 0.3, 0.15, 0.5], [0.25, 0.25, 0.25, 0.25]]), 0.7)
    assert (kept[0] > 0).tolist() == [False, True, False, True]
    assert (kept[1] > 0).sum() == 3


def test_no_temperature_overflows():
    """Oracle: probability 1 for the argmax, as the temperature goes to zero."""
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)) * 1e4
    for temperature in (0, 1e-320, 1e-30, 1e-5):
        p = Sampler(temperature).probabilities(logits)
        assert torch.equal(p.argmax(-1), logits.argmax(-1)) and (p.amax(-1) == 1).all()


@pytest.mark.parametrize("options, words", [
    ({"temperature": -0.1}, "temperature=-0.1 .*0 is greedy"),
    ({"temperature": float("nan")}, "temperature=nan"), ({"top_p": 0.0}, "top_p=0.0 .*above 0"),
    ({"top_p": 1.01}, "top_p=1.01 .*up to 1"), ({"top_k": 0}, "top_k=0 .*at least 1"),
    ({"min_p": -0.1}, "min_p=-0.1 .*0 to 1"), ({"min_p": 1.5}, "min_p=1.5 .*0 to 1")])
def test_bad_settings_are_refused(options, words):
    """Oracle: the message names the value and what to choose."""
    with pytest.raises(ValueError, match=words):
        Sampler(**options).checked()
