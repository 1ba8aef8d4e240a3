"""For each exercise, the stub counts as open, a typical mistake gets its hint, the solution passes.

Then `compare`, the function behind all checkers, with everything that a student may return.
"""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"


def module(folder, notebook):
    """The file of that notebook, imported."""
    path = folder / f"{notebook}.py"
    spec = importlib.util.spec_from_file_location(f"{folder.name}_{notebook}", path)
    file = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(file)
    return file


def function(folder, notebook, name):
    """The function of that name in the file of that notebook."""
    return getattr(module(folder, notebook), name)


def test_the_stub_is_open(exercise, check, capsys):
    """Oracle: the verdict `open` for the stub, as a student finds it in the notebook."""
    _, name, stub = exercise
    namespace = {"torch": torch, "check": check}
    exec(stub, namespace)
    assert not getattr(check, name)(namespace[name])
    assert capsys.readouterr().out.startswith("open: ")


def test_a_typical_mistake_earns_its_hint(exercise, check, capsys):
    """Oracle: the docstring of the mistake, which the verdict must contain.

    An exercise may have several: its_name, its_name__and_a_slip.
    """
    notebook, name, _ = exercise
    file = module(ROOT / "tests" / "notebooks" / "mistakes", notebook)
    mistakes = [made for found, made in vars(file).items() if found.partition("__")[0] == name]
    assert mistakes
    for mistake in mistakes:
        assert not getattr(check, name)(mistake)
        verdict = capsys.readouterr().out
        assert verdict.startswith("not yet: ")
        assert " ".join(mistake.__doc__.split()) in verdict


def test_the_solution_passes(exercise, check, capsys):
    """Oracle: the checker prints `passed` and nothing else."""
    notebook, name, _ = exercise
    assert getattr(check, name)(function(NOTEBOOKS / "solutions", notebook, name))
    assert capsys.readouterr().out == "passed\n"


@pytest.mark.parametrize("form", [
    lambda x: x.float() if x.is_floating_point() else x.int(),
    lambda x: x.double() if x.is_floating_point() else x.long(),
    lambda x: x.tolist(), lambda x: x.numpy()], ids=["single", "double", "list", "array"])
def test_a_right_answer_passes_in_every_form(exercise, form, check, capsys):
    """Oracle: the solution, its numbers given back in another form."""
    notebook, name, _ = exercise
    solution = function(NOTEBOOKS / "solutions", notebook, name)

    def student(*arguments):
        answer = solution(*arguments)
        try:
            if isinstance(answer, list | tuple):
                whole = torch.stack if torch.is_tensor(answer[0]) else np.array
                answer = whole(answer)
            return form(torch.as_tensor(answer))
        except (RuntimeError, TypeError, ValueError):    # a plan, such as lists of unequal length
            return answer

    getattr(check, name)(student)
    assert capsys.readouterr().out == "passed\n"


def test_no_checker_and_no_solution_is_left_over(check):
    """The checkers, the solutions and the notebooks have the same set of exercises."""
    from tests.notebooks.conftest import exercises, read
    asked = {(path.stem, name) for path in NOTEBOOKS.glob("*.ipynb")
             for name, _ in exercises(read(path))}
    solved = {(path.stem, node.name) for path in (NOTEBOOKS / "solutions").glob("*.py")
              for node in ast.parse(path.read_text(encoding="utf-8")).body
              if isinstance(node, ast.FunctionDef)}
    checkers = [node.name for path in Path(check.__file__).parent.glob("*.py")
                for node in ast.parse(path.read_text(encoding="utf-8")).body
                if isinstance(node, ast.FunctionDef) and node.name not in ("compare", "judge")
                and [argument.arg for argument in node.args.args[:1]] == ["student"]]
    assert asked == solved
    assert sorted(name for _, name in asked) == sorted(checkers)
    assert all(callable(getattr(check, name)) for name in checkers)


@pytest.mark.parametrize("name", ["check", "oracles"])
def test_oracles_are_not_our_own_code(name):
    """They import neither the package nor a solution: a shared mistake would not be noticed."""
    files = list((NOTEBOOKS / name).glob("*.py"))
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    imported = {alias.name.split(".")[0] for node in nodes
                if isinstance(node, ast.Import) for alias in node.names}
    siblings = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert all(node.level == 1 for node in nodes if isinstance(node, ast.ImportFrom))
    assert imported <= {"copy", "platform", "math", "matplotlib", "numpy", "torch", "oracles"}
    assert siblings < {path.stem for path in files}


def double(x):
    return 2 * x


def crash(x):
    raise KeyError("weights")


def spoil(x):
    return x.mul_(2)


def stub(x):
    raise NotImplementedError


ONE = (torch.tensor([1.0, 2.0]),)
TWO = (torch.arange(12.0),)


