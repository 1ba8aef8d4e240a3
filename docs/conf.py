"""Sphinx's settings for the pages that docs/build.py builds, and the three things we add to Sphinx.

A Python file is a page of its own, a path between backticks is a link to its page, and a page in
Chinese says that it is.
"""

from collections import Counter

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
myst_dmath_allow_digits = False                               # $2 and $3 are money
myst_disable_syntax = ["myst_line_comment", "myst_block_break", "myst_target", "myst_role"]
nb_execution_mode = "off"                                     # the outputs are those stored
nb_merge_streams = True

html_theme = "furo"
html_title = "minidsv3"
html_theme_options = {name: {"code-font-size": "73%"}         # for lines of 100 columns
                      for name in ("light_css_variables", "dark_css_variables")}
html_show_copyright = False
html_copy_source = html_use_index = False
smartquotes = False
html_show_search_summary = False                              # it is fetched, not from a disk
mathjax_path = "mathjax/es5/tex-svg-full.js"                  # docs/build.py puts it there


class Source(Parser):
    """Makes a page of a Python file: its path as the title, then the source."""

    supported = ("python",)

    def parse(self, source, document):
        """Fill the document with the page of a source."""
        env = document.settings.env
        env.metadata[env.docname]["orphan"] = True            # the map leads here, not the sidebar
        path = f"{env.docname}.py"
        code = nodes.literal_block(source, source, language="python")
        title = nodes.title(path, path)
        document += nodes.section("", title, code, ids=["source"], names=["source"])


def name_sources(app, env, docnames):
    """Find the names that our texts use for Python files: {a name: its page}.

    A name may lack minidsv3/. It may lack all folders if only one file has it, or if that of the
    model is meant. A folder is the name of its __init__.py.
    """
    paths = {f"{page}.py": page for page in env.found_docs if env.doc2path(page).suffix == ".py"}
    names = paths | {path.removesuffix("__init__.py"): page for path, page in paths.items()}
    inside = {name.removeprefix("minidsv3/"): page for name, page in names.items()
              if name.startswith("minidsv3/")}
    files = Counter(name.rpartition("/")[2] for name in inside)
    alone = {name.rpartition("/")[2]: page for name, page in inside.items()
             if files[name.rpartition("/")[2]] == 1}
    model = {name.removeprefix("model/"): page for name, page in inside.items()
             if name.startswith("model/")}
    env.sources = alone | model | inside | names


def link_sources(app, document):
    """Make links of such names between backticks; of a test after :: leave the name as it is."""
    for mark in list(document.findall(nodes.literal)):
        page = app.env.sources.get(mark.astext().partition("::")[0])
        if page and not isinstance(mark.parent.parent, nodes.reference | pending_xref):
            link = pending_xref(refdomain="doc", reftype="myst", reftarget=page, reftargetid=None,
                                refdoc=app.env.docname, refexplicit=True)
            mark.replace_self(link)
            link += nodes.inline("", "", mark)


def name_language(app, page, template, context, document):
    """Let a page in Chinese say so: screen readers and the choice of its signs depend on it."""
    if page == "README.zh" or page.startswith("notebooks-zh/"):
        context["language"] = "zh-CN"


def setup(app):
    """Tell Sphinx of them."""
    app.add_source_suffix(".py", "python")
    app.add_source_parser(Source)
    app.connect("env-before-read-docs", name_sources)
    app.connect("doctree-read", link_sources)
    app.connect("html-page-context", name_language)
