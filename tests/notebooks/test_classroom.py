"""Copies of the notebooks for a class."""

import json

import pytest

from minidsv3.command import UserError
from tests.notebooks.conftest import NOTEBOOKS, imported, read


@pytest.fixture(scope="module")
def classroom():
    """The module notebooks/classroom."""
    return imported("classroom")


def test_a_copy_has_the_same_cells_without_outputs(classroom, tmp_path, capsys):
    """Oracle: the notebook itself, and the names of all notebooks."""
    assert classroom.main(["--out", str(tmp_path / "all")]) == 0
    copies = sorted((tmp_path / "all").glob("*.ipynb"))
    assert [path.name for path in copies] == sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
    for path in copies:
        copy, original = read(path), read(NOTEBOOKS / path.name)
        assert [cell["source"] for cell in copy["cells"]] == [
            cell["source"] for cell in original["cells"]]
        ran = [cell for cell in copy["cells"] if cell["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in ran)
        assert copy["metadata"] == original["metadata"]


def test_the_core_is_what_is_tagged_so(classroom, tmp_path, capsys):
    """Oracle: by hand, for a notebook of three cells; one without a core stays whole."""
    cells = [{"cell_type": "markdown", "source": "a", "metadata": {"tags": ["core"]}},
             {"cell_type": "markdown", "source": "b", "metadata": {}},
             {"cell_type": "code", "source": "c", "metadata": {"tags": ["core", "picture"]},
              "outputs": [1], "execution_count": 3}]
    kept = classroom.for_a_class({"cells": cells, "nbformat": 4}, core=True)
    assert [cell["source"] for cell in kept["cells"]] == ["a", "c"] and kept["nbformat"] == 4
    assert cells[2]["outputs"] == [1]                                  # the original is as it was
    assert len(classroom.for_a_class({"cells": cells[1:2]}, core=True)["cells"]) == 1
    assert classroom.main(["08", "--core", "--out", str(tmp_path)]) == 0
    path, = tmp_path.iterdir()
    assert len(json.loads(path.read_text("utf-8"))["cells"]) <= 30


def test_work_that_is_there_is_kept(classroom, tmp_path):
    """A folder with files is refused, and so is a number that no notebook has."""
    (tmp_path / "answers.ipynb").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is there and not empty"):
        classroom.main(["--out", str(tmp_path)])
    with pytest.raises(UserError, match="no notebook '8'; choose from 00, 01, "):
        classroom.main(["8", "--out", str(tmp_path / "new")])
    assert [path.name for path in tmp_path.iterdir()] == ["answers.ipynb"]


def test_the_list_names_the_cells_and_writes_nothing(classroom, tmp_path, capsys):
    """Oracle: the names and tags in the notebook."""
    assert classroom.main(["08", "--core", "--list", "--out", str(tmp_path / "new")]) == 0
    path, = NOTEBOOKS.glob("08_*.ipynb")
    core = [cell["id"] for cell in read(path)["cells"]
            if "core" in cell["metadata"].get("tags", [])]
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == path.stem and [line.split()[0] for line in lines] == core
    assert lines[0].split(maxsplit=1)[1] == "How do you stretch a window?"
    assert not (tmp_path / "new").exists()
