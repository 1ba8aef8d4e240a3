"""docs/teaching.md and docs/examination.md agree with the notebooks, and their numbers add up."""

import re

from tests.notebooks.conftest import NOTEBOOKS, read

DOCS = NOTEBOOKS.parent / "docs"
TEACHING = (DOCS / "teaching.md").read_text(encoding="utf-8")
EXAMINATION = (DOCS / "examination.md").read_text(encoding="utf-8")
LESSONS = dict(re.findall(r"^### (\d\d) .*?\n(.*?)(?=^##)", TEACHING, flags=re.M | re.S))


def part(lesson, name):
    """The text of one part of a lesson, such as Cells."""
    return re.search(rf"^- \*\*{name}\*\*: (.*?)(?=^- |\Z)", lesson, flags=re.M | re.S)[1]


def test_every_notebook_has_a_lesson_of_all_parts():
    """Oracle: the notebooks, and the headings that teaching.md explains."""
    names = re.findall(r"^- \*\*(\w+)\*\*: ", TEACHING.partition("### ")[0], flags=re.M)
    assert len(names) == 7 and len(LESSONS) == 13
    assert LESSONS.keys() >= {path.name[:2] for path in NOTEBOOKS.glob("*.ipynb")}
    for lesson in LESSONS.values():
        assert re.findall(r"^- \*\*(\w+)\*\*: ", lesson, flags=re.M) == names


def test_a_lesson_is_the_core_path_in_two_halves_of_45_minutes():
    """Oracle: the cells of the notebook that are tagged core, in order, and a sum."""
    for path in NOTEBOOKS.glob("*.ipynb"):
        lesson = LESSONS[path.name[:2]]
        core = [cell["id"] for cell in read(path)["cells"]
                if "core" in cell["metadata"].get("tags", [])]
        halves = [re.findall(r"`([\w-]+)`\s+(\d+)", half)
                  for half in part(lesson, "Cells").split("|")]
        assert [sum(int(minutes) for _, minutes in half) for half in halves] == [45, 45], path
        places = [core.index(name) for half in halves for name, _ in half]
        assert places == sorted(places) and places[0] == 0, path
        assert set(re.findall(r"`([\w-]*guess[\w-]*)`", part(lesson, "Guess"))) <= set(core), path


def test_a_question_has_a_solution_of_five_points():
    """Oracle: 20 questions of 5 points; each step of a solution says what it is worth."""
    parts = re.findall(r"^\*\*(\d+) \(\d\d\)\.\*\* .*?<summary>Solution (\d+)</summary>\n"
                       r"(.*?)^</details>$", EXAMINATION, flags=re.M | re.S)
    assert [(question, number) for question, number, _ in parts] == [
        (str(n), str(n)) for n in range(1, 21)]
    for number, _, solution in parts:
        assert sum(map(int, re.findall(r" \((\d)\)(?=[.;,:\s])", solution))) == 5, number
