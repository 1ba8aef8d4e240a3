"""Build the notebooks' slides, which need no network.

    python notebooks/slides.py                           of all notebooks, in the folder slides
    python notebooks/slides.py 02 06                     of two of them

Open slides/02_why_so_little_cache.html in a browser. Stories go right, details go down. The folder
is complete: it can be copied to another computer as it is. The slides show the outputs that are
stored in the notebooks.
"""

import re
import sys
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
WIDGET, WIDGETS = (f"application/vnd.jupyter.widget-{kind}+json" for kind in ("view", "state"))


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", metavar="NN",
                        help="numbers of notebooks, for instance 02 03 [all of them]")
    parser.add_argument("--out", type=Path, default=HERE.parent / "slides", metavar="DIR",
                        help="the folder for the slides; older slides there are replaced [slides]")
    return parser.parse_args(arguments)


def write_assets(out):
    """Copy reveal.js, MathJax and our theme to the folder of the slides. Raises UserError."""
    for package, folder, names in (REVEAL, MATHJAX):
        found = find_spec(package)               # finds a package without importing it
        for name in names:
            source = found and Path(found.submodule_search_locations[0]) / folder / name
            if not source or not source.is_file():
                requirements = script("notebooks/requirements-slides.txt")
                raise UserError(f"the slides need {Path(name).name} of the package {package}: "
                                f"pip install --no-deps -r {requirements}")
            target = out / Path(folder).name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            copyfile(source, target)
    theme = out / "revealjs/dist/theme/slides.css"
    theme.parent.mkdir(exist_ok=True)
    copyfile(HERE / "slides.css", theme)


def for_slides(content):
    """Change a notebook so that its slides work alone -> the same notebook.

    A slider needs a running kernel: its place takes the picture that it showed when the notebook
    was stored. Links to other notebooks lead to their slides.
    """
    widgets = content.metadata.pop("widgets", {}).get(WIDGETS, {}).get("state", {})
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](\1.html", cell.source)
            cell.source = cell.source.replace("](README.md", "](../notebooks/README.md")
            continue
        cell.outputs = [shown for output in cell.outputs for shown in without_widget(output, widgets)]
    return content


def without_widget(output, widgets):
    """An output -> the outputs that a slide shows: itself, or what its widget has shown.

    widgets: {id: model} as the notebook stores them; a model names its children with a prefix.
    """
    if WIDGET not in output.get("data", {}):
        return [output]
    children = widgets[output.data[WIDGET].model_id].state.children
    models = [widgets[child.removeprefix("IPY_MODEL_")] for child in children]
    return [shown for model in models for shown in model.state.get("outputs", [])]


def exporter():
    """nbconvert's exporter, with our template and with local files in the place of addresses."""
    from nbconvert import SlidesExporter         # takes a second
    slides = SlidesExporter(
        template_file=str(HERE / "slides.html.j2"), reveal_url_prefix="revealjs",
        reveal_theme="slides", mathjax_url="mathjax/es5/tex-svg-full.js", reveal_width="1280",
        reveal_height="720", exclude_input_prompt=True, exclude_output_prompt=True,
        exclude_anchor_links=True)
    slides.register_preprocessor(picture_code_remover(), enabled=True)
    return slides


def picture_code_remover():
    """Slides show a picture without the code that draws it: the tag `picture`."""
    from nbconvert.preprocessors import TagRemovePreprocessor
    return TagRemovePreprocessor(remove_input_tags={"picture"}, enabled=True)


def main(arguments=None):
    """Write the slides -> exit code."""
    arguments = parse_arguments(arguments)
    paths, out = chosen(arguments.notebooks), arguments.out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_assets(out)
    slides = exporter()
    for path in paths:
        content = for_slides(nbformat.read(path, as_version=4))
        content.metadata.title = content.cells[0].source.splitlines()[0].removeprefix("# ")
        html, _ = slides.from_notebook_node(content)
        write_text(out / f"{path.stem}.html", html)
        print(f"{out / path.stem}.html: {html.count('<section') } slides")
    return 0


if __name__ == "__main__":
    sys.exit(answer(main))
