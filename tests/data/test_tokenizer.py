"""Byte-level BPE; oracles: `tokenizers`, `transformers`, a plain BPE loop, the bytes themselves."""

import json
import random

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from minidsv3.data import corpus
from minidsv3.data.tokenizer import (
    FIM_BEGIN,
    PAD,
    RELEASED,
    RELEASED_AS_ONE,
    SPECIAL_TOKENS,
    SPLITS,
    Tokenizer,
)

ODD = ["", " ", "\n", "\r\n\r\n\t x", "  \u3000\u2028\x85", "e\u0301\u0308", "👩‍👩‍👧🏽", "ab" * 300,
       "x" + " " * 97 + "1", "a_b__c9_d", "١٢٣४५", "if x:\r\n\t\treturn -1.5e-07  # ½\n" * 3,
       "\x00\x7f\x80", "<｜end▁of▁sentence｜>", "価格は12円、ABCカメラ・です。",
       "x  漢字 1  .5", "\u3040あ\u3097b"]


@pytest.fixture(scope="module")
def documents():
    return corpus.load().documents[:60]


@pytest.fixture(scope="module", params=SPLITS)
def tokenizer(documents, request):
    return Tokenizer.train([document.text for document in documents], 700, request.param)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def foreign(folder):
    """The saved files as the two other libraries read them: three functions text -> ids."""
    import tokenizers
    import transformers

    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    alone = transformers.AutoTokenizer.from_pretrained(folder)
    config = folder / "config.json"                # as in a run folder
    config.write_text(json.dumps({"model_type": "deepseek_v3"}), encoding="utf-8")
    beside_config = transformers.AutoTokenizer.from_pretrained(folder)
    config.unlink()
    return [lambda text: plain.encode(text).ids, alone.encode, beside_config.encode]


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.text(alphabet=" \n\t\r_=-#.aZ0é\u0301\U0001f600", max_size=60))
def test_any_text_comes_back_and_three_libraries_agree(tokenizer, foreign, text):
    """Oracle: the text itself, and the ids of `tokenizers` and `transformers`."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    for encode in foreign:
        assert encode(text) == ids


@pytest.mark.parametrize("text", ODD)
def test_odd_text_comes_back_and_three_libraries_agree(tokenizer, foreign, text):
    """Oracle: as above, for white space, accents, repetitions, other digits, control characters."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and [encode(text) for encode in foreign] == [ids] * 3


def test_real_files_agree_and_the_bytes_of_their_tokens_add_up(tokenizer, foreign, documents):
    """Oracle: the file's length in bytes; ids of the other libraries."""
    for document in documents[::6]:
        ids = tokenizer.encode(document.text)
        data = document.text.encode()
        assert sum(len(tokenizer.token_bytes[token]) for token in ids) == len(data)
        assert tokenizer.decode_bytes(ids) == data
        assert all(encode(document.text) == ids for encode in foreign)
    texts = [document.text for document in documents]
    assert all(tokenizer.encode_array(text).tolist() == tokenizer.encode(text) for text in texts)


def python_form(expression):
    """Rust's \\x{80} in Python's spelling."""
    return regex.sub(r"\\x\{(\w+)\}", lambda found: chr(int(found[1], 16)), expression)


def pieces_of(text, splits):
    """The pieces by splits made one after the other; what none takes stays together."""
    pieces = [text]
    for split in splits:
        pieces = [part for piece in pieces
                  for part in regex.split(f"({python_form(split)})", piece) if part]
    return pieces


def test_one_expression_splits_as_the_three_released_ones_do():
    """Oracle: the three, one after the other. A run of characters that none takes may be cut."""
    draw = random.Random(0)
    pool = ("aZé1٣ \t\n\r.,_()$\"'+=~`^|<>漢字ひカー・゛゙\u3040\u0301\x00\u200b\u00a0\u3000\u2028"
            "😀न्한А")
    expression = regex.compile(RELEASED_AS_ONE, regex.V1)
    for _ in range(5_000):
        text = "".join(draw.choices(pool, k=draw.randint(1, 9)))
        pieces = [match.group() for match in expression.finditer(text)]
        assert "".join(pieces) == text
        cuts, expected = cuts_of(pieces), cuts_of(pieces_of(text, RELEASED))
        assert expected <= cuts
        taken_by_none = regex.compile(r"[^\s\p{L}\p{M}\p{N}\p{P}\p{S}]{2}")
        assert all(taken_by_none.fullmatch(text[cut - 1:cut + 1]) for cut in cuts - expected)


def cuts_of(pieces):
    """Where pieces end, in characters from the start."""
    return {sum(map(len, pieces[:number + 1])) for number in range(len(pieces))}


@pytest.mark.parametrize("unit", [" ", "\t", " \n", "\x00", "一 "])
def test_long_runs_come_back(tokenizer, unit):
    """Oracle: the text itself. With the last released split as it is, tiktoken fails at 10^6."""
    text = unit * (1_000_001 if unit == " " else 30_000)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_file_without_padding_and_with_another_split_is_read_as_it_is(tokenizer, tmp_path):
    """Oracle: the tokenizer that was saved. Checkpoints of before have no token for padding."""
    special = tuple(name for name in SPECIAL_TOKENS if name != PAD)
    before = Tokenizer(list(tokenizer.ranks), 699, (r"[^\n]*\n*",), special)
    before.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.special.index(FIM_BEGIN) == loaded.fim_begin_id == 2
    assert loaded.encode("for x in y:\n\n  z") == before.encode("for x in y:\n\n  z")
    assert loaded.token_bytes == before.token_bytes


