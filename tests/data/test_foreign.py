"""The tokenizer.json of others: ids as in the library that made it, and bytes for every token."""

import functools
import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from minidsv3 import ModelConfig
from minidsv3.data.foreign import ForeignTokenizer, read_tokenizer
from minidsv3.data.tokenizer import BOS, EOS, FIM_BEGIN, FIM_END, FIM_HOLE, Tokenizer

CONFIG = ModelConfig.preset("tiny").replace(vocab_size=420)
TEXTS = ["def f(x):\n    return x + 1\n" * 9, "Ünïcödé 東京 🙂 and more words, words\n" * 9]


@functools.cache
def byte_level():
    """A tokenizer like DeepSeek's: byte-level BPE, BOS in front, FIM marks as added tokens."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=400, special_tokens=[BOS, EOS, FIM_HOLE, FIM_BEGIN, FIM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    made.add_tokens(["<think>"])
    made.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return made


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    byte_level().save(str(folder / "tokenizer.json"))
    return read_tokenizer(folder, CONFIG)


@given(st.text())
def test_ids_are_the_library_s_and_bytes_add_up(foreign, text):
    """Oracle: the library's own ids; the text's UTF-8."""
    ids = foreign.encode(text)
    assert ids == byte_level().encode(text, add_special_tokens=False).ids
    assert foreign.decode_bytes(ids) == text.encode() and foreign.decode(ids) == text
    assert foreign.encode_array(text).tolist() == ids


def test_added_tokens_and_marks(foreign):
    """Oracle: special tokens have no bytes, other added tokens have their text; BOS comes first."""
    assert foreign.decode(foreign.encode("a<think>b")) == "a<think>b"
    assert foreign.encode_prompt(EOS) == [0, 1] and foreign.decode([1]) == ""
    for prompt in ("x", f"<think>words{FIM_HOLE}", f"a{EOS}<think>"):
        assert foreign.encode_prompt(prompt) == byte_level().encode(prompt).ids
    assert (foreign.start_id, foreign.eos_id) == (0, 1)
    assert (foreign.fim_hole_id, foreign.fim_begin_id, foreign.fim_end_id) == (2, 3, 4)
    assert len(foreign.token_bytes) == 420 and foreign.token_bytes[419] == b""


def test_ours_is_recognised(tmp_path):
    """Oracle: the class, and an error for another vocabulary size."""
    Tokenizer.train(TEXTS, 300).save(tmp_path)
    assert isinstance(read_tokenizer(tmp_path, CONFIG.replace(vocab_size=300)), Tokenizer)
    with pytest.raises(ValueError, match="has 300 tokens, but .*vocab_size=420"):
        read_tokenizer(tmp_path, CONFIG)


def test_save_copies_what_was_read(foreign, tmp_path):
    """Oracle: the bytes of the file."""
    foreign.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == foreign.path.read_bytes()
    assert isinstance(read_tokenizer(tmp_path, CONFIG), ForeignTokenizer)


def word_pieces(folder):
    made = tokenizers.Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}))
    made.save(str(folder / "tokenizer.json"))


def no_byte_level(folder):
    made = byte_level.__wrapped__()
    made.decoder = decoders.Fuse()
    made.save(str(folder / "tokenizer.json"))


def too_large(folder):
    made = byte_level.__wrapped__()
    made.add_tokens([f"<{n}>" for n in range(200)])
    made.save(str(folder / "tokenizer.json"))


def other_file(folder):
    (folder / "tiktoken.model").write_text("x")
    (folder / "tokenization_kimi.py").write_text("x")


@pytest.mark.parametrize("spoil, words", [
    (lambda folder: None, "tokenizer.json is missing; only tokenizer.json is read"),
    (other_file, "tokenizer.json is missing.*not tokenization_kimi.py"),
    (word_pieces, "cannot be used .*byte-level BPE"), (no_byte_level, "cannot be used"),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be used"),
    (lambda folder: (folder / "tokenizer.json").write_text(json.dumps([])), "cannot be used"),
    (too_large, "has token ..., but config.json says vocab_size=420")])
def test_what_cannot_be_read_ends_in_one_line(tmp_path, spoil, words):
    """Oracle: the path, the reason and the remedy are in the text."""
    spoil(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        read_tokenizer(tmp_path, CONFIG)
    assert "\n" not in str(caught.value) and "tokenizer.json" in str(caught.value)
