"""What a tokenizer.json of others may hold besides its tokens, and what a corpus may spell."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from minidsv3 import DeepSeekV3
from minidsv3.command import UserError
from minidsv3.data.foreign import read_tokenizer
from minidsv3.data.tokenizer import BOS, EOS, FIM_HOLE, VISIBLE, Tokenizer
from minidsv3.infer.text import complete, split_prompt
from tests.data.test_foreign import CONFIG, TEXTS, byte_level

TEXT = "return the words of <think> and more words"


def written(folder, change=lambda content: None, **beside):
    """A folder with the tokenizer of `byte_level`, its contents changed; beside: other files."""
    content = json.loads(byte_level().to_str())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    if beside:
        (folder / "tokenizer_config.json").write_text(json.dumps(beside), encoding="utf-8")
    return folder


def with_call_settings(content):
    made = byte_level.__wrapped__()
    made.enable_truncation(5)
    made.enable_padding(length=64, pad_id=3)
    content.update({key: json.loads(made.to_str())[key] for key in ("truncation", "padding")})
    content["model"]["dropout"] = 0.7


@pytest.mark.parametrize("change", [
    with_call_settings, lambda content: content["model"].pop("type"),
    lambda content: content.pop("decoder"), lambda content: content.update(decoder=None)])
def test_settings_of_single_calls_and_absent_keys_change_no_id(tmp_path, change):
    """Oracle: the ids of the library without these settings."""
    tokenizer = read_tokenizer(written(tmp_path, change), CONFIG)
    expected = byte_level().encode(TEXT, add_special_tokens=False).ids
    assert tokenizer.encode(TEXT) == tokenizer.encode(TEXT) == expected
    assert tokenizer.encode_array(TEXT).tolist() == expected
    assert tokenizer.encode_prompt(TEXT) == [0, *expected]
    assert tokenizer.decode(expected) == TEXT


MARKS = [BOS, EOS, FIM_HOLE, "<|end|>", "words"]


def with_marks(content):
    """Two more tokens: one that is not called special, and a word that is."""
    content["added_tokens"] += [
        {"id": 401, "content": "<|end|>", "special": False, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False},
        {"id": 402, "content": "words", "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}]
    content["model"]["vocab"] |= {"<|end|>": 401, "words": 402}
    content["model"]["ignore_merges"] = True


@pytest.mark.parametrize("mark", MARKS)
def test_a_corpus_yields_no_special_token_and_a_prompt_does(tmp_path, mark):
    """Oracle: the bytes of the text; the library's ids for a prompt."""
    config = CONFIG.replace(eos_token_id=(1, 401))
    tokenizer = read_tokenizer(written(tmp_path, with_marks), config)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    number, text = library.token_to_id(mark), f"x{mark}{mark} y <think>{mark}"
    for ids in (tokenizer.encode(text), tokenizer.encode_array(text).tolist()):
        assert number not in ids and tokenizer.decode_bytes(ids) == text.encode()
        assert sum(len(tokenizer.token_bytes[token]) for token in ids) == len(text.encode())
    assert tokenizer.encode_prompt(text) == library.encode(text).ids
    assert tokenizer.encode_prompt(text)[1:].count(number) == 3


@pytest.mark.parametrize("prompt, ending", [
    ("a<think>", ""), (f"<think>def{EOS}", ""), (f"{EOS} (\n", " (\n"), ("<think>a (", " ("),
    (f"x{FIM_HOLE}{EOS}", ""), ("if (", " ("), ("a <thin", "")])
def test_an_added_token_is_never_cut(tmp_path, prompt, ending):
    """Oracle: by hand; the ids of what is not cut are those of the library."""
    tokenizer = read_tokenizer(written(tmp_path), CONFIG)
    stem, cut = split_prompt(prompt, tokenizer.uncut(prompt))
    assert (stem + cut, cut) == (prompt, ending)
    assert tokenizer.encode_prompt(stem) == byte_level().encode(stem).ids


