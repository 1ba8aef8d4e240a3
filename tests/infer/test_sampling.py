"""Sampling against a brute force in numpy, generation against uncached forward passes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.data.tokenizer import Tokenizer
from minidsv3.infer.sampling import (
    Generation,
    Healing,
    TextStream,
    complete,
    generate,
    keep_nucleus,
    sample,
    split_prompt,
    stream,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ModelConfig.preset("tiny").replace(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, intermediate_size=48,
        moe_intermediate_size=16, max_position_embeddings=64, initializer_range=0.2)
    return DeepSeekV3(config).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([f"def f{n}(self, x):\n    return x + {n}\n" for n in range(99)], 300)


def kept_by_brute_force(logits, temperature, top_k, top_p):
    """One row of logits -> {token: probability} after temperature, then top-k, then top-p."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[:top_k]
    weights = np.exp((np.array(logits)[order] - max(logits)) / temperature)
    weights /= weights.sum()
    kept, mass = {}, 0.0
    for token, weight in zip(order, weights):
        if mass >= top_p:
            break
        kept[token] = weight
        mass += weight
    return {token: weight / sum(kept.values()) for token, weight in kept.items()}


@pytest.mark.parametrize("temperature, top_k, top_p", [
    (1.0, None, 1.0), (0.5, None, 1.0), (2.0, 3, 1.0), (1.0, None, 0.6), (0.8, 5, 0.8),
    (1.0, 1, 1.0), (1.0, None, 1e-9), (1.0, 99, 0.999)])
def test_frequencies_are_those_of_the_brute_force(temperature, top_k, top_p):
    """Oracle: the definition, row by row in numpy; 20,000 draws, four deviations of leeway."""
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(2, 9, generator=generator) * 2
    draws = 20_000
    for row in rows:
        expected = kept_by_brute_force(row.double().tolist(), temperature, top_k, top_p)
        tokens = sample(row.expand(draws, -1), temperature, top_k, top_p, generator)
        shares = torch.bincount(tokens, minlength=9).double() / draws
        assert {i for i in range(9) if shares[i]} <= expected.keys()
        for token, probability in expected.items():
            deviation = (probability * (1 - probability) / draws) ** 0.5
            assert abs(shares[token] - probability) <= 4 * deviation + 1e-12


def test_the_nucleus_by_hand():
    """Oracle: 0.5 + 0.3 reach 0.7; the token that crosses the border stays, in any order."""
    kept = keep_nucleus(torch.tensor([[0.05, 0.3, 0.15, 0.5], [0.25, 0.25, 0.25, 0.25]]), 0.7)
    assert (kept[0] > 0).tolist() == [False, True, False, True]
    assert (kept[1] > 0).sum() == 3


def test_no_temperature_overflows():
    """Oracle: the argmax, which a temperature near zero always draws."""
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)) * 1e4
    for temperature in (0, 1e-320, 1e-30, 1e-5):
        assert torch.equal(sample(logits, temperature), logits.argmax(-1))


def test_greedy_is_the_argmax_of_uncached_passes(model):
    """Oracle: the whole text through the model again for each token, one prompt at a time."""
    prompts = torch.randint(5, 300, (3, 7), generator=torch.Generator().manual_seed(2))
    result = generate(model, prompts, 12)
    for row, prompt in enumerate(prompts):
        text = prompt[None]
        for step in range(12):
            with torch.no_grad():
                choice = model(text)[0, -1].argmax()
            assert result.tokens[row, step] == choice
            if choice == 1:
                break
            text = torch.cat([text, choice[None, None]], dim=1)


def test_seeds_repeat_and_differ(model):
    """Oracle: the same call again."""
    prompt = torch.tensor([[5, 6, 7]])
    once, again, other = (generate(model, prompt, 20, temperature=1.0, seed=seed).tokens
                          for seed in (4, 4, 5))
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_after_eos_there_is_only_eos(model, monkeypatch):
    """Oracle: ends planned by hand: sequence 0 after 2 tokens, 1 after 5, 2 at once, 3 never."""
    ends, passes = [2, 5, 0, 99], []

    def forward(tokens, cache=None):
        logits = torch.zeros(4, tokens.size(1), 300)
        logits[..., 9] = 1.0
        for row, end in enumerate(ends):
            if len(passes) == end:
                logits[row, :, 1] = 2.0
        passes.append(tokens)
        return logits

    monkeypatch.setattr(model, "forward", forward)
    prompt = torch.full((4, 3), 7)
    result = generate(model, prompt, 7)
    assert isinstance(result, Generation) and result.lengths.tolist() == [2, 5, 0, 7]
    assert result.tokens.tolist() == [[9, 9, 1, 1, 1, 1, 1], [9, 9, 9, 9, 9, 1, 1],
                                      [1, 1, 1, 1, 1, 1, 1], [9] * 7]
    assert result.stats["new_tokens"] == 14 and result.stats["passes"] == 7
    assert set(result.stats) == {"new_tokens", "seconds", "tokens_per_s", "prefill_s",
                                 "cache_bytes", "passes", "acceptance"}
    ends[3] = 6
    passes.clear()
    assert generate(model, prompt, 50).tokens.shape == (4, 7)          # stops with the last end