@pytest.mark.parametrize("student, inputs, words", [
    (double, ONE, "passed"),
    (lambda x: [2.0, 4.0], ONE, "passed"),
    (spoil, [ONE, TWO], "passed"),
    (lambda x: x, ONE, "expected [2, 4], got [1, 2]. Twice."),
    (lambda x: x, TWO, "right shape, values off by up to 11. Twice."),
    (lambda x: 2 * x[:1], ONE, "expected shape (2,), got (1,). Twice."),
    (lambda x: 2 * x.sum(), ONE, "expected shape (2,), got (). Twice."),
    (lambda x: x * float("nan"), ONE, "expected [2, 4], got [nan, nan]. Twice."),
    (lambda x: "four", ONE, "ended in "),
    (lambda x: None, ONE, "returned nothing; is a return missing? Twice."),
    (lambda x: [2 * value for value in x], ONE, "passed"),          # a list of tensors
    (lambda x: [2, 2 * x[1]], ONE, "passed"),                       # of numbers and tensors
    (lambda x: [[value] for value in x], ONE, "expected shape (2,), got (2, 1). Twice."),
    (stub, ONE, "open: write the function"),
    (lambda x: x.long().bincount(minlength=3).to(torch.float8_e4m3fn).sum(), ONE,
     "your function ended in NotImplementedError: "),              # of torch, not of the stub
    (lambda: 0, ONE, "ended in TypeError"),
    (crash, ONE, "ended in KeyError: 'weights'. Twice."),
    (lambda x: torch.tensor([2.0, 4.0]), [ONE, TWO], "expected shape (12,), got (2,)"),
])
def test_compare_says_what_is_wrong_and_never_raises(student, inputs, words, check, capsys):
    """Oracle: the verdicts above. A function that changes its input changes only a copy."""
    assert check.compare(student, inputs, double, "Twice.") is (words == "passed")
    assert words in capsys.readouterr().out
    assert ONE[0].tolist() == [1.0, 2.0]


def test_of_two_slips_with_equal_numbers_the_one_that_agrees_more_often_is_named(check, capsys):
    """Oracle: x * x is x + x for 2 only; 5 is neither. A slip that ends in an error is no match."""
    slips = [("You crash.", crash), ("You square.", lambda x: x * x),
             ("You add.", lambda x: x + x), ("You add twice.", lambda x: x + x)]
    cases = [(torch.tensor(2.0),), (torch.tensor(5.0),)]
    for student, words in [(lambda x: x + x, " You add. Triple."), (lambda x: x * x, "You square."),
                           (lambda x: 4 if x == 2 else 0, "You square."),
                           (lambda x: 5, "got 5. Triple.")]:
        assert not check.compare(student, cases, lambda x: 3 * x, "Triple.", slips=slips)
        assert words in capsys.readouterr().out


def test_a_hint_of_two_steps_is_given_step_by_step(check, capsys):
    """Oracle: the words; the second step is shown only to those who ask for it."""
    for step, words in [(1, "got [1, 2]. Twice. (For a further hint add hint=2.)"),
                        (2, "got [1, 2]. Twice. Add x to x."), ("two", "Twice. Add x to x.")]:
        assert not check.compare(lambda x: x, ONE, double, ("Twice.", "Add x to x."), step)
        assert capsys.readouterr().out.endswith(words + "\n")


def test_a_further_hint_of_each_checker_that_has_one(exercise, check, capsys):
    """A verdict that offers a further hint gives it: it begins alike, and says more."""
    notebook, name, _ = exercise
    mistake = function(ROOT / "tests" / "notebooks" / "mistakes", notebook, name)
    getattr(check, name)(mistake)
    first, offered, _ = capsys.readouterr().out.partition(" (For a further hint add hint=2.)")
    if offered:
        assert not getattr(check, name)(mistake, hint=2)
        assert capsys.readouterr().out.startswith(first + " ")


@pytest.mark.parametrize("mine, words", [
    (None, "Write your number as mine=..., run this cell again, and then the next one."),
    (2, "noted: 2, it rises. Now run the next cell."),
    (3, "3 is no choice: write a number from 1 to 2."),
    (0, "0 is no choice"), ("b", "'b' is no choice"), (ONE, "is no choice")])
def test_a_guess_is_noted_and_not_judged(mine, words, check, capsys):
    """Oracle: the words. Each right and wrong number is treated alike, and nothing is raised."""
    assert check.guess("What happens?", ["it falls", "it rises"], mine) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["What happens?", "  1  it falls", "  2  it rises"]
    assert words in " ".join(lines[3:])


@pytest.mark.parametrize("row, words", [
    (".  F0 I0 W0 .  .  .", "rank 1 never computes F1"),
    (".  F0 F1 I0 I1 W0 W0", "rank 1 computes W0 twice"),
    ("F0 F1 I0 I1 W0 W1 .", "rank 1 computes F0 at time 0, but F0 of rank 0 is ready only at 1"),
    (".  F0 F1 I0 W0 W1 I1", "rank 0 computes I1 at time 5, but I1 of rank 1 is ready only at 7"),
    (".  F0 F1 I0 I1 W0 W1 X0", "a cell is neither F, I, W"),
    (".  F0 F1 I0 I1 W0 W1", "")])
def test_squared_paper_names_the_rule_that_is_broken(row, words):
    """Oracle: plans for two ranks and two micro-batches, each wrong in one place by hand."""
    from tests.notebooks.conftest import imported
    rows = ["F0 F1 .  .  I0 I1 W0 W1", row]
    if not words:
        assert imported("oracles").idle_cells(rows, 2, 2) == 4
        return
    with pytest.raises(ValueError, match=words):
        imported("oracles").idle_cells(rows, 2, 2)


@pytest.mark.parametrize("boxes, words", [
    ([[0], [1], [0]], "3 lists for 4 GPUs"),
    ([[1], [2], [4], []], "there is no token 2: there are 2, from 0"),
    ([[0], [1, 0], [0], []], "the tokens in [1, 0] are not in their order"),
    (None, "returned nothing")])
def test_dispatch_says_what_is_no_plan(boxes, words, check, capsys):
    """Oracle: the words, for lists that are wrong by hand."""
    assert not check.dispatch(lambda chosen, per_gpu, gpus: boxes)
    assert words in capsys.readouterr().out
