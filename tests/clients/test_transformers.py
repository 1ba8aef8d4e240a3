"""Folders of ours in `transformers`: padding, notices, and a tokenizer that it wrote again."""

import json
import logging

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_tiny
from minidsv3 import hf
from minidsv3.command import UserError
from minidsv3.data.tokenizer import EOS, FIM_HOLE, PAD, SPECIAL_TOKENS, Tokenizer
from minidsv3.hf.__main__ import main
from minidsv3.infer.text import complete
from tests.data.test_foreign import CONFIG, TEXTS, byte_level, read_tokenizer
from tests.hf.example import random_model

PROMPTS = ["def f(x):", "Ünïcödé", "return x + 1\n    words, words and more words"]


@pytest.fixture
def folder(tmp_path):
    """A small model with a tokenizer of its own; its weights are those of a trained one in size."""
    model = random_model(vocab_size=320, num_nextn_predict_layers=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)
    hf.save(model, tmp_path / "ours")
    Tokenizer.train(TEXTS, 320).save(tmp_path / "ours", model.config.max_position_embeddings)
    return tmp_path / "ours"


def in_transformers(folder):
    """The model in float32; its grouped product cannot have the small widths."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                experts_implementation="eager")


@torch.no_grad()
def test_a_padded_batch_gives_the_logits_of_single_prompts(folder):
    """Oracle: our model, one prompt after the other; generating needs padding on the left."""
    tokenizer, theirs = AutoTokenizer.from_pretrained(folder), in_transformers(folder)
    ours, own = hf.load(folder), Tokenizer.load(folder)
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    assert (batch.attention_mask[:, -1] == 1).all() and (batch.attention_mask[:, 0] == 0).sum() == 2
    assert (batch.input_ids[batch.attention_mask == 0] == 2).all()
    logits = theirs(**batch).logits
    for row, prompt in zip(logits, PROMPTS):
        single = ours(torch.tensor([own.encode(prompt)]))[0]
        torch.testing.assert_close(row[-len(single):], single, rtol=1e-4, atol=1e-5)


def test_the_longest_text_is_the_trained_window(folder, miniature, tmp_path, capsys):
    """Oracle: the window, by hand; transformers cuts a longer text there if it is asked to."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 128
    assert len(tokenizer("x1 " * 400, truncation=True).input_ids) == 128
    assert train_tiny.main([*miniature, "--steps", "1", "--set", "max_position_embeddings=96",
                            "--out", str(tmp_path / "run")]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "run").model_max_length == 96
    assert json.loads((tmp_path / "run/config.json").read_text())["max_position_embeddings"] == 96
    assert main(["info", str(tmp_path / "run")]) == 0
    assert "window        96 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("beside", [None, {"eos_token": "x", "model_max_length": 77}])
