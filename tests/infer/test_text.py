"""Continuing a text: prompts that end anywhere, whole characters, stop strings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidsv3.infer.text import HealedSequence, TextStream, complete, split_prompt


@given(st.text(max_size=30), st.lists(st.integers(0, 120), max_size=20))
def test_half_a_character_is_never_shown(text, cuts):
    """Oracle: Python's own decoding of the bytes; what was shown is always a prefix of the text."""
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


@given(st.text("ab\n€", max_size=30), st.lists(st.text("ab\n€", min_size=1, max_size=4),
                                               max_size=3), st.integers(1, 5))
def test_a_text_ends_before_the_first_stop_string(text, stop, size):
    """Oracle: the whole text, cut before the stop string that is complete first."""
    data, out, shown = text.encode(), TextStream(stop), ""
    places = [(text.find(each) + len(each), text.find(each)) for each in stop if each in text]
    expected = text[:min(places)[1]] if places else text
    for i in range(0, len(data), size):
        shown += out.feed(data[i:i + size])
        assert expected.startswith(shown)
        if out.stopped:
            break
    assert shown + out.feed(b"", final=True) == expected
    assert out.stopped == bool(places)


@pytest.mark.parametrize("prompt, ending", [
    ("def ", " "), ("def f", ""), ("if (x == ", " == "), ("", ""), ("  ", "  "), ("x\n", "\n"),
    ("é ", " "), ("é", ""), ("1.", "."), ("a" + "=" * 40, "=" * 16)])
def test_a_prompt_is_cut_before_its_last_signs(prompt, ending):
    """Oracle: by hand."""
    assert split_prompt(prompt) == (prompt.removesuffix(ending), ending)


@pytest.mark.parametrize("speculative", [0, 2])
@pytest.mark.parametrize("prompt", ["def ", "return x + ", "def f1(", "):\n    ", "", "€ ", " "])
def test_a_prompt_may_end_anywhere(model, tokenizer, prompt, speculative):
    """Oracle: the generated tokens, decoded: first the ending that was cut off, then the text."""
    for seed in range(6):                        # the last one greedy
        pieces = list(complete(model, tokenizer, prompt, 30, temperature=float(seed < 5), seed=seed,
                               speculative=speculative))
        tokens = [piece.token for piece in pieces if piece.token is not None]
        stem, ending = split_prompt(prompt)
        data = tokenizer.decode_bytes([token for token in tokens if token != 1])
        assert data.startswith(ending.encode())
        expected = data[len(ending.encode()):].decode(errors="replace")
        assert "".join(piece.text for piece in pieces) == expected


def test_the_ending_and_its_word_may_share_a_token(tokenizer):
    """Oracle: every token of the vocabulary compared with the ending."""
    sequence = HealedSequence([5], 9, {1}, tokenizer=tokenizer, ending="  ")
    allowed = sequence.restrict(torch.zeros(300)) == 0
    for token, data in enumerate(tokenizer.token_bytes):
        assert allowed[token] == (data[:2] == b"  " or data == b" "), data
    sequence.note(tokenizer.token_bytes.index(b" "))
    word = max(tokenizer.token_bytes, key=lambda data: (data[:1] == b" ", data[1:2] != b" ",
                                                        len(data)))
    sequence.note(tokenizer.token_bytes.index(word))                   # " x", or the like
    assert sequence.parts == [b"", word[1:]] and len(word) > 1
    assert (sequence.restrict(torch.zeros(300)) == 0).all()


def test_a_stop_string_ends_the_text_and_the_work(model, tokenizer):
    """Oracle: the completion without a stop string, cut before it; and fewer passes."""
    settings = {"temperature": 1.0, "seed": 3}
    whole = "".join(p.text for p in complete(model, tokenizer, "def ", 40, **settings))
    stop = whole[5:7]
    cut = complete(model, tokenizer, "def ", 40, stop=[stop], **settings)
    assert "".join(piece.text for piece in cut) == whole[:whole.find(stop)]
    assert cut.decoder.passes < 40
