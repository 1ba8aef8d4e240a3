"""Needle in a haystack. Oracles: stand-ins for models, whose answers are known; decoded text."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from minidsv3.context import needle
from minidsv3.data.retrieval import WORDS, Notes, some_notes
from minidsv3.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([some_notes(60_000)], 700)


@pytest.fixture(scope="module")
def text(tokenizer):
    return np.array(tokenizer.encode("".join(f"{n}\n" for n in range(3000))))


class Copier(nn.Module):
    """After a token comes what followed it before: the last time, or the first time (which=0).

    It does by search what a trained model does with two layers of attention. reach: how far back it
    looks [tokens]. In the task `last` it says ` == amber` for ` = amber`.
    """

    def __init__(self, tokenizer, which=-1, reach=10**9):
        super().__init__()
        self.embed_tokens, self.lm_head = nn.Embedding(1, 1), nn.Identity()
        self.which, self.reach, self.size = which, reach, tokenizer.vocab_size
        notes = Notes(tokenizer)
        self.spoken = {source: answer for (source,), (answer,) in zip(notes.sources, notes.answers)}

    def hidden_states(self, tokens):
        chosen = torch.zeros(*tokens.shape, self.size)
        for row, out in zip(tokens.tolist(), chosen):
            for t, token in list(enumerate(row[:-1]))[-6:]:          # the answer is shorter
                places = [i for i in range(max(0, t - self.reach), t) if row[i] == token]
                places = [i for i in places if row[i - 1] == row[t - 1]] or places
                if places:
                    copied = row[places[self.which] + 1]
                    out[t, self.spoken.get(copied, copied)] = 1
        return chosen, []


@pytest.mark.parametrize("task", needle.TASKS)
@pytest.mark.parametrize("depth", [0.0, 0.4, 1.0])
def test_a_haystack_holds_its_needle_at_the_depth_and_the_question_at_the_end(
        task, depth, tokenizer, text):
    """Oracle: the decoded text, searched; without the lines it is a part of the real text."""
    notes = Notes(tokenizer)
    for seed in range(20):
        ids, expected = needle.haystack(task, notes, text, 200, depth, np.random.default_rng(seed))
        assert len(ids) == 200 and ids[-len(expected):].tolist() == expected and ids[0] == 1
        decoded = tokenizer.decode(ids)
        form = (r"\n(?:assert )?self.([a-z]+) ==? ([a-z]+)" if task == "last"
                else r"\n# ([a-z]+): ([a-z]+ [a-z]+)")
        found = list(re.finditer(form, decoded))
        *before, asked, question = found if task == "last" else [
            each for each in found if each[1] == found[-1][1]]
        assert asked.groups() == question.groups() and not (before and task != "last")
        assert len(found) == {"single": 2, "several": 5, "last": 4}[task]
        assert len({each[1] for each in found}) == {"several": 4}.get(task, 1)
        rest = re.sub(form, "", decoded)
        assert rest in tokenizer.decode(text)
        place = len(re.sub(form, "", decoded[:asked.start()]))
        assert place / len(rest) == pytest.approx(depth, abs=0.03)


def test_a_model_that_finds_every_note_has_all_answers_right(tokenizer, text):
    """Oracle: a search through the text, at any length and depth."""
    for task in needle.TASKS:
        for length, depth in ((40, 0.5), (64, 0.0), (150, 1.0)):
            assert needle.accuracy(Copier(tokenizer), tokenizer, length, depth, 10, 0, task,
                                   text) == 1.0


def test_a_model_with_a_short_reach_finds_only_near_notes(tokenizer, text):
    """Oracle: the distance between note and question. It is 1 - depth of the text."""
    def found(depth):
        return needle.accuracy(Copier(tokenizer, reach=64), tokenizer, 200, depth, 10, text=text)

    assert [found(depth) for depth in (0, 0.5, 0.6, 0.8, 1)] == [0, 0, 0, 1, 1]


def test_the_first_value_of_a_variable_is_a_wrong_answer(tokenizer, text):
    """Oracle: a search that takes the first assignment; by chance the values are equal."""
    right = needle.accuracy(Copier(tokenizer, which=0), tokenizer, 60, 0.7, 60, 0, "last", text)
    assert right < 0.15


def test_part_of_an_answer_is_no_answer(tokenizer, text):
    """Oracle: a model that is right except for the last token."""
    model = Copier(tokenizer)
    hidden_states = model.hidden_states

    def spoilt(tokens):
        hidden, routings = hidden_states(tokens)
        hidden[:, -2] = 0
        return hidden, routings

    model.hidden_states = spoilt
    assert needle.accuracy(model, tokenizer, 64, 0.5, 20, text=text) == 0


def test_trials_depend_on_the_seed_alone(tokenizer, text):
    """Oracle: the haystacks a model is given, kept."""
    seen = []

    class Watched(Copier):
        def hidden_states(self, tokens):
            seen.append(tokens)
            return super().hidden_states(tokens)

    model = Watched(tokenizer).train()
    for seed in (0, 0, 1):
        needle.accuracy(model, tokenizer, 50, 0.5, 4, seed, text=text)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2]) and model.training


@pytest.mark.parametrize("change, words", [
    ({"length": 5}, "length of 5 tokens has no room .* takes 7"),
    ({"length": 10**5}, "too few for a length of 100000"),
    ({"depth": 1.5}, "depth=1.5 is a share"),
    ({"trials": 0}, "trials=0 must be a whole number of at least 1"),
    ({"task": "hard"}, "task='hard' is unknown; choose single, several, last")])
def test_values_out_of_range_are_named(change, words, tokenizer, text):
    wanted = {"length": 64, "depth": 0.5, "text": text} | change
    with pytest.raises(ValueError, match=words):
        needle.accuracy(Copier(tokenizer), tokenizer, **wanted)


def test_words_and_chance():
    """Oracle: the number of possible answers."""
    assert needle.CHANCE["single"] == 1 / len(WORDS) ** 2 and needle.CHANCE["last"] == 1 / 32


def test_the_command_writes_a_map(finished_run, small_text, tmp_path, capsys, monkeypatch):
    """Oracle: `accuracy` called directly, for one cell of the file."""
    from minidsv3 import hf
    from minidsv3.data import corpus
    from minidsv3.data.foreign import read_tokenizer
    out = tmp_path / "map"
    assert needle.main([str(finished_run), "--lengths", "64", "90", "--depths", "2", "--trials",
                        "3", "--data", str(small_text), "--out", str(out)]) == 0
    figures = json.loads((out / "needle.json").read_text(encoding="utf-8"))
    assert figures["lengths"] == [64, 90] and figures["depths"] == [0, 1]
    model = hf.load(finished_run)
    tokenizer = read_tokenizer(finished_run, model.config)
    ids = needle.ids_of(corpus.load(str(small_text)).documents, tokenizer)
    assert figures["accuracy"][1][0] == needle.accuracy(model, tokenizer, 64, 1.0, 3, text=ids)
    assert (out / "needle.png").stat().st_size > 5000
    assert "a guess is right in 0.10%" in capsys.readouterr().out
    monkeypatch.setattr(needle, "grid", lambda *_: pytest.fail("measured"))
    assert needle.main([str(finished_run), "--lengths", "64", "--out", str(small_text / "x")]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
