"""Build the documentation as a site: README, docs, notebooks with their outputs, studies, sources.

    pip install -r docs/requirements.txt
    python docs/build.py                  # to the folder site

Open site/index.html in a browser. The folder is complete: it asks for nothing from the network, and
can be copied to another computer or a web server as it is. A link that leads nowhere, or to a
heading that is not there, is an error.
"""

import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))
from slides import MATHJAX, copy_files, is_slider
from translate import in_language, read, words_of

from minidsv3.command import Parser, UserError, answer, script

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FOLDERS = ("docs", "notebooks", "studies", "checkpoints", "benchmarks", "minidsv3", "tests")
SUFFIXES = (".md", ".png", ".svg", ".py")
INSTALL = "pip install -r " + script("docs/requirements.txt")
# The sidebar: its headings and their pages. Sphinx complains of a page that is missing here.
PARTS = {"Documentation": ("results", "checkpoints", "multi-gpu", "troubleshooting", "fidelity",
                           "tests", "map"),
         "Teaching": ("teaching", "examination", "glossary")}


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "site", metavar="DIR",
                        help="the folder for the site; an older site there is replaced [site]")
    return parser.parse_args(arguments)


def sources(root):
    """The paths of what becomes a page or a picture, without the notebooks, relative to root."""
    found = [*root.glob("*"), *(path for name in FOLDERS for path in (root / name).rglob("*"))]
    found = [path.relative_to(root) for path in found if path.suffix in SUFFIXES]
    return sorted(path for path in found if not any(part[0] == "." for part in path.parts))


def for_the_site(content):
    """A notebook as a dict -> the same for a page, which has no kernel.

    A slider would not move: its picture is the one before it. Sources that are shown as HTML, in
    colours of a light page, become code, which the theme colours.
    """
    content["metadata"].pop("widgets", None)
    for cell in content["cells"]:
        if is_slider(cell):
            cell["outputs"] = []
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                source = "".join(output["data"]["text/plain"]).strip("\n")
                output["data"] = {"text/markdown": f"```python\n{source}\n```"}
    return content


def title_of(content):
    """The first heading of a notebook."""
    return "".join(content["cells"][0]["source"]).splitlines()[0].removeprefix("# ")


def sidebar(caption, entries):
    """A part of the sidebar, in MyST; an entry is a page, or a title and its page in <>."""
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *entries,
                      "```", ""])


def write_sources(folder):
    """Write what Sphinx reads: our files as they are, notebooks for the site, and the sidebar."""
    for path in sources(ROOT):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / path)
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    titles = {"notebooks": ["notebooks/README"], "notebooks-zh": ["README.zh"]}
    for path in sorted(ROOT.glob("notebooks/[0-9][0-9]_*.ipynb")):
        english = read(path)
        for name, content in (("notebooks", english),
                              ("notebooks-zh", in_language(english, words_of("zh", path)))):
            titles[name].append(f"{path.name[:2]} {title_of(content)} <{name}/{path.stem}>")
            target = folder / name / path.name
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(for_the_site(content)), encoding="utf-8")
    studies = [f"studies/{path.parent.name}/README" for path in
               sorted(ROOT.glob("studies/*/README.md"))]
    parts = {"Learn": titles["notebooks"],
             **{part: [f"docs/{name}" for name in names] for part, names in PARTS.items()},
             "Studies": studies, "中文": titles["notebooks-zh"]}
    with (folder / "README.md").open("a", encoding="utf-8") as readme:
        readme.writelines(sidebar(*part) for part in parts.items())
    chinese = folder / "README.zh.md"
    text = chinese.read_text(encoding="utf-8")
    chinese.write_text(re.sub(r"\]\(notebooks/(?=\d\d_)", "](notebooks-zh/", text), "utf-8")


def run_sphinx(folder, out):
    """Make pages of folder/source -> exit code: a warning is an error, and all of them are shown.

    folder/static has the files that stand beside the pages, and folder/read gets what was read.
    """
    from sphinx.cmd.build import main as sphinx  # takes a second
    return sphinx(["-nWq", "--keep-going", "-c", str(HERE), "-d", str(folder / "read"),
                   "-D", f"html_static_path={folder / 'static'}", str(folder / "source"), str(out)])


def main(arguments=None):
    """Write the site -> exit code, 1 if a page has a mistake; then an older site stays."""
    out = parse_arguments(arguments).out
    if not all(map(find_spec, ("sphinx", "myst_nb", "furo"))):
        raise UserError(f"the site needs Sphinx, MyST-NB and furo: {INSTALL}")
    if out.exists() and not (out / "searchindex.js").is_file():
        raise UserError(f"--out {out} is there and is no site; name a new folder.")
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        copy_files(*MATHJAX, folder / "static", ("the site needs", INSTALL))
        write_sources(folder / "source")
        if run_sphinx(folder, folder / "site"):
            return 1
        shutil.copyfile(folder / "site/README.html", folder / "site/index.html")
        if out.exists():
            shutil.rmtree(out)
        shutil.move(folder / "site", out)
    print(f"{out / 'index.html'}: {len(list(out.rglob('*.html')))} pages")
    return 0


if __name__ == "__main__":
    sys.exit(answer(main))