def test_ids_are_those_of_a_plain_bpe_loop(tokenizer, documents):
    """Oracle: join the pair of lowest rank, leftmost first, until no pair is a token."""
    text = documents[3].text[:1500] + "e\u0301 ½ 12345"
    ids = []
    for piece in pieces_of(text, tokenizer.splits):
        parts = [bytes([byte]) for byte in piece.encode()]
        while True:
            ranked = [(tokenizer.ranks[a + b], place) for place, (a, b) in
                      enumerate(zip(parts, parts[1:])) if a + b in tokenizer.ranks]
            if not ranked:
                break
            place = min(ranked)[1]
            parts[place:place + 2] = [parts[place] + parts[place + 1]]
        ids += [tokenizer.ranks[part] for part in parts]
    assert tokenizer.encode(text) == ids


def test_special_tokens_have_the_released_names_and_the_first_ids(tokenizer, folder):
    """Oracle: the names as the release spells them (U+FF5C, U+2581), read by `transformers`."""
    import transformers

    names = [f"<\uff5c{words}\uff5c>" for words in (
        "begin\u2581of\u2581sentence", "end\u2581of\u2581sentence", "\u2581pad\u2581",
        "fim\u2581begin", "fim\u2581hole", "fim\u2581end")]
    other = transformers.AutoTokenizer.from_pretrained(folder)
    assert other.convert_tokens_to_ids(names) == [0, 1, 2, 3, 4, 5]
    assert [tokenizer.bos_id, tokenizer.eos_id, tokenizer.fim_begin_id, tokenizer.fim_hole_id,
            tokenizer.fim_end_id] == [0, 1, 3, 4, 5]
    assert (other.bos_token_id, other.eos_token_id, other.pad_token_id) == (0, 1, 2)
    assert len(other) == tokenizer.vocab_size
    assert other.decode([0, *tokenizer.encode("x"), 1, 4], skip_special_tokens=True) == "x"
    assert tokenizer.decode([0, *tokenizer.encode("x"), 1, 5]) == "x"


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_text_that_spells_a_special_token_stays_text(tokenizer, name):
    """Oracle: no special id in the result, and the text comes back."""
    ids = tokenizer.encode(f"a{name}\n{name}")
    assert min(ids) >= len(SPECIAL_TOKENS) and tokenizer.decode(ids) == f"a{name}\n{name}"


def test_lone_surrogates_become_the_replacement_character(tokenizer):
    """Oracle: Python's own decoder of UTF-16 with errors replaced."""
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.encode_array("a\ud800b").tolist() == tokenizer.encode("a\ud800b")


def test_incomplete_characters_show_as_replacement_but_keep_their_bytes(tokenizer):
    """Oracle: the first bytes of the euro sign."""
    ids = [tokenizer.ranks[bytes([byte])] for byte in "€".encode()]
    assert tokenizer.decode_bytes(ids[:2]) == b"\xe2\x82" and tokenizer.decode(ids[:2]) == "\ufffd"
    assert tokenizer.decode(ids) == "€"


def test_loading_gives_the_same_tokenizer_and_the_same_file(tokenizer, folder, tmp_path):
    """Oracle: the first file, byte for byte."""
    loaded = Tokenizer.load(folder)
    assert loaded.token_bytes == tokenizer.token_bytes and loaded.vocab_size == 700
    loaded.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_corpus_too_small_leaves_empty_places(tmp_path):
    """Oracle: the size asked for, in ours and in `tokenizers`, and decoding of every id."""
    import tokenizers

    small = Tokenizer.train(["abc abc"], 300)
    assert small.vocab_size == len(small.token_bytes) == 300 and len(small.ranks) < 294
    assert small.decode(range(300)).startswith("\x00\x01") and small.decode([299]) == ""
    small.save(tmp_path)
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size() == 300
    loaded = Tokenizer.load(tmp_path)
    assert loaded.token_bytes == small.token_bytes
    assert loaded.encode("abc é") == small.encode("abc é")


def test_training_again_gives_the_same_ids(tokenizer, documents):
    """Oracle: a second training."""
    kind = next(name for name in SPLITS if SPLITS[name] == tokenizer.splits)
    assert Tokenizer.train((each.text for each in documents), 700, kind).ranks == tokenizer.ranks


def test_merges_are_learned_from_the_commonest_pair_on():
    """Oracle: pairs counted by hand: "he" 6 times, then "he" + "n" 4 times, the rest less."""
    tokenizer = Tokenizer.train(["hen", "hen", "hen", "hen", "hex", "hey"], 264)
    assert tokenizer.token_bytes[6:262] == [bytes([byte]) for byte in range(256)]
    assert tokenizer.token_bytes[262:] == [b"he", b"hen"]


def change(content, *path, value):
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


@pytest.mark.parametrize("path, value", [
    (["model", "type"], "Unigram"), (["pre_tokenizer", "pretokenizers"], []), (["model"], None),
    (["normalizer"], {"type": "NFC"}), (["model", "ignore_merges"], False),
    (["model", "vocab", "a"], 3), (["added_tokens"], [{"id": 700, "content": "x"}]),
])
def test_a_foreign_tokenizer_file_is_refused_in_one_line(folder, tmp_path, path, value):
    """Oracle: the path and the remedy are in the error's text."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(content, *path, value=value)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not .*AutoTokenizer") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_values_are_refused(tokenizer, tmp_path):
    """Oracle: the value and the remedy are in the error's text."""
    with pytest.raises(ValueError, match="vocab_size=261 .* at least 262"):
        Tokenizer.train(["a"], 261)
    with pytest.raises(ValueError, match="token id 700 .* 0 to 699"):
        tokenizer.decode([700])
    with pytest.raises(FileNotFoundError, match="train_tiny.py"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path)
