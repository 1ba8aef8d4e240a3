"""The form that every notebook has, so that teachers and readers can rely on it.

Each rule is a function that takes a notebook and returns a complaint or a false value. Each rule is
also tried on a copy of a notebook that breaks it.
"""

import base64
import copy
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.notebooks.conftest import NOTEBOOKS, exercises, read

SLIDES = {"slide", "subslide", "fragment", "skip", "notes", "-"}


def code(content):
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def lines(cell):
    return [line for line in cell["source"].splitlines() if line.strip()]


def outputs(content):
    return [output for cell in code(content) for output in cell["outputs"]]


def pictures(content):
    """Stored pictures as bytes."""
    data = [output.get("data", {}) for output in outputs(content)]
    return ([base64.b64decode(d["image/png"]) for d in data if "image/png" in d]
            + ["".join(d["image/svg+xml"]).encode() for d in data if "image/svg+xml" in d])


def asks_a_question(content):
    title = content["cells"][0]["source"].splitlines()[0]
    return not re.fullmatch(r"# .*\?", title) and f"the title {title!r} is no question"


def is_text_enough(content):
    share = 1 - len(code(content)) / len(content["cells"])
    return share < 0.4 and f"only {share:.0%} of the cells are text"


def has_short_cells(content):
    lengths = [len(lines(cell)) for cell in code(content)]
    wide = max(len(line) for cell in code(content) for line in cell["source"].splitlines())
    return ((statistics.median(lengths) > 6 or max(lengths) > 20 or wide > 100)
            and f"code cells: median {statistics.median(lengths)}, longest {max(lengths)} lines, "
                f"widest {wide} columns")


def has_pictures(content):
    sizes = [len(picture) for picture in pictures(content)]
    return (len(sizes) < 2 or max(sizes) > 200_000) and f"pictures of {sizes} bytes"


def is_of_one_clean_run(content):
    counts = [cell["execution_count"] for cell in code(content)]
    return counts != list(range(1, len(counts) + 1)) and f"execution counts {counts}"


def ends_well(content):
    bad = [output for output in outputs(content)
           if output["output_type"] == "error" or output.get("name") == "stderr"]
    return bad and f"an error or a warning: {bad[0]}"


def is_a_lecture(content):
    kinds = {cell["metadata"].get("slideshow", {}).get("slide_type") for cell in content["cells"]}
    return not {"slide"} <= kinds <= SLIDES and f"slide types {kinds}"


def has_exercises(content):
    found = list(exercises(content))
    return not 3 <= len(found) <= 5 and f"{len(found)} exercises"


def has_a_bug_to_find(content):
    text = " ".join(cell["source"].lower() for cell in content["cells"])
    return "find the bug" not in text and "no bug to find"


def shows_the_module(content):
    # An introduction has no module to open: it has written all of it.
    shown = any("inspect.getsource(" in cell["source"] for cell in code(content))
    return not shown and not is_introduction(content) and "no source"


def proves_its_claim(content):
    asserting = [cell for cell in code(content) if re.search(r"\bassert", cell["source"])]
    return not asserting and "no check cell"


def names_no_machine(content):
    found = re.search(r"[\"' (](/work|/tmp|/home|/root|/Users|C:\\)", json.dumps(content))
    return found and f"a path of one machine: {found.group()}"


def links_to_what_exists(content):
    text = "\n".join(c["source"] for c in content["cells"] if c["cell_type"] == "markdown")
    missing = [link for link in re.findall(r"\]\(([^)#:]+)\)", text)
               if not (NOTEBOOKS / link).exists()]
    return missing and f"links to nothing: {missing}"


def starts_as_the_others(content):
    usual = read(NOTEBOOKS / "01_what_is_deepseek_v3.ipynb")
    first, usual = (re.sub(r"minutes=[\d.]+", "minutes=0.5", code(each)[0]["source"])
                    for each in (content, usual))
    return first != usual and "another first cell than notebook 01"


def first_text(content, new):
    content["cells"][0]["source"] = new


def first_code(content, **fields):
    code(content)[0].update(fields)


