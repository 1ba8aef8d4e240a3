"""The two configurations of a run, above all the window that config.json will say."""

import json

import pytest

from minidsv3.command import UserError
from minidsv3.config import ModelConfig
from minidsv3.train.options import configure, parse_arguments
from minidsv3.train.recipe import TrainConfig


def windows(*words, saved=None):
    """The window that config.json will say, and the one that is trained."""
    model, recipe = configure(parse_arguments(words), saved)
    return model.max_position_embeddings, recipe.window


def test_a_new_run_writes_its_window(capsys):
    """Oracle: the recipes; more is written only if it is asked for by name."""
    assert windows() == (256, 256)
    assert windows("--preset", "small") == (1024, 1024)
    assert windows("--set", "window=512") == (512, 512)
    assert windows("--set", "window=64") == (64, 64)
    assert windows("--set", "max_position_embeddings=4096") == (4096, 256)
    assert capsys.readouterr().err == ""


def test_less_than_the_window_is_refused():
    """Oracle: the words of the error; it names both numbers."""
    with pytest.raises(UserError, match="max_position_embeddings=255 .*window=256.*leave it out"):
        windows("--set", "max_position_embeddings=255")


def test_from_a_checkpoint_the_longer_window_is_written(finished_run, capsys):
    """Oracle: by hand, for a checkpoint that says 256; a longer window is told in one line."""
    start = "--from", str(finished_run)
    assert windows(*start, "--set", "window=32") == (256, 32)
    assert windows(*start) == (256, 256)
    assert windows(*start, "--set", "window=32", "--set", "max_position_embeddings=64") == (64, 32)
    assert capsys.readouterr().err == ""
    assert windows(*start, "--set", "window=512") == (512, 512)
    line, = capsys.readouterr().err.splitlines()
    assert line == (f"window=512 is longer than the 256 tokens that {finished_run} was trained on "
                    "(max_position_embeddings); the new config.json says the longer one.")


def test_several_end_tokens_resume_from_the_state_of_several_processes():
    """Oracle: that state is JSON, so their tuple is a list there."""
    start = ["--set", "eos_token_id=[1,5]"]
    model, recipe = configure(parse_arguments(start))
    saved = json.loads(json.dumps({"model_config": model.to_dict(), "config": recipe.to_dict()}))
    for words in ([], start):
        assert configure(parse_arguments(["--resume", *words]), saved) == (model, recipe)
    with pytest.raises(UserError, match=r"began with eos_token_id=\[1, 5\], not \[1, 6\]; leave"):
        configure(parse_arguments(["--resume", "--set", "eos_token_id=[1,6]"]), saved)


def test_a_run_that_began_with_another_window_resumes():
    """Oracle: a run saved before config.json said the trained window keeps its 4,096."""
    saved = {"model_config": ModelConfig.preset("tiny").to_dict() | {
        "max_position_embeddings": 4096}, "config": TrainConfig.preset("tiny").to_dict()}
    for words in ([], ["--preset", "tiny"], ["--set", "window=256"],
                  ["--set", "max_position_embeddings=4096"]):
        assert windows("--resume", *words, saved=saved) == (4096, 256)
    with pytest.raises(UserError, match="began with max_position_embeddings=4096, not 256; leave"):
        windows("--resume", "--set", "max_position_embeddings=256", saved=saved)