def test_null_bos_and_eos_stay_null(tmp_path):
    """Oracle: no id in front of a prompt; what needs one is refused in one line."""
    config = CONFIG.replace(bos_token_id=None, eos_token_id=None)
    tokenizer = read_tokenizer(written(tmp_path), config)
    assert tokenizer.encode_prompt("x") == tokenizer.encode("x")
    for name in ("eos_id", "start_id"):
        with pytest.raises(UserError, match="name no token that ends a text; give eos_token_id"):
            getattr(tokenizer, name)
    named = read_tokenizer(written(tmp_path, eos_token={"content": FIM_HOLE}), config)
    assert named.eos_id == named.start_id == 2
    assert read_tokenizer(tmp_path, config.replace(eos_token_id=(3, 1))).start_id == 3


def test_an_end_token_that_is_an_ordinary_one_keeps_its_bytes(tmp_path):
    """Oracle: the text; config.json may name any token."""
    written(tmp_path)
    letter = byte_level().token_to_id("e")
    tokenizer = read_tokenizer(tmp_path, CONFIG.replace(eos_token_id=letter, bos_token_id=letter))
    assert letter in tokenizer.encode("he") and tokenizer.decode(tokenizer.encode("he")) == "he"


@pytest.mark.parametrize("eos, ids, notices", [
    (EOS, (1, 7), 0), (EOS, 1, 0), ({"content": FIM_HOLE}, 1, 1), (EOS, (3, 5), 1),
    (None, 1, 0), ("never heard of", 1, 0), (EOS, None, 0)])
def test_another_end_token_than_the_tokenizer_s_is_said(tmp_path, capsys, eos, ids, notices):
    """Oracle: one line with both; none where they agree or one of them is silent."""
    read_tokenizer(written(tmp_path, eos_token=eos), CONFIG.replace(eos_token_id=ids))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == notices
    for line in lines:
        assert f"eos_token_id={ids} is not the end token of the tokenizer" in line


def test_our_tokenizer_beside_another_end_token_is_said_too(tmp_path, capsys):
    """Oracle: one line with both ids."""
    Tokenizer.train(TEXTS, 300).save(tmp_path)
    read_tokenizer(tmp_path, CONFIG.replace(vocab_size=300, eos_token_id=8))
    line, = capsys.readouterr().err.splitlines()
    assert "eos_token_id=8 is not the end token of the tokenizer, 1;" in line


def test_a_tokenizer_without_some_bytes_is_refused(tmp_path):
    """Oracle: one line; letters alone were in its training text, so 10, the line end, is absent."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(["only letters"], trainers.BpeTrainer(vocab_size=30))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="no token for 2.. of the bytes .* 0 among") as caught:
        read_tokenizer(tmp_path, CONFIG)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("byte", [0x0D, 0x51, 0xD0])
def test_a_tokenizer_of_ours_without_a_byte_is_refused(tmp_path, byte):
    """Somebody has renamed the token of a byte. Oracle: one line with the byte."""
    Tokenizer.train(["aaa"], 420).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["unused"] = vocabulary.pop(VISIBLE[byte])
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=f"no token for 1 of the bytes .* {byte} among") as caught:
        read_tokenizer(tmp_path, CONFIG)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings, first", [
    ({}, [0]), ({"add_bos_token": True}, [0]), ({"add_bos_token": None}, [0]),
    ({"add_bos_token": False}, []), ({"split_special_tokens": True}, [])])
def test_bos_stays_out_of_a_prompt_where_the_tokenizer_says_so(tmp_path, settings, first):
    """Oracle: by hand. Without a word about it BOS comes first, as in the released model."""
    tokenizer = read_tokenizer(written(
        tmp_path, lambda content: content.update(post_processor=None), eos_token=EOS, **settings),
        CONFIG)
    assert tokenizer.encode_prompt("words") == first + tokenizer.encode("words")
    assert tokenizer.start_id == (0 if first else 1)
    assert tokenizer.decode_bytes([0]) == b""


def test_bytes_that_no_text_has_may_be_absent(tmp_path):
    """Oracle: UTF-8 never has the bytes C0, C1 and F5 to FF."""
    absent = [character for byte, character in zip(range(0xA1, 0x100), map(chr, range(0xA1, 0x100)))
              if byte in (0xC0, 0xC1) or byte >= 0xF5]
    tokenizer = read_tokenizer(
        written(tmp_path, lambda c: [c["model"]["vocab"].pop(each) for each in absent]), CONFIG)
    assert tokenizer.decode(tokenizer.encode("ÿ 東京 🙂")) == "ÿ 東京 🙂"


@pytest.mark.parametrize("bos", [0, None])
@pytest.mark.parametrize("prompt", [f"{EOS}do it<think>", f"{FIM_HOLE}", "  ", "x"])
def test_what_a_model_reads_first_is_what_the_library_gives(tmp_path, bos, prompt):
    """Oracle: the library's ids; signs without a word before them stay if there is no BOS."""
    config = CONFIG.replace(bos_token_id=bos)
    tokenizer = read_tokenizer(written(tmp_path), config)
    model = DeepSeekV3(config.replace(hidden_size=8, num_hidden_layers=1, first_k_dense_replace=1,
                                      num_nextn_predict_layers=0))
    sequence = complete(model, tokenizer, prompt, 3).sequence
    cut = "" if bos is None or prompt.strip() else prompt
    library = byte_level().encode(prompt.removesuffix(cut), add_special_tokens=False).ids
    assert sequence.tokens == ([] if bos is None else [0]) + library
    assert sequence.ending == cut.encode()