@pytest.mark.parametrize("options, words", [
    ({"temperature": -0.1}, "temperature=-0.1 .*0 is greedy"),
    ({"temperature": float("nan")}, "temperature=nan"), ({"top_p": 0.0}, "top_p=0.0 .*above 0"),
    ({"top_p": 1.01}, "top_p=1.01 .*up to 1"), ({"top_k": 0}, "top_k=0 .*at least 1"),
    ({"seed": -1}, "seed=-1 .*between 0"), ({"seed": 2**64}, "seed=1844.*between 0"),
    ({"max_new_tokens": 0}, "max_new_tokens=0 .*at least 1"),
    ({"max_new_tokens": 62}, "3 prompt tokens .*=62 .*max_position_embeddings=64; shorten")])
def test_bad_settings_are_refused(model, options, words):
    """Oracle: the value and the remedy."""
    with pytest.raises(ValueError, match=words):
        generate(model, torch.tensor([[5, 6, 7]]), **{"max_new_tokens": 5, **options})


def test_an_empty_prompt_is_refused(model):
    """Oracle: what to do in its place."""
    with pytest.raises(ValueError, match="begin with EOS"):
        next(stream(model, torch.zeros(1, 0, dtype=torch.long), 5))


@given(st.text(max_size=30), st.lists(st.integers(0, 120), max_size=20))
def test_half_a_character_is_never_shown(text, cuts):
    """Oracle: Python's own decoding of the bytes; each prefix shown is a prefix of the text."""
    data = text.encode("utf-8", "replace")
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    out, shown = TextStream(), ""
    for start, stop in zip(places, places[1:]):
        shown += out.feed(data[start:stop])
        assert data.decode().startswith(shown)
    assert shown + out.feed(b"", final=True) == data.decode()


@given(st.binary(max_size=40), st.integers(1, 7))
def test_broken_bytes_become_replacement_signs(data, size):
    """Oracle: decoding the whole with errors="replace"."""
    out = TextStream()
    shown = "".join(out.feed(data[i:i + size]) for i in range(0, len(data), size))
    assert shown + out.feed(b"", final=True) == data.decode(errors="replace")


@pytest.mark.parametrize("prompt, ending", [
    ("def ", " "), ("def f", ""), ("if (x == ", " == "), ("", ""), ("  ", "  "), ("x\n", "\n"),
    ("é ", " "), ("é", ""), ("1.", "."), ("a" + "=" * 40, "=" * 16)])
def test_a_prompt_is_cut_before_its_last_signs(prompt, ending):
    """Oracle: by hand."""
    assert split_prompt(prompt) == (prompt.removesuffix(ending), ending)


@pytest.mark.parametrize("prompt", ["def ", "return x + ", "def f1(", "):\n    ", "", "€ ", " "])
def test_a_prompt_may_end_anywhere(model, tokenizer, prompt):
    """Oracle: the model's own tokens, decoded: they spell the ending first, and then the text."""
    for seed in range(5):
        pieces = list(complete(model, tokenizer, prompt, 30, temperature=1.0, seed=seed))
        tokens = [token for token, _ in pieces if token is not None]
        stem, ending = split_prompt(prompt)
        data = tokenizer.decode_bytes(tokens)
        assert data.startswith(ending.encode())
        expected = data[len(ending.encode()):].decode(errors="replace")
        assert "".join(text for _, text in pieces) == expected


def test_the_ending_and_its_word_may_share_a_token(tokenizer):
    """Oracle: tokens compared with the ending one by one."""
    healing = Healing(tokenizer, "  ")
    allowed = healing.restrict(torch.zeros(1, 300))[0] == 0
    for token, data in enumerate(tokenizer.token_bytes):
        assert allowed[token] == (data[:2] == b"  " or data == b" "), data
    assert healing.new_part(b" ") == b"" and healing.new_part(b" return") == b"return"
    assert (healing.restrict(torch.zeros(1, 300)) == 0).all()
