"""Slides of the notebooks: they need no network, and each fits on a screen of 1280 x 720."""

import copy
import json
import re
from importlib.util import find_spec
from math import ceil

import nbformat
import pytest

from minidsv3.command import UserError
from tests.notebooks import browser
from tests.notebooks.conftest import NOTEBOOKS, imported, read

FITS = 700                  # of 720: other fonts than those of the machine that measured are wider
PACKAGES = ("sphinx_revealjs", "mathjax")
needs_packages = pytest.mark.skipif(
    not all(map(find_spec, PACKAGES)), reason="needs notebooks/requirements-slides.txt")


@pytest.fixture(scope="module")
def slides():
    """The module notebooks/slides."""
    return imported("slides")


# ------------------------------------------------------------------- what a slide shows of a cell

TEXT = """## A question

One text, with the [next notebook](02_why_so_little_cache.ipynb) and [all](README.md).

## Exercise 7

Another text."""


def notebook_of(*cells):
    """A notebook as nbformat reads it; each cell starts a slide."""
    for cell in cells:
        cell.metadata.slideshow = {"slide_type": "slide"}
    return nbformat.v4.new_notebook(cells=list(cells))


def test_a_heading_begins_a_slide(slides):
    """Oracle: by hand, for a text with two headings; its links lead to slides."""
    text = nbformat.v4.new_markdown_cell(TEXT, id="question")
    first, second = slides.for_slides(notebook_of(text)).cells
    assert (first.id, first.metadata.slideshow.slide_type) == ("question", "slide")
    assert (second.id, second.metadata.slideshow.slide_type) == ("question-1", "subslide")
    assert second.source == "## Exercise 7\n\nAnother text."
    assert "(02_why_so_little_cache.html)" in first.source
    assert "(../notebooks/README.md)" in first.source


def test_a_slider_is_left_out_and_a_source_is_tagged(slides):
    """Oracle: by hand, for three cells: a title, a slider, and one that prints a source."""
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "slider"}
    slider = nbformat.v4.new_code_cell("ipywidgets.interact(look);", outputs=[
        nbformat.v4.new_output("display_data", view)])
    source = nbformat.v4.new_code_cell("print(inspect.getsource(moe))")
    data = nbformat.v4.new_code_cell("text = inspect.getsource(moe)")
    title = nbformat.v4.new_markdown_cell("# Why?\n\nSo.")
    content = notebook_of(title, slider, source, data)
    content.metadata.widgets = {"state": {}}
    content = slides.for_slides(content)
    assert [cell.source for cell in content.cells] == [title.source, source.source, data.source]
    assert [cell.metadata.get("tags") for cell in content.cells] == [None, ["source"], None]
    assert content.metadata.title == "Why?" and "widgets" not in content.metadata


# ----------------------------------------------------------------------- what is too large, quickly


def plain(output):
    """The text of an output that is shown as text, else nothing."""
    data = output.get("data", {})
    shown = output.get("text", data.get("text/plain", "") if len(data) == 1 else "")
    return "".join(shown)


def has_narrow_outputs(content):
    wide = {cell["id"]: width for cell in content["cells"] for output in cell.get("outputs", [])
            for width in [max(map(len, plain(output).splitlines()), default=0)] if width > 100}
    return wide and f"outputs of more than 100 columns: {wide}"


def least_height(cell):
    """A lower bound of the height of a cell on a slide, in units of 1/720 of the screen.

    The sizes are those of notebooks/slides.css. Rows that are shown in a box that scrolls, and
    pictures, which are made smaller, do not count.
    """
    tags = cell["metadata"].get("tags", [])
    if cell["cell_type"] == "code":
        rows = 0 if "picture" in tags else len(cell["source"].splitlines())
        outputs = sum(len(plain(each).splitlines()) for each in cell["outputs"])
        return (0 if "getsource(" in cell["source"]
                else 23 * 1.25 * rows + 19 * 1.25 * outputs)
    height = 0
    for part in filter(None, cell["source"].split("\n\n")):
        rows = part.splitlines()
        paragraph = ceil(len(part) / 115)
        height += 24 * 1.3 * (len(rows) - 1 if rows[0].startswith("|") else paragraph) + 12
    return height


