"""The site of docs/build.py: no warning, no link or anchor that leads nowhere, and no network.

External addresses are not asked for: these tests have no network either.
"""

import importlib.util
import json
import re
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from minidsv3.command import UserError
from tests.notebooks import browser

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sphinx", "myst_nb", "furo", "mathjax")
needs_packages = pytest.mark.skipif(not all(map(find_spec, PACKAGES)),
                                    reason="needs docs/requirements.txt")
quietly = pytest.mark.filterwarnings("ignore:'myst_parser")  # it uses old names of Sphinx


@pytest.fixture(scope="module")
def build():
    """The module docs/build.py."""
    before = sys.path[:]
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


# ---------------------------------------------------------------------------- what Sphinx is given


def test_every_text_becomes_a_page(build):
    """Oracle: by hand, some paths that are there, and some that may not be."""
    found = {path.as_posix() for path in build.sources(ROOT)}
    assert {"README.md", "README.zh.md", "docs/results.md", "docs/default-run/loss.png",
            "studies/fp8/README.md", "checkpoints/tiny/architecture.svg", "train_tiny.py",
            "minidsv3/model/mla.py", "tests/test_site.py"} <= found
    assert not any(path.startswith((".", "runs/", "site/")) or "/." in path for path in found)


def test_a_notebook_for_the_site(build):
    """Oracle: by hand, for three cells: a text, a slider, and one that shows a source as HTML."""
    html = {"text/html": ["<b>x</b> = 1"], "text/plain": ["\n", "x = 1\n"]}
    slider = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "slider"}
    content = build.for_the_site({"metadata": {"widgets": {}, "kernelspec": {}}, "cells": [
        {"cell_type": "markdown", "source": ["# Why?\n", "So."]},
        {"cell_type": "code", "source": "look()", "outputs": [{"data": slider}]},
        {"cell_type": "code", "source": "Code(x)", "outputs": [{"data": html}, {"text": "1"}]}]})
    assert content["metadata"] == {"kernelspec": {}} and build.title_of(content) == "Why?"
    _, moved, shown = content["cells"]
    assert moved["outputs"] == []
    assert shown["outputs"] == [{"data": {"text/markdown": "```python\nx = 1\n```"}}, {"text": "1"}]


def test_the_sidebar_has_every_page(build, tmp_path):
    """Oracle: the pages and notebooks that exist; Chinese texts lead to Chinese notebooks."""
    build.write_sources(tmp_path)
    listed = re.findall(r"^[^<\n]*?<?((?:docs|studies|notebooks|notebooks-zh|README)[\w./-]*)>?$",
                        (tmp_path / "README.md").read_text(encoding="utf-8").partition(
                            "```{toctree}")[2], flags=re.M)
    texts = [path.relative_to(tmp_path).with_suffix("").as_posix()
             for suffix in ("md", "ipynb") for path in tmp_path.rglob(f"*.{suffix}")]
    assert sorted(listed) == sorted(set(texts) - {"README"})
    chinese = (tmp_path / "README.zh.md").read_text(encoding="utf-8")
    assert "](notebooks-zh/00_" in chinese and "](notebooks/README.md" in chinese
    first = json.loads(next(tmp_path.glob("notebooks-zh/00_*")).read_text(encoding="utf-8"))
    assert "str(NOTEBOOKS)" in json.dumps(first)             # no folder of the machine that built


