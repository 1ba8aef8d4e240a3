"""Retrieval text. Oracle: the decoded windows, read line by line with regular expressions."""

import re

import numpy as np
import pytest
import torch

from minidsv3.data.batches import Batches
from minidsv3.data.corpus import Document
from minidsv3.data.dataset import Dataset
from minidsv3.data.retrieval import WORDS, Mixture, Notes, plant, some_notes
from minidsv3.data.tokenizer import Tokenizer

NOTE = re.compile(r"# ([a-z]+): ([a-z]+) ([a-z]+)")
EVENT = re.compile(r"\nassert self.([a-z]+) == ([a-z]+)|\nself.([a-z]+) = ([a-z]+)")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([some_notes(60_000)], 700)


@pytest.fixture(scope="module")
def notes(tokenizer):
    return Notes(tokenizer)


def filler(tokenizer, n):
    """n ids of a text without any word of the notes."""
    return np.array((tokenizer.encode("9 + 1\n") * n)[:n])


def test_words_are_different_and_single_tokens_where_the_tokenizer_has_learned_them(notes):
    """Oracle: counts. A key of one token is what the smallest models can look for."""
    assert len(set(WORDS)) == len(WORDS) == 32
    for name in ("keys", "first", "second", "sources", "answers"):
        assert all(len(ids) == 1 for ids in getattr(notes, name)), name


def test_dense_windows_repeat_keys_and_never_change_a_value(notes, tokenizer):
    """Oracle: the lines of the text, collected in a dict."""
    for seed in range(20):
        text = filler(tokenizer, 200)
        ids = notes.dense(text, np.random.default_rng(seed))
        assert len(ids) == len(text)
        lines = NOTE.findall(tokenizer.decode(ids))
        assert len(lines) >= 60
        assert len({(key, value) for key, *value in map(tuple, lines) for value in [tuple(value)]}
                   ) == len({key for key, *_ in lines})


def test_planted_notes_are_asked_once_and_the_text_around_them_is_kept(notes, tokenizer):
    """Oracle: each note stands twice, with one value; without notes the text is what it was."""
    counts = set()
    for seed in range(50):
        text = filler(tokenizer, 300)
        ids = notes.planted(text, np.random.default_rng(seed))
        decoded = tokenizer.decode(ids)
        found = NOTE.findall(decoded)
        assert len(ids) == 300 and len(found) == 2 * len(set(found)) == 2 * len(
            {key for key, *_ in found})
        rest = re.sub(r"\n# [a-z]+: [a-z]+ [a-z]+", "", decoded)
        assert tokenizer.decode(text).startswith(rest)
        counts.add(len(found) // 2)
    assert min(counts) == 1 and max(counts) > 15


def test_an_assertion_names_the_last_value_assigned(notes, tokenizer):
    """Oracle: the text executed, as a dict of variables."""
    assigned_twice = 0
    for seed in range(50):
        ids = notes.assigned(filler(tokenizer, 300), np.random.default_rng(seed))
        variables, asserted = {}, 0
        for name, value, target, source in EVENT.findall(tokenizer.decode(ids)):
            if target:
                assigned_twice += target in variables
                variables[target] = source
            else:
                assert variables[name] == value
                asserted += 1
        assert len(ids) == 300 and asserted == len(variables) >= 1
    assert assigned_twice > 50


def test_distances_are_long_and_short():
    """Oracle: the quantiles of half a uniform and half a log-uniform distribution."""
    generator, text, distances = np.random.default_rng(0), np.zeros(4098, dtype=np.int64), []
    for _ in range(2000):
        ids = plant(text, [[[7], [7]]], generator)
        first, second = np.flatnonzero(ids == 7)
        distances.append(second - first)
    generator = np.random.default_rng(1)
    expected = [*generator.uniform(1, 4096, 10_000), *4096 ** generator.uniform(0, 1, 10_000)]
    places = [0.2, 0.4, 0.6, 0.8]
    assert np.quantile(distances, places) == pytest.approx(np.quantile(expected, places), rel=0.2)


def test_tasks_that_do_not_fit_are_left_out():
    generator, text = np.random.default_rng(0), np.arange(10)
    ids = plant(text, [[[90], [91]], [[92] * 8, [93]]], generator)
    assert sorted(set(ids.tolist()) & {90, 91, 92, 93}) == [90, 91] and len(ids) == 10


@pytest.fixture(scope="module")
def batches(tokenizer):
    text = "".join(f"x = {n * 7919 % 1000}\n" for n in range(3000))
    return Batches([Document("a", text)], tokenizer, 64, 0.0, seed=3)


def test_the_share_is_kept_and_other_windows_are_untouched(batches, notes):
    """Oracle: Batches itself, row by row, and a binomial count."""
    mixed, plain = Mixture(batches, notes, 0.3, 3).take(0, 400), batches.take(0, 400)
    same = (mixed == plain).all(dim=1)
    assert mixed.dtype == torch.int64 and mixed.shape == (400, 65)
    assert 0.62 < same.double().mean() < 0.78
    assert torch.equal(Mixture(batches, notes, 0.0, 3).take(5, 9), batches.take(5, 9))


def test_a_sample_depends_on_seed_and_number_alone(batches, notes):
    """Oracle: the same samples taken in one piece, and with another seed."""
    mixture = Mixture(batches, notes, 1.0, 3)
    whole = mixture.take(0, 12)
    assert torch.equal(torch.cat([mixture.take(8, 4), mixture.take(0, 8)]).roll(-4, 0), whole)
    assert not torch.equal(Mixture(batches, notes, 1.0, 4).take(0, 12), whole)


def test_a_dataset_with_retrieval_text_knows_its_words(tmp_path):
    """Oracle: tokens of nearly all keys; a count of windows; none is in the validation text."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"x{n % 37} = f({n * 7919 % 1000})\n" for n in range(12_000)))
    data = Dataset(str(path), 900, 64, 0.1, 0, retrieval=0.5)
    assert sum(len(data.tokenizer.encode(f"\n# {word}")) == 1 for word in WORDS) >= 30
    windows = data.batches.take(0, 200)
    decoded = [data.tokenizer.decode(window) for window in windows.tolist()]
    share = np.mean([bool(NOTE.search(text) or EVENT.search(text)) for text in decoded])
    assert 0.4 < share < 0.6
    assert not any(NOTE.search(data.tokenizer.decode(row)) for row in data.inputs.tolist())
