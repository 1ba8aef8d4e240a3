"""A notebook of the second edition is done, not read: what stands above solves no exercise.

Each text above an exercise is pasted, as a student would do who does not think: all code cells, all
sources and outputs that are shown, and the code in text cells. A function is renamed to the
exercise's name; other code becomes the body, and each value that it computes is returned.
"""

import ast
import builtins
import contextlib
import io
import re
import symtable
import textwrap

import numpy
import pytest
import torch

from tests.notebooks.conftest import NOTEBOOKS, read

DEFINITIONS = ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef


def is_core(cell):
    return "core" in cell["metadata"].get("tags", [])


def parsed(text):
    """The statements of a text; none, if it is no Python."""
    with contextlib.suppress(SyntaxError):
        return ast.parse(textwrap.dedent(text)).body
    return []


def texts(cell):
    """All that a student can copy from a cell: its source, its outputs, the code in its text."""
    if cell["cell_type"] == "markdown":
        return re.findall(r"```\w*\n(.*?)```|`([^`]+)`|<code>(.*?)</code>", cell["source"], re.S)
    shown = [cell["source"]]
    for output in cell["outputs"]:
        shown.append("".join(output.get("text", "")))
        shown.append("".join(output.get("data", {}).get("text/plain", "")))
    return [(text,) for text in shown]


def above(content, name):
    """The cells that stand above the exercise of this name."""
    for n, cell in enumerate(content["cells"]):
        if f"check.{name}({name}" in cell["source"]:
            return content["cells"][:n]
    raise AssertionError(f"no exercise {name}")


def surroundings(cells):
    """The names that a function finds in the notebook: imports and functions of all cells above."""
    names = {"torch": torch, "np": numpy}
    for cell in cells:
        for node in parsed(cell["source"]) if cell["cell_type"] == "code" else []:
            if isinstance(node, DEFINITIONS):
                with contextlib.suppress(Exception):
                    exec(compile(ast.Module([node], []), "above", "exec"), names)
    return names


def pasted(statements, stub):
    """Statements -> all functions that a student could make of them without a thought."""
    functions = [node for statement in statements for node in ast.walk(statement)
                 if isinstance(node, ast.FunctionDef)]
    for node in functions:
        yield ast.FunctionDef(stub.name, node.args, node.body, [])
    # Lines that use no input give the same in every case, so they solve nothing.
    inputs = {each.arg for each in ast.walk(stub.args) if isinstance(each, ast.arg)}
    body = [node for node in statements if not isinstance(node, DEFINITIONS)]
    for n, node in enumerate(body):
        last = []
        if isinstance(node, ast.Assign):
            last = [ast.parse(ast.unparse(target)).body[0].value for target in node.targets]
        elif isinstance(node, ast.Expr):
            last = [node.value, *(node.value.args if isinstance(node.value, ast.Call) else [])]
        kept = body[:n + isinstance(node, ast.Assign)]
        for value in last:
            lines = [*kept, ast.Return(value)]
            if inputs & {each.id for each in ast.walk(ast.Module(lines, []))
                         if isinstance(each, ast.Name)}:
                yield ast.FunctionDef(stub.name, stub.args, lines, [])


def passes(function, names, check):
    """Does the checker pass this function?"""
    names = dict(names)
    module = ast.fix_missing_locations(ast.Module([function], []))
    try:
        exec(compile(module, "pasted", "exec"), names)
        with contextlib.redirect_stdout(io.StringIO()):
            return getattr(check, function.name)(names[function.name])
    except Exception:                            # what is no function is no solution
        return False


def found_above(content, name, stub, check):
    """The first text above an exercise that solves it, or None."""
    cells = above(content, name)
    names = surroundings(cells)
    stub, = (node for node in ast.parse(stub).body if isinstance(node, ast.FunctionDef))
    for cell in cells:
        for text in filter(None, (part for parts in texts(cell) for part in parts)):
            for function in pasted(parsed(text), stub):
                if passes(function, names, check):
                    return text
    return None


def test_no_text_above_an_exercise_solves_it(exercise, check):
    """Oracle: the checker, which must not pass any function that is pasted from above."""
    notebook, name, stub = exercise
    content = read(NOTEBOOKS / f"{notebook}.ipynb")
    if any(map(is_core, content["cells"])):
        assert found_above(content, name, stub, check) is None


NORM = "gain * x / (x.square().mean(-1, True) + eps).sqrt()"


@pytest.mark.parametrize("kind, source", [
    ("code", f"def norm(x, gain, eps):\n    return {NORM}"),
    ("code", f"normed = {NORM}\nprint(normed.shape)"),
    ("code", f"print({NORM})"),
    ("markdown", f"The norm is `{NORM}`."),
    ("markdown", f"```python\ny = {NORM}\n```"),
    ("markdown", f"<details>Hint: <code>{NORM}</code></details>")])
def test_a_solution_above_is_found(kind, source, check):
    """Each of the ways in which a solution may stand above an exercise is noticed."""
    stub = "def rms_norm(x, gain, eps):\n    raise NotImplementedError\n"
    cells = [{"cell_type": kind, "source": source, "outputs": [], "metadata": {}},
             {"cell_type": "code", "source": stub + "\n\ncheck.rms_norm(rms_norm);"}]
    assert NORM in found_above({"cells": cells}, "rms_norm", stub, check)
    cells[0]["source"] = source.replace("gain", "2")
    assert not found_above({"cells": cells}, "rms_norm", stub, check)


# ---- the core path ----

def names_of(table):
    """Names that a cell needs from elsewhere and names that it makes, from its symbol table."""
    symbols, inner = table.get_symbols(), table.get_type() != "module"
    made = {each.get_name() for each in symbols if each.is_assigned() or each.is_imported()}
    needed = {each.get_name() for each in symbols
              if each.is_referenced() and (each.is_global() or not inner)}
    for child in table.get_children():
        needed |= names_of(child)[0]
    return needed - (set() if inner else made), made


def lacks(cells):
    """{id of a cell: names that it needs, and that none of the cells makes}"""
    tables = {cell["id"]: names_of(symtable.symtable(cell["source"], cell["id"], "exec"))
              for cell in cells if cell["cell_type"] == "code"}
    there = set(dir(builtins)).union(*(made for _, made in tables.values()))
    return {name: needed - there for name, (needed, _) in tables.items() if needed - there}


def test_the_core_path_runs_alone(notebook):
    """Oracle: the names; every core cell finds what it needs in core cells."""
    cells = read(NOTEBOOKS / f"{notebook}.ipynb")["cells"]
    assert not lacks([cell for cell in cells if is_core(cell)])


def test_a_missing_name_is_noticed():
    """Oracle: by hand; `step` and `e` are nowhere, the other names are in one of the cells."""
    source = ["a = [x for x in range(3) if x]",
              "def f(y, *, z=2):\n    c = y + z + b + e\n    return c",
              "class A:\n    x = a\nprint(f(A.x[0])); import math as m; m.pi",
              "for b, (c, d) in sorted(a, key=lambda n: -n + step):\n    print(b, c, d)"]
    cells = [{"cell_type": "code", "id": str(n), "source": text} for n, text in enumerate(source)]
    assert lacks(cells) == {"1": {"e"}, "3": {"step"}}