def test_an_end_token_of_the_vocabulary_alone_is_not_forged(tmp_path):
    """It is no added token, and a text reaches it by merges. Oracle: ids, and the text's bytes.

    A prompt gets the library's ids, and the token still ends a text and has no bytes.
    """
    def change(content):
        content["added_tokens"] = []

    word = byte_level().token_to_id("Ġwords")
    config = CONFIG.replace(eos_token_id=word)
    tokenizer = read_tokenizer(written(tmp_path, change), config)
    text = "some words and words"
    ids = tokenizer.encode(text)
    assert word not in ids and tokenizer.decode(ids) == text
    assert word in tokenizer.encode_prompt(text) and tokenizer.token_bytes[word] == b""
    assert tokenizer.eos_id == word


@pytest.mark.parametrize("flags", [
    {"lstrip": True, "special": False}, {"rstrip": True, "special": False},
    {"lstrip": True, "rstrip": True, "special": True}])
def test_spaces_around_added_tokens_are_kept_in_a_corpus(tmp_path, flags):
    """The library drops them. Oracle: the bytes of the text; prompts get the library's ids."""
    def change(content):
        next(token for token in content["added_tokens"]
             if token["content"] == "<think>").update(flags)

    tokenizer = read_tokenizer(written(tmp_path, change), CONFIG)
    text, library = "a   <think>  b <think>\n", tokenizers.Tokenizer.from_file(
        str(tmp_path / "tokenizer.json"))
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()
    assert tokenizer.encode_prompt(text) == library.encode(text).ids
    stem, ending = split_prompt(text, tokenizer.uncut(text))
    marks = [[number for number in ids if number in tokenizer.added]
             for ids in (library.encode(text).ids, tokenizer.encode_prompt(stem))]
    assert marks[0] == marks[1]
    assert stem + ending == text


def test_a_tokenizer_of_ours_that_was_changed_is_read_as_a_foreign_one(tmp_path):
    """Its special tokens are no added ones. Oracle: our own ids, and the bytes of the text."""
    ours = Tokenizer.train(TEXTS, 420)
    ours.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["fuse_unk"] = True          # changes no id, but we do not write it
    path.write_text(json.dumps(content), encoding="utf-8")
    tokenizer, text = read_tokenizer(tmp_path, CONFIG), f"def f(x): {EOS}words"
    assert type(tokenizer) is not Tokenizer and tokenizer.eos_id == ours.eos_id
    assert tokenizer.encode(text) == ours.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("change", [
    lambda content: content["model"].update(dropout=0.3),
    lambda content: content.update(post_processor={
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True})])
def test_what_changes_no_id_leaves_a_tokenizer_ours(tmp_path, change):
    """As the `tokenizers` library writes it. Oracle: the type and the ids."""
    ours = Tokenizer.train(TEXTS, 420)
    ours.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    tokenizer = read_tokenizer(tmp_path, CONFIG)
    assert type(tokenizer) is Tokenizer and tokenizer.encode(TEXTS[1]) == ours.encode(TEXTS[1])
