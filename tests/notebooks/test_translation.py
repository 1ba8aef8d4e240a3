"""The notebooks in another language: the same code, formulas and links, and no stale words.

Oracles: the English notebooks themselves; Python's parser; the table of terms in the glossary.
"""

import ast
import importlib
import json
import re
import sys
import warnings

import pytest
from matplotlib import font_manager

from minidsv3.command import UserError
from minidsv3.measure import plots
from tests.notebooks.conftest import NOTEBOOKS, imported

PATHS, translate = sorted(NOTEBOOKS.glob("*.ipynb")), imported("translate")
TABLES = [(language, path) for language in translate.LANGUAGES for path in [None, *PATHS]]
NAMES = [f"{language}-{path.name[:2] if path else 'common'}" for language, path in TABLES]


def blank(source):
    """The syntax tree of a source, as text, without the words of its strings.

    A choice between two words, such as thread and threads, is words too.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
        if isinstance(node, ast.JoinedStr):
            node.values = sorted((each for each in node.values
                                  if isinstance(each, ast.FormattedValue)
                                  and not isinstance(each.value, ast.IfExp)), key=ast.unparse)
    return ast.dump(tree)


def unchanged(text):
    """What of a text cell may not be translated: code, formulas without their words, links."""
    fenced = re.findall(r"```.*?```", text, flags=re.S)
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    formulas = re.findall(r"\$\$?[^$]+\$\$?", text)
    return (len(fenced), sorted(re.findall(r"`([^`\n]+)`", text)),
            sorted(re.sub(r"\\text\{[^}]*\}|\s", "", each) for each in formulas),
            sorted(re.findall(r"\]\(([^)\s]+)\)", text)))


@pytest.mark.parametrize("language, path", TABLES, ids=NAMES)
def test_no_words_are_stale(language, path):
    """Oracle: hashes of the English texts as they are now. What has no words yet is a warning."""
    lacking, stale = translate.state(language, path)
    assert stale == [], "English has changed or is gone: mend these entries of the table"
    if count := len(lacking["cells"]) + len(lacking["strings"]):
        warnings.warn(f"{path.name if path else 'common'}: {count} texts have no {language} words "
                      "yet", stacklevel=1)


@pytest.mark.parametrize("language, path", TABLES[1:], ids=NAMES[1:])
def test_code_formulas_and_links_of_a_text_stay(language, path):
    """Oracle: the English text of the cell."""
    english = translate.text_cells(translate.read(path))
    for name, entry in translate.table_of(language, path.name[:2])["cells"].items():
        assert unchanged(entry["chinese"]) == unchanged(english[name]), name


@pytest.mark.parametrize("language, path", TABLES, ids=NAMES)
def test_only_words_of_the_code_change(language, path):
    """Oracle: the syntax tree without its strings, in every code cell and module."""
    table = (translate.table_of(language, "common")["strings"]
             | translate.table_of(language, path.name[:2] if path else "common")["strings"])
    content = translate.read(path) if path else {"cells": []}
    files = translate.modules(content) if path else translate.COMMON
    for source in translate.code_cells(content) + [file.read_text(encoding="utf-8")
                                                   for file in files]:
        assert blank(translate.translated(source, table)) == blank(source)


@pytest.mark.parametrize("language, path", TABLES[1:], ids=NAMES[1:])
def test_terms_are_those_of_the_glossary(language, path):
    """Oracle: the last table of docs/glossary.md: where English has a term, Chinese has its own."""
    glossary = (NOTEBOOKS.parent / "docs/glossary.md").read_text(encoding="utf-8")
    table = glossary.partition("## In Chinese")[2]
    terms = dict(re.findall(r"^\| ([\w -]+?) \| (.+?) \|$", table, flags=re.M)[1:])
    assert len(terms) > 60
    english = translate.text_cells(translate.read(path))
    for name, entry in translate.table_of(language, path.name[:2])["cells"].items():
        prose = re.sub(r"`[^`]*`|\$\$?[^$]*\$\$?|\]\([^)]*\)", " ", english[name])
        for term, forms in terms.items():
            if re.search(rf"\b{re.escape(term)}s?\b", prose, flags=re.I):
                assert any(form in entry["chinese"] for form in forms.split("；")), (name, term)


@pytest.mark.parametrize("language", translate.LANGUAGES)
def test_equal_words_are_translated_equally(language):
    """Oracle: the tables themselves. Checkers and pictures are written once, with all tables."""
    seen = {}
    for path in sorted((NOTEBOOKS / language).glob("*.json")):
        for english, other in translate.read(path)["strings"].items():
            assert seen.setdefault(english, other) == other, (path.name, english)


def test_the_chinese_readme_says_what_the_english_one_says():
    """Oracle: README.md: its sections, commands, figures, code and links, one section after the
    other; links within the page are to headings that exist."""
    def sections(name):
        text = (NOTEBOOKS.parent / name).read_text(encoding="utf-8")
        return re.split(r"^##? ", re.sub(r"\[.*\]\(README.*\)", "", text), flags=re.M)[1:]

    def held(section):
        _, _, body = section.partition("\n")
        commands = [re.sub(r"\s*# .*", "", line) for block in re.findall(r"```\w*\n(.*?)```", body,
                                                                        flags=re.S)
                    for line in block.splitlines()]
        prose = re.sub(r"```.*?```", "", body, flags=re.S)
        marks = sorted(set(re.findall(r"`([^`]+)`", prose)) - {made_by})
        links = sorted(each for each in re.findall(r"\]\(([^)]+)\)", prose) if each[0] != "#")
        figures = sorted(re.findall(r"\d[\d.,]*\d|\d", re.sub(r"`[^`]*`|\]\([^)]*\)", "", prose)))
        return commands, marks, links, figures

    made_by = "python notebooks/translate.py zh"       # where the Chinese notebooks come from
    english, chinese = sections("README.md"), sections("README.zh.md")
    headings = [section.partition("\n")[0] for section in chinese]
    inside = re.findall(r"\]\(#([^)]+)\)", "".join(chinese))
    assert len(english) == len(chinese) and set(inside) <= set(headings)
    for ours, theirs in zip(english, chinese):
        assert held(theirs) == held(ours)


def test_words_of_every_kind_are_replaced():
    """Oracle: a source written out by hand, with strings, f-strings, a comment and a docstring."""
    source = ('def f(x):\n    """One number."""\n    say("not now",  # a comment\n'
              '        f"about {x:.2f} of {max(x, 1)!r} { {} }", "kept")\n'
              '    return g("a text of two "\n             "lines")\n')
    table = {"One number.": "一个数。", "not now": "现在\"不\"", "# a comment": "# 注释",
             "about {x:.2f} of {max(x, 1)!r} {{}}": "{max(x, 1)!r} 中约 {x:.2f} {{}}",
             "a text of two lines": "长" * 40}
    assert translate.translated(source, table) == (
        'def f(x):\n    """一个数。"""\n    say("现在\\"不\\"",  # 注释\n'
        '        f"{max(x, 1)!r} 中约 {x:.2f} {{}}", "kept")\n'
        f'    return g("{"长" * 33}"\n             "{"长" * 7}")\n')


def test_links_to_the_path_leave_the_folder():
    """Oracle: by hand; the folder has no README of its own, and a cell without words stays."""
    cell = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["[all](README.md#path)"]}
    made, = translate.in_language({"cells": [cell]}, {"cells": {}, "strings": {}})["cells"]
    assert made["source"] == ["[all](../notebooks/README.md#path)"]


def test_a_folder_with_work_in_it_is_refused(tmp_path):
    """Oracle: the file that was there."""
    (tmp_path / "mine.ipynb").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="not empty"):
        translate.main(["zh", "00", "--out", str(tmp_path)])
    assert (tmp_path / "mine.ipynb").read_text(encoding="utf-8") == "mine"


def test_a_folder_of_one_notebook_is_complete(tmp_path, capsys):
    """Oracle: the English notebook: as many cells, the same outputs, and its folders beside it.

    Checkpoints are those of the repository, wherever the folder is.
    """
    assert translate.main(["zh", "00", "--out", str(tmp_path / "zh")]) == 0
    path, = (tmp_path / "zh").glob("*.ipynb")
    made, english = translate.read(path), translate.read(PATHS[0])
    assert [cell["id"] for cell in made["cells"]] == [cell["id"] for cell in english["cells"]]
    assert [cell.get("outputs") for cell in made["cells"]] == [
        cell.get("outputs") for cell in english["cells"]]
    setup, = (cell for cell in made["cells"] if cell["id"] == "setup")
    path = json.dumps((tmp_path / "zh").resolve().as_posix())
    assert f"sys.path.insert(0, {path})" in "".join(setup["source"])
    assert 'NOTEBOOKS = Path(minidsv3.__file__).parents[1] / "notebooks"' in "".join(
        setup["source"])
    for folder in ("check", "oracles", "pictures/en", "pictures/zh"):
        assert (tmp_path / "zh" / folder / "__init__.py").exists()


def test_pictures_are_chinese_with_a_font_that_is_newer_than_the_list_of_matplotlib(
        tmp_path, monkeypatch):
    """Oracle: a list of fonts without Chinese ones, and a file that no list has yet."""
    def add(path):
        if path == "broken.ttf":
            raise RuntimeError("no font")
        manager.ttflist.append(font_manager.FontEntry(fname=path, name="SimHei"))

    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", [font_manager.FontEntry("old.ttf", "DejaVu Sans")])
    monkeypatch.setattr(manager, "addfont", add)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: ["old.ttf", "new.ttf",
                                                                  "broken.ttf"])
    monkeypatch.setitem(plots.LOOK, "font.family", plots.LOOK["font.family"])
    assert translate.main(["zh", "00", "--out", str(tmp_path / "zh")]) == 0
    monkeypatch.syspath_prepend(tmp_path / "zh")
    for name in [name for name in sys.modules if name.split(".")[0] == "pictures"]:
        monkeypatch.delitem(sys.modules, name)
    module = importlib.import_module("pictures").block.__module__
    for name in [name for name in sys.modules if name.split(".")[0] == "pictures"]:
        del sys.modules[name]                    # those that were there come back after the test
    assert module == "pictures.zh.block" and plots.LOOK["font.family"][-1] == "SimHei"
    assert [font.fname for font in manager.ttflist] == ["old.ttf", "new.ttf"]


def strings_in(folder):
    """All string constants of the Python files below a folder."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py")]
    return {node.value for tree in trees for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("language", translate.LANGUAGES)
def test_keys_of_the_package_keep_their_names(language):
    """Oracle: Python's parser. No helper may ask a result of ours for a word that has changed."""
    words = {word for name in ["common", *(path.name[:2] for path in PATHS)]
             for word in translate.table_of(language, name)["strings"]}
    ours = strings_in(NOTEBOOKS.parent / "minidsv3")
    for path in (*NOTEBOOKS.glob("pictures/*.py"), *NOTEBOOKS.glob("check/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                assert node.slice.value not in words & ours, f"{path.name}:{node.lineno}"