def replace_everywhere(content, old, new):
    for cell in content["cells"]:
        cell["source"] = cell["source"].replace(old, new)


RULES = {
    asks_a_question: lambda c: first_text(c, "# MLA"),
    is_text_enough: lambda c: c.update(cells=code(c) + c["cells"][:3]),
    has_short_cells: lambda c: first_code(c, source="x = 1\n" * 21),
    has_pictures: lambda c: [cell.update(outputs=[]) for cell in code(c)],
    is_of_one_clean_run: lambda c: first_code(c, execution_count=7),
    ends_well: lambda c: first_code(c, outputs=[{"output_type": "stream", "name": "stderr"}]),
    is_a_lecture: lambda c: c["cells"][0].update(metadata={}),
    has_exercises: lambda c: replace_everywhere(c, "NotImplementedError", "ValueError"),
    has_a_bug_to_find: lambda c: replace_everywhere(c, "bug", "fault"),
    shows_the_module: lambda c: replace_everywhere(c, "inspect.getsource", "print"),
    proves_its_claim: lambda c: replace_everywhere(c, "assert", "print"),
    names_no_machine: lambda c: first_text(c, "see '/home/me/notes'"),
    links_to_what_exists: lambda c: first_text(c, "[next](99_next.ipynb)"),
    starts_as_the_others: lambda c: first_code(c, source="import torch"),
}


@pytest.mark.parametrize("rule", RULES, ids=[rule.__name__ for rule in RULES])
def test_a_notebook(rule, notebook):
    """Oracle: the rule, which `test_the_rule_notices` sees complain about a wrong notebook."""
    assert not rule(read(NOTEBOOKS / f"{notebook}.ipynb"))


@pytest.mark.parametrize("rule", RULES, ids=[rule.__name__ for rule in RULES])
def test_the_rule_notices(rule):
    """Each rule complains about a copy of notebook 01 that was changed to break it."""
    content = copy.deepcopy(read(NOTEBOOKS / "01_what_is_deepseek_v3.ipynb"))
    RULES[rule](content)
    assert rule(content)


def test_a_notebook_is_small(notebook):
    """Oracle: the size of the file, at most 1.5 MB with its outputs."""
    assert (NOTEBOOKS / f"{notebook}.ipynb").stat().st_size <= 1_500_000


def test_the_list_names_every_notebook_and_its_minutes(notebook):
    """Oracle: the table in notebooks/README.md; the minutes are those of the first cell."""
    listed = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    source = code(read(NOTEBOOKS / f"{notebook}.ipynb"))[0]["source"]
    minutes = re.search(r"minutes=([\d.]+)", source).group(1)
    row = next(line for line in listed.splitlines() if f"({notebook}.ipynb)" in line)
    assert f"| {minutes} |" in row


def test_a_kernel_may_start_anywhere(tmp_path):
    """The first cell works in an empty folder outside the repository and writes nothing there."""
    source = code(read(NOTEBOOKS / "01_what_is_deepseek_v3.ipynb"))[0]["source"]
    done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True,
                          encoding="utf-8", timeout=100)
    assert not done.returncode, done.stderr
    assert done.stdout.startswith("Python 3.")
    assert not list(Path(tmp_path).iterdir())


# ---- the second edition, in which 08 is the first ----

def tagged(content, tag):
    return [cell for cell in content["cells"] if tag in cell["metadata"].get("tags", [])]


def is_introduction(content):
    """Is it a short one, for readers without any other notebook, which writes its whole model?"""
    return len(content["cells"]) <= 25


def fits_a_lesson(content):
    core = len(tagged(content, "core"))
    fewest, most = (15, 24) if is_introduction(content) else (25, 30)
    return ((len(content["cells"]) > 70 or not fewest <= core <= most)
            and f"{len(content['cells'])} cells, {core} of them core")


def has_narrow_cells(content):
    cells = [cell for cell in code(content) if cell not in tagged(content, "setup")]
    wrong = [cell["id"] for cell in cells
             if len(lines(cell)) > 12 or max(map(len, lines(cell))) > 72]
    return wrong and f"more than 12 lines or 72 columns: {wrong}"