def test_a_foreign_tokenizer_gets_the_window_of_the_new_model(tmp_path, beside):
    """Oracle: the other settings as they were, and no file where there was none."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    byte_level().save(str(tmp_path / "old/tokenizer.json"))
    if beside:
        (tmp_path / "old/tokenizer_config.json").write_text(json.dumps(beside))
    tokenizer = read_tokenizer(tmp_path / "old", CONFIG)
    tokenizer.save(tmp_path / "new", 48)
    written = tmp_path / "new/tokenizer_config.json"
    assert written.exists() == bool(beside)
    assert not beside or json.loads(written.read_text()) == beside | {"model_max_length": 48}


LATER = ("model_max_length", "padding_side", "pad_token")


@pytest.mark.parametrize("special, lacking, window, pad", [
    (SPECIAL_TOKENS, LATER, 128, PAD),
    ([s for s in SPECIAL_TOKENS if s != PAD], LATER, 128, EOS),
    ([s for s in SPECIAL_TOKENS if s != PAD], ("padding_side",), 61, EOS)])
@pytest.mark.parametrize("by_transformers", [False, True], ids=["", "written again"])
def test_converting_completes_the_settings_of_an_older_tokenizer(folder, tmp_path, special, lacking,
                                                                 window, pad, by_transformers):
    """Oracle: what transformers does with the new folder; ids and tokenizer.json as they were."""
    trained = Tokenizer.load(folder)
    Tokenizer(list(trained.ranks), 320, trained.splits, tuple(special)).save(folder, 61)
    beside = folder / "tokenizer_config.json"
    older = json.loads(beside.read_text(encoding="utf-8"))
    beside.write_text(json.dumps({k: v for k, v in older.items() if k not in lacking}), "utf-8")
    if by_transformers:
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert main(["convert", str(folder), str(tmp_path / "new"), "--fp8"]) == 0
    before, after = map(AutoTokenizer.from_pretrained, (folder, tmp_path / "new"))
    assert (after.model_max_length, after.padding_side, after.pad_token) == (window, "left", pad)
    text = "a: ünïcödé 12345\n" * 3
    assert after(text).input_ids == before(text).input_ids and len(after) == len(before)
    assert after(["x", text], padding=True).attention_mask[0][-1] == 1
    assert ((folder / "tokenizer.json").read_bytes()
            == (tmp_path / "new/tokenizer.json").read_bytes())


@pytest.mark.parametrize("settings", [
    {"eos_token": "x"}, {"eos_token": EOS, "model_max_length": 70},
    {"split_special_tokens": True, "eos_token": EOS, "pad_token": EOS, "padding_side": "right",
     "model_max_length": 33}])
def test_converting_changes_no_other_settings(folder, tmp_path, settings):
    """Oracle: the bytes of the file; a user may have chosen the right side in one of ours."""
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), "utf-8")
    assert main(["convert", str(folder), str(tmp_path / "new")]) == 0
    assert ((folder / "tokenizer_config.json").read_bytes()
            == (tmp_path / "new/tokenizer_config.json").read_bytes())


@pytest.mark.parametrize("name, content", [
    ("tokenizer_config.json", "[1]"), ("tokenizer_config.json", '{"split_special_tokens": tru'),
    ("tokenizer.json", '{"model": 7}')])
def test_a_broken_tokenizer_is_one_line(folder, tmp_path, capsys, name, content):
    """Oracle: exit code 2, the name of the file, and no new folder."""
    beside = folder / "tokenizer_config.json"
    beside.write_text(beside.read_text("utf-8").replace("pad_token", "other"), "utf-8")
    (folder / name).write_text(content)
    assert main(["convert", str(folder), str(tmp_path / "new")]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert name in line and not (tmp_path / "new").exists()


@torch.no_grad()
def test_without_the_mtp_layer_nothing_is_said_and_logits_are_the_same(folder, tmp_path):
    """Oracle: what transformers logs; the logits of our model before the conversion."""
    assert main(["convert", str(folder), str(tmp_path / "main"), "--no-mtp"]) == 0
    values = json.loads((tmp_path / "main/config.json").read_text())
    assert values["num_nextn_predict_layers"] == 0
    transformers.logging.set_verbosity_warning()           # another test may have silenced it
    said, handler = {}, logging.Handler()
    for name in (folder, tmp_path / "main"):
        handler.emit = lambda record, name=name: said.setdefault(name, []).append(
            record.getMessage())
        logging.getLogger("transformers").addHandler(handler)
        theirs = in_transformers(name)
        logging.getLogger("transformers").removeHandler(handler)
    assert "model.layers.3.eh_proj.weight" in "".join(said.pop(folder)) and not said
    tokens = torch.arange(5, 60)[None]
    torch.testing.assert_close(theirs(tokens).logits, hf.load(folder)(tokens), rtol=1e-4, atol=1e-5)
    alone = hf.load(tmp_path / "main")
    assert alone.config.num_nextn_predict_layers == 0 and len(alone.mtp) == 0


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("special", [SPECIAL_TOKENS, [s for s in SPECIAL_TOKENS if s != PAD]],
                         ids=["", "before padding"])
def test_a_tokenizer_written_by_transformers_is_still_ours(folder, tmp_path, special, padding):
    """Oracle: the tokenizer that was read, and the text at temperature 0 that it gives."""
    trained = Tokenizer.load(folder)
    Tokenizer(list(trained.ranks), 320, trained.splits, tuple(special)).save(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    if padding:
        theirs(["x", "return x"], padding="max_length", max_length=9, truncation=True)
    theirs.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again/tokenizer.json").read_text(encoding="utf-8"))
    assert len(written["added_tokens"]) == len(special) and bool(written["padding"]) == padding
    config = hf.read_config(folder)
    before, after = (read_tokenizer(name, config) for name in (folder, tmp_path / "again"))
    assert type(after) is Tokenizer and after.token_bytes == before.token_bytes
    model = hf.load(folder)
    for prompt in ("def f", f"x{FIM_HOLE}"):
        texts = ["".join(piece.text for piece in complete(model, each, prompt, 12))
                 for each in (before, after)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("bos", [False, True])
def test_tokens_that_a_user_added_change_no_other_ids(folder, tmp_path, special, bos):
    """Oracle: transformers' ids, which begin with BOS only if the user wanted that; its text."""
    theirs, model = AutoTokenizer.from_pretrained(folder), in_transformers(folder)
    theirs.add_tokens(["<|say|>", "return"], special_tokens=special)
    theirs.add_bos_token = bos
    model.resize_token_embeddings(len(theirs), pad_to_multiple_of=8, mean_resizing=False)
    for each in (theirs, model):
        each.save_pretrained(tmp_path / "tuned")
    theirs, model = AutoTokenizer.from_pretrained(tmp_path / "tuned"), hf.load(tmp_path / "tuned")
    ours = read_tokenizer(tmp_path / "tuned", model.config)
    assert (model.config.vocab_size, len(theirs)) == (328, 322)
    for text in ["<|say|>return x", " a  return\n\n", "Ünïcödé 東京 123", "\0\r\n",
                 "returns<|say"]:
        ids = theirs(text, split_special_tokens=False).input_ids
        assert ours.encode_prompt(text) == ids and (ids[0] == 0) == bos
        assert ours.decode(ours.encode(text)) == text
    ids = torch.tensor([theirs("<|say|>x", split_special_tokens=False).input_ids])
    wanted = in_transformers(tmp_path / "tuned").generate(ids, max_new_tokens=6, do_sample=False)
    pieces = list(complete(model, ours, "<|say|>x", 6))
    assert [piece.token for piece in pieces[:-1]] == wanted[0, ids.size(1):].tolist()


@pytest.mark.parametrize("change", [
    lambda content: content["added_tokens"].append({"id": 320, "content": "<new>"}),
    lambda content: content["added_tokens"][0].update(id=7),
    lambda content: content["post_processor"].update(special_tokens={"x": {}}),
    lambda content: content["model"].update(ignore_merges=False)])
def test_what_others_have_changed_is_not_ours(folder, tmp_path, change):
    """Oracle: a UserError, after which it is read by the `tokenizers` library."""
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    path = tmp_path / "again/tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="is not a tokenizer that minidsv3 wrote"):
        Tokenizer.load(tmp_path / "again")
