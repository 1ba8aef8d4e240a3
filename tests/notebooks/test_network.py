"""Notebook 01: its checkers take every right answer, nothing above an exercise passes it, its bug
is one."""

import re

import pytest
import torch

import minidsv3.model
from tests.notebooks.conftest import NOTEBOOKS, imported, read

NOTEBOOK = NOTEBOOKS / "01_what_is_deepseek_v3.ipynb"
FORMS = [torch.Tensor.float, torch.Tensor.double, torch.Tensor.tolist]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["rms_norm", "swiglu", "fused_block"])
def test_right_vectors_pass_in_each_form(name, form, check, capsys):
    """Oracle: the verdict; the answer of the oracle as float32, as float64 and as lists."""
    right = getattr(imported("oracles"), name)

    def student(*arguments):
        answer = right(*arguments)
        return [form(each) for each in answer] if name == "fused_block" else form(answer)

    assert getattr(check, name)(student)
    assert capsys.readouterr().out == "passed\n"


@pytest.mark.parametrize("form", [float, torch.tensor, torch.DoubleTensor])
@pytest.mark.parametrize("name", ["active_parameters", "bits_a_byte"])
def test_right_numbers_pass_in_each_form(name, form, check):
    """Oracle: the verdict; the answer of the oracle as a number and as a tensor."""
    right = getattr(imported("oracles"), name)
    assert getattr(check, name)(lambda *arguments: torch.as_tensor(
        form(right(*arguments)) if form in (float, torch.tensor) else form([right(*arguments)])
    ).reshape(()))


def test_the_bug_of_the_notebook_is_one(check, capsys):
    """The function in the notebook, renamed, fails with the words of its slip."""
    cell, = (cell for cell in read(NOTEBOOK)["cells"] if cell["id"] == "bug-code")
    namespace = {}
    exec(cell["source"], namespace)
    assert not check.fused_block(namespace["buggy_block"])
    assert "Your norms still replace the stream." in capsys.readouterr().out


def test_the_reading_order_is_that_of_the_package():
    """Oracle: the docstring of the model's package, which names all its files."""
    texts = [read(NOTEBOOK)["cells"][-1]["source"], minidsv3.model.__doc__]
    orders = [re.search(r"in this order:\s+([\w\s,]+)\.", text).group(1) for text in texts]
    assert len({tuple(re.findall(r"\w+", order)) for order in orders}) == 1
