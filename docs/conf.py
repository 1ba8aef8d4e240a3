"""Sphinx's settings for the pages that docs/build.py builds, and the two things we add to Sphinx.

A Python file is a page of its own, and a path between backticks is a link to its page.
"""

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.parsers import Parser

project = "minidsv3"
root_doc = "README"
extensions = ["myst_nb", "sphinx.ext.mathjax"]

# The texts are written for GitHub and JupyterLab: their anchors, formulas between dollar signs,
# and no sign that only MyST knows. Without the last line it would drop a line that begins with %.
myst_heading_anchors = 6
myst_enable_extensions = ["dollarmath"]
myst_dmath_allow_space = myst_dmath_allow_digits = False     # $2 and $3 are money
myst_disable_syntax = ["myst_line_comment", "myst_block_break", "myst_target", "myst_role"]
nb_execution_mode = "off"                                     # the outputs are those stored
nb_merge_streams = True

html_theme = "furo"
html_title = "minidsv3"
html_show_copyright = False
html_copy_source = html_use_index = False
html_show_search_summary = False                              # it would fetch pages, which file: forbids
mathjax_path = "mathjax/es5/tex-svg-full.js"                  # docs/build.py puts it there


class Source(Parser):
    """Makes a page of a Python file: its path as the title, then the source."""

    supported = ("python",)

    def parse(self, source, document):
        """Fill the document with the page of a source."""
        env = document.settings.env
        env.metadata[env.docname]["orphan"] = True            # the map leads here, not the sidebar
        title = nodes.title("", "", nodes.literal("", f"{env.docname}.py"))
        code = nodes.literal_block(source, source, language="python")
        document += nodes.section("", title, code, ids=["source"], names=["source"])


def link_paths(app, page):
    """Make links of the names of Python files between backticks, such as `model/mla.py`.

    A name may lack minidsv3/, as in our pages, or all its folders if only one file has it; a
    folder leads to its __init__.py, and the name of a test after :: does not count.
    """
    pages = {f"{name}.py": name for name in app.env.found_docs
             if app.env.doc2path(name).suffix == ".py"}
    pages |= {path.removesuffix("__init__.py"): name for path, name in pages.items()}
    last = [path.rpartition("/")[2] for path in pages if path.startswith("minidsv3/")]
    for path, name in list(pages.items()):
        if path.startswith("minidsv3/"):
            pages.setdefault(path.removeprefix("minidsv3/"), name)
            if last.count(path.rpartition("/")[2]) == 1:
                pages.setdefault(path.rpartition("/")[2], name)
    for mark in list(page.findall(nodes.literal)):
        name = pages.get(mark.astext().partition("::")[0])
        if name and not isinstance(mark.parent, nodes.reference | nodes.title | pending_xref):
            link = pending_xref(refdomain="std", reftype="doc", reftarget=f"/{name}",
                                refdoc=app.env.docname, refexplicit=True)
            mark.replace_self(link)
            link += mark


def setup(app):
    """Tell Sphinx of both."""
    app.add_source_suffix(".py", "python")
    app.add_source_parser(Source)
    app.connect("doctree-read", link_paths)