def has_lasting_ids(content):
    return any(re.fullmatch(r"(cell-)?\d+", cell["id"]) for cell in content["cells"]) and "numbers"


def lets_guess_first(content):
    sources = [cell["source"] for cell in code(content)]
    guesses = [n for n, source in enumerate(sources) if source.startswith("check.guess(")]
    return ((not guesses or any(n + 1 == len(sources) or "check." in sources[n + 1]
                                for n in guesses)) and f"guesses at code cells {guesses}")


def recalls(content):
    text = " ".join(cell["source"] for cell in content["cells"])
    return ("five sentences" not in text or text.count("<details>") < 3) and "no recap"


def is_done_and_not_read(content):
    """Exercises and guesses: the first exercise in 20 cells, then something every 12 cells."""
    asks = [n for n, cell in enumerate(content["cells"]) if cell["cell_type"] == "code"
            and ("NotImplementedError" in cell["source"] or "check.guess(" in cell["source"])]
    first = next(n for n in asks if "NotImplementedError" in content["cells"][n]["source"])
    gaps = [after - before for before, after in zip(asks, asks[1:])]
    return (first >= 20 or max(gaps) > 12) and f"exercises and guesses at cells {asks}"


SECOND_EDITION = {
    is_done_and_not_read: lambda c: c["cells"].__setitem__(slice(30, 30), c["cells"][2:3] * 13),
    fits_a_lesson: lambda c: [cell["metadata"].update(tags=["core"]) for cell in c["cells"]],
    has_narrow_cells: lambda c: code(c)[1].update(source="x = 1" + " " * 70 + "# wide"),
    has_lasting_ids: lambda c: c["cells"][0].update(id="cell-00"),
    lets_guess_first: lambda c: replace_everywhere(c, "check.guess(", "print("),
    recalls: lambda c: replace_everywhere(c, "<details>", ""),
}


@pytest.mark.parametrize("rule", SECOND_EDITION, ids=[rule.__name__ for rule in SECOND_EDITION])
def test_a_notebook_of_the_second_edition(rule, notebook):
    """Oracle: the rule; a notebook is of the second edition when it has a core path."""
    content = read(NOTEBOOKS / f"{notebook}.ipynb")
    assert not tagged(content, "core") or not rule(content)


@pytest.mark.parametrize("rule", SECOND_EDITION, ids=[rule.__name__ for rule in SECOND_EDITION])
def test_the_rule_of_the_second_edition_notices(rule):
    """Each rule complains about a copy of notebook 08 that was changed to break it."""
    content = copy.deepcopy(read(NOTEBOOKS / "08_how_do_you_stretch_a_window.ipynb"))
    assert tagged(content, "core")
    SECOND_EDITION[rule](content)
    assert rule(content)


def test_an_introduction_is_short():
    """Notebook 00 is one; with nothing but core cells, or with one cell more, it is none."""
    content = read(NOTEBOOKS / "00_what_does_a_transformer_remember.ipynb")
    assert is_introduction(content) and not fits_a_lesson(content)
    longer = copy.deepcopy(content)
    longer["cells"].append(copy.deepcopy(longer["cells"][-1]))
    assert not is_introduction(longer) and fits_a_lesson(longer) and shows_the_module(longer)
    for cell in content["cells"]:
        cell["metadata"]["tags"] = ["core"]
    assert fits_a_lesson(content)


@pytest.fixture(scope="module")
def exporter():
    """What makes slides of a notebook; its templates are loaded once."""
    from nbconvert import SlidesExporter
    return SlidesExporter()


@pytest.mark.slow
def test_a_notebook_becomes_a_lecture(exporter, notebook):
    """Oracle: the slide types of the cells; each slide and subslide is a section."""
    path = NOTEBOOKS / f"{notebook}.ipynb"
    html, _ = exporter.from_filename(str(path))
    kinds = [cell["metadata"]["slideshow"]["slide_type"] for cell in read(path)["cells"]]
    columns, screens = kinds.count("slide"), kinds.count("slide") + kinds.count("subslide")
    assert html.count("<section") >= columns + screens - 1
