"""Notebook 00: its checkers take every right answer, its bug is one, its pictures show the data."""

import re

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as attention

from tests.notebooks.conftest import NOTEBOOKS, imported, read

NOTEBOOK = NOTEBOOKS / "00_what_does_a_transformer_remember.ipynb"


def with_output(form):
    """A right decoder step whose output and cache have this form."""
    def step(q, k, v, cache):
        for name, new in (("k", k), ("v", v)):
            cache[name] = form(torch.cat([cache[name], new], dim=1))
        return form(attention(q, torch.as_tensor(cache["k"]).float(),
                              torch.as_tensor(cache["v"]).float()))
    return step


@pytest.mark.parametrize("form", [torch.Tensor.float, torch.Tensor.double, torch.Tensor.tolist])
def test_a_right_step_passes_in_each_form(form, check, capsys):
    """Oracle: the verdict; the answer as float32, as float64 and as lists."""
    assert check.decoder_step(with_output(form))
    assert capsys.readouterr().out == "passed\n"


@pytest.mark.parametrize("form", [list, tuple, torch.tensor, torch.DoubleTensor, torch.Tensor])
def test_right_counts_pass_in_each_form(form, check):
    """Oracle: the sum of an arithmetic series; the two numbers as list, tuple and tensors."""
    assert check.keys_computed(lambda prompt, new: form(
        [new * prompt + new * (new - 1) // 2, prompt + new - 1]))


@pytest.mark.parametrize("form, right", [
    (torch.Tensor.bool, True), (torch.Tensor.int, True), (torch.Tensor.tolist, True),
    (torch.Tensor.float, False), (torch.Tensor.double, False)])
def test_a_right_mask_passes_unless_attention_would_add_it(form, right, check, capsys):
    """Oracle: compared positions; a mask of floats is no mask, because torch adds it to scores."""
    assert right is check.may_see(lambda new, total: form(
        torch.arange(total - new, total)[:, None] >= torch.arange(total)))
    assert right is ("attention adds a mask of floats" not in capsys.readouterr().out)


def test_a_named_slip_is_one_that_gives_these_numbers(check, capsys):
    """Oracle: the words; numbers that no slip gives are not named, and the case is printed."""
    slips = [("You add.", lambda x: x + 3), ("You took the square.", lambda x: x * x)]
    for student, words in ((lambda x: x * x, "for 5: expected 10, got 25. You took the square. Hm"),
                           (lambda x: 3 * x, "for 5: expected 10, got 15. Hm"),
                           (lambda x: [x + 3], "for 5: expected shape (), got (1,). Hm"),
                           (lambda x: None, "for 5: your function returned nothing")):
        assert not check.compare(student, (5,), lambda x: 2 * x, "Hm", slips=slips,
                                 describe=lambda x: f"for {x}")
        assert capsys.readouterr().out.startswith(f"not yet: {words}")


def test_the_bug_appears_with_the_second_piece():
    """The function in the notebook is right for the first piece, wrong for the second one, and
    right with the mask of the oracle, which is that of a prompt read at once.
    """
    cells = {cell["id"]: cell["source"] for cell in read(NOTEBOOK)["cells"]}
    names = {"torch": torch, "attention": attention}
    exec(re.search(r"```python\n(.*?)```", cells["exercise-3"], flags=re.S).group(1), names)
    q, k, v = torch.randn(3, 2, 7, 4, generator=torch.Generator().manual_seed(1))
    whole = attention(q, k, v, is_causal=True)
    cache = {"k": k[:, :0], "v": v[:, :0]}
    pieces = [names["read_piece"](q[:, part], k[:, part], v[:, part], cache)
              for part in (slice(0, 4), slice(4, 7))]
    torch.testing.assert_close(pieces[0], whole[:, :4])
    assert (pieces[1] - whole[:, 4:]).abs().max() > 0.1
    mask = torch.tensor(imported("oracles").may_see(3, 7))
    torch.testing.assert_close(attention(q[:, 4:], k, v, attn_mask=mask), whole[:, 4:])


def test_changes_are_counted_and_drawn():
    """Oracle: by hand; of 1 + 2 old keys one changes by 0.5 in one panel, none in the other."""
    one, two, three = (torch.ones(1, n, 2) for n in (1, 2, 3))
    moved = three.clone()
    moved[0, 1, 1] = 0.5
    figure = imported("pictures").changes({"Mask": [one, two, three], "None": [one, two, moved]})
    left, right = figure.axes[:2]
    assert left.get_title(loc="left") == "Mask: 0 of 3 keys change"
    assert right.get_title(loc="left") == "None: 1 of 3 keys change"
    assert right.images[0].get_array()[1].tolist() == pytest.approx([1e-5, 0.5])


def test_time_and_memory_show_what_they_are_given():
    """Oracle: the numbers that went in; prefill per token is a pass over its tokens; by hand, two
    layers of 5 heads with 3 numbers keep 120 bytes per token.
    """
    whole, one = {10: 40.0, 20: 100.0}, {10: 6.0, 20: 7.0}
    left, right = imported("pictures").time_and_memory(whole, one, {"small": (2, 5, 3)}).axes
    assert [list(line.get_ydata()) for line in left.lines] == [[40, 100], [6, 7], [4, 5]]
    held, limit = right.lines
    assert held.get_ydata()[0] == pytest.approx(1_000 * 120 / 1e9)
    assert held.get_ydata()[-1] == pytest.approx(128_000 * 120 / 1e9)
    assert list(limit.get_ydata()) == [80, 80]