def has_low_slides(slides, content):
    content = slides.for_slides(nbformat.from_dict(copy.deepcopy(content)))
    heights = []
    for cell in content["cells"]:
        kind = cell["metadata"]["slideshow"]["slide_type"]
        if kind == "skip" or any(slides.is_slider(each) for each in [cell]):
            continue
        if kind in ("slide", "subslide"):
            heights.append([cell["id"], 0])
        heights[-1][1] += least_height(cell)
    return [each for each in heights if each[1] > FITS]


def test_outputs_are_narrow(notebook):
    """Oracle: a count of columns; a longer line would be cut."""
    content = read(NOTEBOOKS / f"{notebook}.ipynb")
    assert not has_narrow_outputs(content)
    cell = next(cell for cell in content["cells"] if cell.get("outputs"))
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x" * 101}]
    assert cell["id"] in has_narrow_outputs(content)


def test_no_slide_is_far_too_tall(slides, notebook):
    """Oracle: rows times their height, a lower bound; without a browser nothing more is known."""
    content = read(NOTEBOOKS / f"{notebook}.ipynb")
    assert not has_low_slides(slides, content)
    content["cells"][0]["source"] += 30 * "\n\nOne line more."
    assert [name for name, _ in has_low_slides(slides, content)] == [content["cells"][0]["id"]]


# ---------------------------------------------------------------------------------- the command


def test_bad_input_is_one_line(slides, tmp_path, monkeypatch):
    """A number without a notebook, a file in place of the folder, a package that is missing."""
    with pytest.raises(UserError, match="no notebook '99'; choose from 00, 01, "):
        slides.main(["99", "--out", str(tmp_path)])
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is a file; name a folder"):
        slides.main(["00", "--out", str(tmp_path / "file")])
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    monkeypatch.setattr(slides, "MATHJAX", ("no_such_package", "static", ("tex.js",)))
    monkeypatch.setattr(slides, "REVEAL", ("minidsv3", "model", ("mla.py",)))
    with pytest.raises(UserError, match="tex.js of the package no_such_package: pip install "
                                        "--no-deps -r .*requirements-slides.txt"):
        slides.write_assets(tmp_path)
    with pytest.raises(UserError, match="has no notebooks"):
        slides.main(["--folder", str(tmp_path), "--out", str(tmp_path)])


@needs_packages
def test_slides_ask_for_files_beside_them_alone(slides, tmp_path, capsys):
    """Oracle: every address that the page loads, found by its attributes; the files are there."""
    assert slides.main(["00", "--out", str(tmp_path)]) == 0
    page, = tmp_path.glob("00_*.html")
    html = page.read_text(encoding="utf-8")
    loaded = re.findall(r"<(?:script|img|iframe)\b[^>]*\bsrc=\"([^\"]*)", html)
    loaded += re.findall(r"<link\b[^>]*\bhref=\"([^\"]*)", html)
    loaded += re.findall(r"\burl\(['\"]?([^)'\"]*)", html)
    loaded += re.findall(r"@import[^;]*|\bimport\s[^;]*\bfrom\s[^;]*['\"]https?:[^;]*", html)
    loaded = [address for address in loaded if not address.startswith("data:")]
    assert len(loaded) == 4                                # two scripts, two style sheets
    assert all((tmp_path / address).is_file() for address in loaded), loaded
    words = re.sub(r"<[^>]*>", "", html.partition("</head>")[2])
    assert "def keys_computed" in words and "pictures." not in words   # code, but not of pictures
    assert len(re.findall(r"<img[^>]*data:image/png", html)) == 2
    shown = int(re.search(r"html: (\d+) slides", capsys.readouterr().out)[1])
    kinds = [cell["metadata"]["slideshow"]["slide_type"]
             for cell in read(NOTEBOOKS / f"{page.stem}.ipynb")["cells"]]
    assert shown >= kinds.count("slide") + kinds.count("subslide")