def test_bad_input_is_one_line(build, tmp_path, monkeypatch):
    """A folder that is no site stays; a package that is missing is named."""
    (tmp_path / "mine.html").write_text("mine", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(build, "find_spec", lambda name: True)
        with pytest.raises(UserError, match="is no site; name a new folder"):
            build.main(["--out", str(tmp_path)])
    assert (tmp_path / "mine.html").read_text(encoding="utf-8") == "mine"
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs Sphinx.*pip install -r .*requirements.txt"):
        build.main(["--out", str(tmp_path / "new")])


# --------------------------------------------------------------------------------- what is written


class Page(HTMLParser):
    """The ids of a page, what it links to, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads = set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        """Note the addresses in a tag."""
        found = dict(attributes)
        self.ids.add(found.get("id"))
        if "href" in found:
            (self.links if tag == "a" else self.loads).add(found["href"])
        self.loads |= {found[name] for name in ("src", "srcset", "data", "poster") if name in found}


def mistakes(site):
    """Links, anchors and files of all pages that are not there, and what is on another machine."""
    pages = {path: Page(path) for path in site.rglob("*.html")}
    found, internal, anchors = [], 0, 0
    for path, page in pages.items():
        for address in page.links | page.loads:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loads and parts.scheme != "data":
                    found.append(f"{path.name} loads {address}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            internal, anchors = internal + 1, anchors + bool(anchor)
            if not target.is_file() or anchor and anchor not in pages[target].ids:
                found.append(f"{path.name} leads to {address}")
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        found += [f"{style.name} loads {address}" for address in
                  re.findall(r"""(?:url\(|@import)\s*['"]?((?:https?:)?//[^)'"]*)""", text)]
    return found, len(pages), internal, anchors


def test_a_mistake_is_noticed(tmp_path):
    """Oracle: by hand, a page without a mistake and one with six."""
    (tmp_path / "good.html").write_text(
        '<h1 id="a b">x</h1><a href="#a%20b">x</a><a href="bad.html?q=1">x</a>'
        '<a href="https://arxiv.org">x</a><img src="data:image/png;base64,AA">', encoding="utf-8")
    (tmp_path / "bad.html").write_text(
        '<a href="none.html">x</a><a href="good.html#c">x</a><img src="none.png">'
        '<script src="https://cdn.example/x.js"></script><link href="//cdn.example/x.css">',
        encoding="utf-8")
    (tmp_path / "bad.css").write_text("a { b: url('https://cdn.example/f.woff') }", "utf-8")
    found, pages, internal, anchors = mistakes(tmp_path.resolve())
    assert (len(found), pages, internal, anchors) == (6, 2, 5, 2)
    assert not any(each.startswith("good") for each in found)


@needs_packages
@quietly
@pytest.mark.slow
def test_a_broken_link_fails_the_build(build, tmp_path, capsys):
    """Oracle: by hand, a page with three broken links, and the same page when they are mended."""
    page = tmp_path / "source/README.md"
    page.parent.mkdir()
    (tmp_path / "static").mkdir()
    page.write_text("# Top\n\n[a](#bottom) [b](none.md) [c](docs/there.md#no)", "utf-8")
    (tmp_path / "source/docs").mkdir()
    (tmp_path / "source/docs/there.md").write_text(
        "---\norphan: true\n---\n# There\n\n% stays\n\n$1 and $2", "utf-8")
    assert build.run_sphinx(tmp_path, tmp_path / "out") == 1
    errors = capsys.readouterr().err
    assert all(each in errors for each in ("'bottom'", "'none.md'", "'no'"))
    page.write_text("# Top\n\n[a](#top) [c](docs/there.md#there)", "utf-8")
    assert build.run_sphinx(tmp_path, tmp_path / "out") == 0
    there = (tmp_path / "out/docs/there.html").read_text(encoding="utf-8")
    assert "% stays" in there and "$1 and $2" in there       # neither a comment nor a formula


SEEN = ("index", "docs/results", "docs/glossary", "docs/map", "notebooks/02_why_so_little_cache",
        "notebooks-zh/02_why_so_little_cache", "minidsv3/model/mla")
MEASURE = """(async () => {
  while (document.readyState !== "complete") await new Promise(go => setTimeout(go, 30));
  if (window.MathJax) await MathJax.startup.promise;
  const scrolls = part => part && part !== document.body &&
    (["auto", "scroll"].includes(getComputedStyle(part).overflowX) || scrolls(part.parentElement));
  return {
    wide: [...document.querySelectorAll(".content *")].filter(part => part.offsetWidth &&
      part.getBoundingClientRect().right > innerWidth + 1 && !scrolls(part.parentElement)).length,
    sideways: document.documentElement.scrollWidth > innerWidth,
    formulas: document.querySelectorAll("mjx-container").length,
    wrong: document.querySelectorAll("mjx-merror, [data-mjx-error]").length
  };
})()"""
FOUND = """(async () => {
  for (let tries = 0; tries < 100; tries++) {
    if (document.querySelector("#search-results a[href*='02_why_so_little_cache']")) return true;
    await new Promise(go => setTimeout(go, 100));
  }
})()"""


def look(site, profile):
    """What is wrong with some pages on a screen as wide as a phone's, and with the search."""
    chromium, found = browser.Browser(profile), []
    chromium.call("Emulation.setDeviceMetricsOverride", width=390, height=844,
                  deviceScaleFactor=1, mobile=True)
    try:
        for name in SEEN:
            chromium.open((site / f"{name}.html").as_uri())
            seen = chromium.run(MEASURE)
            assert seen.pop("formulas") > 50 or "notebooks" not in name
            found += [f"{name}: {seen}"] if any(seen.values()) else []
            found += [f"{name}: asks for {address[:100]}" for address in chromium.requests
                      if not address.startswith(("file:", "data:"))]
            found += [f"{name}: {failure}" for failure in chromium.failures]
        chromium.open((site / "search.html").as_uri() + "?q=latent")
        assert chromium.run(FOUND) and not chromium.failures
    finally:
        chromium.close()
    return found


@needs_packages
@quietly
@pytest.mark.slow
def test_the_site_is_whole_and_needs_no_network(build, tmp_path, capsys):
    """Oracles: Sphinx, without a warning; every address in the HTML; Chromium, if there is one."""
    assert build.main(["--out", str(tmp_path / "site")]) == 0
    found, pages, internal, anchors = mistakes((tmp_path / "site").resolve())
    assert not found
    assert pages > 300 and internal > 10_000 and anchors > 3_000
    start = Page(tmp_path / "site/index.html")               # links to files that it only names
    assert {"minidsv3/model/cache.html", "minidsv3/fp8/__init__.html"} <= start.links
    languages = {path.relative_to(tmp_path / "site").as_posix(): re.search(
        r'<html[^>]* lang="([^"]+)"', path.read_text(encoding="utf-8"))[1]
                 for path in (tmp_path / "site").rglob("*.html")}
    assert set(languages.values()) == {"en", "zh-CN"}
    assert all((language == "zh-CN") == path.startswith(("notebooks-zh/", "README.zh"))
               for path, language in languages.items())
    if browser.program():
        (tmp_path / "profile").mkdir()
        assert not look(tmp_path / "site", tmp_path / "profile")
