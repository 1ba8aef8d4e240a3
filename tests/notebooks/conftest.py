"""The notebooks as data, and their checkers as a student imports them."""

import functools
import importlib
import json
import pickle
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def imported(name):
    """A module of the folder notebooks, imported as the first cell of a notebook imports it."""
    sys.path.insert(0, str(NOTEBOOKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(NOTEBOOKS))


@pytest.fixture(scope="session")
def check():
    """The module notebooks/check."""
    return imported("check")


def pytest_generate_tests(metafunc):
    """Run a test with a `notebook` for every notebook, with an `exercise` for every exercise."""
    if "notebook" in metafunc.fixturenames:
        metafunc.parametrize("notebook", [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))])
    if "exercise" in metafunc.fixturenames:
        found = [(path.stem, *exercise) for path in sorted(NOTEBOOKS.glob("*.ipynb"))
                 for exercise in exercises(read(path))]
        metafunc.parametrize("exercise", found, ids=[name for _, name, _ in found])


def read(path):
    """A notebook as a dict; a cell's source and output texts joined to one text each."""
    return pickle.loads(parsed(path))            # a dict of its own, which a test may change


@functools.cache
def parsed(path):
    """The bytes of that dict, made once of each file."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    for cell in content["cells"]:
        cell["source"] = "".join(cell["source"])
    return pickle.dumps(content)


def exercises(content):
    """(name, source of the stub) of every exercise: a cell with a stub and its check below."""
    for cell in content["cells"]:
        if cell["cell_type"] == "code" and "raise NotImplementedError" in cell["source"]:
            stub, _, call = cell["source"].rpartition("\n")
            yield call.partition("(")[2].removesuffix(");"), stub
