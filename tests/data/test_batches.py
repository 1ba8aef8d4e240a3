"""FIM, packing and windows; oracles: plain lists, counts, the documents joined again."""

from collections import Counter

import numpy as np
import pytest
import torch

from minidsv3.data import batches, corpus
from minidsv3.data.batches import Batches
from minidsv3.data.corpus import Document
from minidsv3.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def documents():
    return [Document(each.name, each.text[:3000]) for each in corpus.load().documents[:80]]


@pytest.fixture(scope="module")
def tokenizer(documents):
    return Tokenizer.train([document.text for document in documents], 600)


def undo_fim(ids, tokenizer):
    """The document that a list of PSM ids was made from."""
    assert ids[0] == tokenizer.fim_begin_id
    hole, end = ids.index(tokenizer.fim_hole_id), ids.index(tokenizer.fim_end_id)
    assert 0 < hole < end
    return tokenizer.decode(ids[1:hole]) + tokenizer.decode(ids[end + 1:]) + tokenizer.decode(
        ids[hole + 1:end])


def test_fim_undone_is_the_document(documents, tokenizer):
    """Oracle: prefix + middle + suffix, cut out of the ids by the three marks."""
    generator = np.random.default_rng(0)
    for text in ["", "é", "a👩‍👧b", "line\r\n"] * 20 + [each.text for each in documents]:
        assert undo_fim(batches.fim(text, tokenizer, generator), tokenizer) == text


def test_fim_cuts_reach_every_character(tokenizer):
    """Oracle: all 10 pairs of cuts in a text of three characters, as often as chance predicts."""
    generator = np.random.default_rng(1)
    seen = Counter(tuple(batches.fim("a€c", tokenizer, generator)) for _ in range(1600))
    assert len(seen) == 10                                  # 4 equal pairs, 6 unequal ones
    assert all(50 < count < 280 for count in seen.values())  # expected 100 and 200


def test_every_validation_token_is_a_target_exactly_once(documents, tokenizer):
    """Oracle: the ids of the documents, one after another, as a plain list."""
    expected = []
    for document in documents:
        expected += tokenizer.encode(document.text) + [1]
    for window in (7, 64, len(expected), len(expected) + 5):
        inputs, targets = batches.validation_windows(documents, tokenizer, window)
        assert inputs.dtype == targets.dtype == torch.int64 and inputs.shape == targets.shape
        assert targets.shape[1] == window and targets.shape[0] == -(-len(expected) // window)
        flat = targets.flatten()
        assert flat[flat != -100].tolist() == expected and flat[:len(expected)].min() >= 0
        assert inputs.flatten()[:len(expected)].tolist() == [1, *expected[:-1]]
        assert inputs.min() >= 0                               # a valid row of the embedding
    total = sum(len(tokenizer.token_bytes[token]) for token in expected)
    assert total == batches.raw_bytes(documents) == sum(len(d.text.encode()) for d in documents)


def test_validation_windows_are_those_of_the_docstring(tokenizer):
    """Oracle: the case by hand, with a = 103, b = 104, c = 105."""
    a, b, c = (tokenizer.ranks[letter] for letter in (b"a", b"b", b"c"))
    bytewise = Tokenizer.train([], 262)
    inputs, targets = batches.validation_windows(
        [Document("1", "ab"), Document("2", "c")], bytewise, 3)
    assert inputs.tolist() == [[1, a, b], [1, c, 1]]
    assert targets.tolist() == [[a, b, 1], [c, 1, -100]]


def test_a_batch_is_a_function_of_seed_and_sample(documents, tokenizer):
    """Oracle: a new object, other batch sizes, another order of calls, across three epochs."""
    def fresh(seed=5):
        return Batches(documents, tokenizer, window=50, seed=seed)

    one = fresh()
    last = one.windows_per_epoch
    whole = one.take(last - 4, 8)
    assert whole.dtype == torch.int64 and whole.shape == (8, 51)
    far = one.take(3 * last, 2)                                # replaces the epochs kept
    assert torch.equal(one.take(last - 4, 8), whole)
    assert torch.equal(torch.cat([fresh().take(last - 4, 3), fresh().take(last - 1, 5)]), whole)
    assert torch.equal(fresh().take(3 * last, 2), far)
    assert not torch.equal(fresh(6).take(0, 8), fresh().take(0, 8))
    assert not torch.equal(one.take(last, 8), one.take(0, 8))
    assert len(one.epochs) <= 2


def test_one_epoch_holds_every_token_once(documents, tokenizer):
    """Oracle: without FIM, targets counted against the plain ids of all documents."""
    data = Batches(documents, tokenizer, window=33, fim_rate=0, seed=1)
    rows = data.take(0, data.windows_per_epoch)
    assert data.tokens_per_epoch == data.windows_per_epoch * 33
    everything = Counter(token for document in documents
                         for token in tokenizer.encode(document.text) + [1])
    seen = Counter(rows[:, 1:].flatten().tolist())
    assert seen <= everything and 1 <= sum((everything - seen).values()) <= 33
    # Rows are windows of one stream: each row but one begins with the last token of another.
    assert sum((Counter(rows[:, 0].tolist()) - Counter(rows[:, -1].tolist())).values()) <= 1


def test_a_tenth_of_the_documents_is_rearranged_and_still_whole(tokenizer):
    """Oracle: count the marks in 5 epochs of 400 documents; undo each of them."""
    documents = [Document(str(number), f"def f{number}(x):\n    return x + {number}\n")
                 for number in range(400)]
    data = Batches(documents, tokenizer, window=64, seed=3)
    rearranged = []
    for epoch in range(5):
        stream, order = data.make_epoch(epoch)
        assert sorted(order) == list(range(data.windows_per_epoch))
        text = " ".join(map(str, stream.tolist()))
        pieces = [list(map(int, piece.split())) for piece in text.split(" 1 ")[:-1]]
        marked = [piece for piece in pieces if piece[0] == tokenizer.fim_begin_id]
        rearranged += [undo_fim(piece, tokenizer) for piece in marked]
        whole = [tokenizer.decode(piece) for piece in pieces if piece[0] != tokenizer.fim_begin_id]
        assert set(whole) <= {document.text for document in documents}
    assert 140 <= len(rearranged) <= 260          # 200 expected less what is cut off; deviation 13
    assert set(rearranged) <= {document.text for document in documents}


def test_documents_meet_in_a_new_order_in_every_epoch(documents, tokenizer):
    """Oracle: the streams of two epochs differ; with a FIM rate of 1 both start with a mark."""
    data = Batches(documents, tokenizer, window=40, fim_rate=1.0)
    first, second = (data.make_epoch(epoch)[0] for epoch in (0, 1))
    assert first[0] == second[0] == tokenizer.fim_begin_id
    assert not np.array_equal(first[:200], second[:200])


@pytest.mark.parametrize("options, words", [
    ({"window": 10_000_000}, r"tokens, fewer than one window of 10000000 .* shorter window"),
    ({"window": 8, "fim_rate": 1.5}, r"fim_rate=1.5 .* 0 to 1"),
    ({"window": 8, "seed": -1}, r"seed=-1 .* 0 or more"),
])
def test_bad_values_are_refused(documents, tokenizer, options, words):
    """Oracle: the value and the remedy are in the error's text."""
    with pytest.raises(ValueError, match=words):
        Batches(documents, tokenizer, **options)
