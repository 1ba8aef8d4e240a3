"""Folders of ours in `transformers`: padding, notices, and a tokenizer that it wrote again."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_tiny
from minidsv3 import hf
from minidsv3.data.tokenizer import Tokenizer
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


def test_the_longest_text_is_the_trained_window(folder, miniature, tmp_path):
    """Oracle: the window, by hand; transformers cuts a longer text there if it is asked to."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 128
    assert len(tokenizer("x1 " * 400, truncation=True).input_ids) == 128
    assert train_tiny.main([*miniature, "--steps", "1", "--set", "max_position_embeddings=96",
                            "--out", str(tmp_path / "run")]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "run").model_max_length == 96


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
