"""Build the notebooks' slides, which need no network.

    python notebooks/slides.py                           of all notebooks, in the folder slides
    python notebooks/slides.py 02 06                     of two of them

Open slides/02_why_so_little_cache.html in a browser. The right arrow goes to the next topic, the
down arrow to its details. The folder is complete: it can be copied to another computer as it is.
The slides show the outputs that are stored in the notebooks.
"""

import re
import sys
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from shutil import copyfile

import nbformat
from classroom import HERE, chosen

from minidsv3.command import Parser, UserError, answer, script
from minidsv3.files import write_text

# Files that lie beside the slides: the package that has them, and where they are in it.
REVEAL = "sphinx_revealjs", "_static/revealjs", ("LICENSE", "dist/reveal.js", "dist/reveal.css")
MATHJAX = "mathjax", "static/mathjax", ("LICENSE", "es5/tex-svg-full.js")
WIDGET = "application/vnd.jupyter.widget-view+json"


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", metavar="NN",
                        help="numbers of notebooks, for instance 02 03 [all of them]")
    parser.add_argument("--folder", type=Path, default=HERE, metavar="DIR",
                        help="the folder of the notebooks, for instance notebooks-zh [notebooks]")
    parser.add_argument("--out", type=Path, default=HERE.parent / "slides", metavar="DIR",
                        help="the folder for the slides; older slides there are replaced [slides]")
    return parser.parse_args(arguments)


def copy_files(package, folder, names, out, needed):
    """Copy files of a package, which is not imported, to out. Raises UserError if one is missing.

    needed: who needs them, and the command that installs them.
    """
    found = find_spec(package)
    places = (found and found.submodule_search_locations) or [""]
    for name in names:
        source = Path(places[0]) / folder / name
        if not source.is_file():
            who, command = needed
            raise UserError(f"{who} {Path(name).name} of the package {package}: {command}")
        target = out / Path(folder).name / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copyfile(source, target)


def write_assets(out):
    """Copy reveal.js, MathJax and our theme to the folder of the slides. Raises UserError."""
    needed = ("the slides need", "pip install --no-deps -r "
              + script("notebooks/requirements-slides.txt"))
    for package, folder, names in (REVEAL, MATHJAX):
        copy_files(package, folder, names, out, needed)
    theme = out / "revealjs/dist/theme/slides.css"
    theme.parent.mkdir(exist_ok=True)
    copyfile(HERE / "slides.css", theme)


def for_slides(content):
    """Change a notebook, as nbformat reads it, into one whose slides work alone -> the same one.

    A slider needs a running kernel, and the picture before it shows the same: it is left out. A
    cell that shows the source of a module gets the tag `source`, because that source is what
    matters. A heading begins a new slide. Links to other notebooks lead to their slides.
    """
    content.metadata.pop("widgets", None)
    content.metadata.title = content.cells[0].source.splitlines()[0].removeprefix("# ")
    content.cells = [part for cell in content.cells if not is_slider(cell) for part in parts(cell)]
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](\1.html", cell.source)
            cell.source = cell.source.replace("](README.md", "](../notebooks/README.md")
        elif re.search(r"\b(Code|print)\(inspect\.getsource\(", cell.source):
            cell.metadata.tags = [*cell.metadata.get("tags", []), "source"]
    return content


def parts(cell):
    """A cell -> the same, or for a text with more than one heading one cell for each."""
    texts = re.split(r"\n\n(?=## )", cell.source) if cell.cell_type == "markdown" else [cell.source]
    for n, text in enumerate(texts):
        part = deepcopy(cell)
        part.source = text
        if n:
            part.id += f"-{n}"
            part.metadata.slideshow = {"slide_type": "subslide"}
        yield part


def is_slider(cell):
    """Whether the output of a cell is a widget."""
    return any(WIDGET in output.get("data", {}) for output in cell.get("outputs", []))


def exporter():
    """nbconvert's exporter, with our template and with local files in the place of addresses."""
    from nbconvert import SlidesExporter  # takes a second
    from nbconvert.preprocessors import TagRemovePreprocessor
    hide = TagRemovePreprocessor(enabled=True, remove_input_tags={"picture", "source"})
    return SlidesExporter(
        template_file=str(HERE / "slides.html.j2"), preprocessors=[hide],
        reveal_url_prefix="revealjs", reveal_theme="slides", reveal_width="1280",
        reveal_height="720", mathjax_url="mathjax/es5/tex-svg-full.js", exclude_anchor_links=True,
        exclude_input_prompt=True, exclude_output_prompt=True)


def main(arguments=None):
    """Write the slides -> exit code."""
    arguments = parse_arguments(arguments)
    paths, out = chosen(arguments.notebooks, arguments.folder), arguments.out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_assets(out)
    slides = exporter()
    for path in paths:
        html, _ = slides.from_notebook_node(for_slides(nbformat.read(path, as_version=4)))
        target = out / f"{path.stem}.html"
        write_text(target, html)
        print(f"{target}: {html.count('<section>') - html.count('<section><section>')} slides")
    return 0


if __name__ == "__main__":
    sys.exit(answer(main))