@needs_packages
def test_slides_of_chinese_notebooks(slides, tmp_path):
    """Oracle: the Chinese table: the title and a text of the notebook are on its slides."""
    chinese, out = tmp_path / "chinese", tmp_path / "out"
    imported("translate").main(["zh", "00", "--out", str(chinese)])
    assert slides.main(["00", "--folder", str(chinese), "--out", str(out)]) == 0
    page, = out.glob("00_*.html")
    table = json.loads((NOTEBOOKS / "zh/00.json").read_text(encoding="utf-8"))
    title = next(iter(table["cells"].values()))["chinese"].splitlines()[0].removeprefix("# ")
    assert f"<title>{title} slides</title>" in page.read_text(encoding="utf-8")


# ----------------------------------------------------------------------------- in a real browser

MEASURE = """(async () => {
  while (document.readyState !== "complete") await new Promise(go => setTimeout(go, 50));
  await complete;                                  // of notebooks/slides.html.j2
  return Reveal.getSlides().map(slide => ({
    cells: [...slide.querySelectorAll(".jp-Cell")].map(cell => cell.id.replace("cell-id=", "")),
    height: Math.max(slide.lastElementChild.offsetTop + slide.lastElementChild.offsetHeight,
                     slide.scrollHeight > slide.clientHeight ? slide.scrollHeight : 0),
    cut: [...slide.querySelectorAll("pre")].filter(pre => pre.scrollWidth > pre.clientWidth).length,
    pictures: [...slide.querySelectorAll(".celltag_picture")].map(cell =>
      [...cell.querySelectorAll("img")].some(img => img.naturalWidth && img.offsetHeight > 150)),
    formulas: slide.querySelectorAll("mjx-container").length,
    wrong: slide.querySelectorAll("mjx-merror, [data-mjx-error]").length
  }));
})()"""


def complaints(slide):
    """What is wrong with a slide as MEASURE describes it."""
    return [text for text, wrong in {
        f"{slide['height']} of {FITS} units": slide["height"] > FITS,
        f"{slide['cut']} texts with lines that are cut": slide["cut"],
        "a picture is missing": not all(slide["pictures"]),
        "a formula with an error": slide["wrong"]}.items() if wrong]


def test_a_slide_that_is_wrong_is_noticed():
    """Oracle: by hand, one mistake at a time."""
    good = {"height": FITS, "cut": 0, "pictures": [True], "wrong": 0}
    assert not complaints(good)
    for mistake in ({"height": 701}, {"cut": 1}, {"pictures": [True, False]}, {"wrong": 2}):
        assert len(complaints(good | mistake)) == 1


@needs_packages
@pytest.mark.slow
@pytest.mark.skipif(not browser.program(), reason="needs Chromium, Chrome or Edge")
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_slide_fits(slides, language, tmp_path, capsys):
    """Oracle: Chromium, from the files alone: heights, cut lines, pictures, formulas, requests."""
    folder = NOTEBOOKS if language == "en" else tmp_path / "notebooks"
    if language != "en":
        imported("translate").main([language, "--out", str(folder)])
    assert slides.main(["--folder", str(folder), "--out", str(tmp_path / "slides")]) == 0
    (tmp_path / "profile").mkdir()
    chromium, found = browser.Browser(tmp_path / "profile"), []
    try:
        for page in sorted((tmp_path / "slides").glob("*.html")):
            chromium.open(page.as_uri())
            measured = chromium.run(MEASURE)
            assert len(measured) > 20 and sum(slide["formulas"] for slide in measured) > 5
            found += [f"{page.stem}: {slide['cells']}: {text}"
                      for slide in measured for text in complaints(slide)]
            found += [f"{page.stem}: asks for {address[:100]}" for address in chromium.requests
                      if not address.startswith(("file:", "data:"))]
            found += [f"{page.stem}: {failure}" for failure in chromium.failures]
    finally:
        chromium.close()
    assert not found, "\n".join(found)
