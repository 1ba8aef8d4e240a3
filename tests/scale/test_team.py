"""The plan of a run on several processes: how it is written, and what cannot be divided."""

import pytest

import train_tiny
from minidsv3 import ModelConfig
from minidsv3.command import UserError
from minidsv3.scale.team import Plan
from minidsv3.train.recipe import TrainConfig


def test_a_plan_as_text():
    assert Plan.read("fsdp=4,ep=2") == Plan(ep=2, fsdp=4)
    assert Plan.read("ep=3") == Plan(ep=3, fsdp=1)
    assert str(Plan(ep=2, fsdp=4)) == "ep=2,fsdp=4" and Plan(ep=2, fsdp=4).processes == 8


@pytest.mark.parametrize("text, words", [
    ("ep=2;fsdp=2", "is no plan"), ("tp=2", "is no plan"), ("ep=0", "is no plan"),
    ("ep", "is no plan"), ("", "is no plan"), ("ep=2,ep=2", "gives a size twice")])
def test_what_is_no_plan(text, words):
    with pytest.raises(UserError, match=words):
        Plan.read(text)


def test_what_cannot_be_divided():
    tiny = ModelConfig.preset("tiny")
    recipe = TrainConfig.preset("tiny")
    Plan(ep=2).check(tiny, recipe.replace(batch_size=16, batch_start=16))
    with pytest.raises(UserError, match=r"ep=3 does not divide the \d+ routed experts; choose 1 or "
                                        "2."):
        Plan(ep=3).check(tiny, recipe)
    with pytest.raises(UserError, match="a step of 8 sequences cannot be divided over 3 processes; "
                                        "add --set batch_start=9.$"):
        Plan(fsdp=3).check(tiny, recipe.replace(batch_size=9, batch_start=8))
    with pytest.raises(UserError, match="--set batch_start=12 --set batch_size=12.$"):
        Plan(fsdp=3).check(tiny, recipe.replace(batch_size=10, batch_start=10))


@pytest.mark.parametrize("arguments, words", [
    (["--parallel", "ep=2,fsdp=2"], "is a plan for 4 processes, and this is a single one; start it "
                                    "with: torchrun --nproc-per-node 4 "),
    (["--parallel", "pp=2"], "is no plan"),
    (["--parallel", "ep=2", "--minutes", "1"], "--minutes works in a single process only"),
    (["--parallel", "ep=2", "--compile"], "--compile works in a single process only")])
def test_bad_input_ends_in_one_line(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train_tiny.py", *arguments])
    assert train_tiny.main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not list(tmp_path.iterdir())
