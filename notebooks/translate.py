"""Write the notebooks in another language: other words, the same code and outputs.

    python notebooks/translate.py zh                  all of them in Chinese, to notebooks-zh
    python notebooks/translate.py zh 00 02            two of them
    python notebooks/translate.py zh 05 --missing     what of 05 has no Chinese words yet, as JSON

The words of notebook NN are in notebooks/zh/NN.json:

    cells      id of a text cell -> the hash of its English text, and its Chinese text
    strings    English -> Chinese, for strings and comments of the code cells, and for strings of
               its checkers (notebooks/check) and pictures (notebooks/pictures); what stands in {}
               stays as it is

Words that all notebooks share are in notebooks/zh/common.json. A text whose English has changed is
stale: it stays English until its table is mended. Pictures stay English where no font with Chinese
signs is installed.
"""

import ast
import hashlib
import io
import json
import re
import shutil
import sys
import tokenize
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from classroom import HERE, chosen, new_folder

from minidsv3.command import Parser, answer
from minidsv3.files import write_text

LANGUAGES = ("zh",)
SENTENCE = re.compile(r"[A-Za-z]{2,},? [A-Za-z]{2,}")       # other strings are labels or names
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef
COMMON = [HERE / "check/__init__.py", HERE / "check/verdict.py", HERE / "pictures/block.py"]
WIDTH = 66                                                  # columns of a string in a code cell


# ---- the words in a source ----

class Words(NamedTuple):
    """A string or a comment: where it stands in its source, and what it says."""

    start: int
    end: int
    text: str
    kind: str                                    # string, f-string, docstring, comment


def words_in(source):
    """All strings and comments of a Python source in their order."""
    lines, found, skipped, docstrings = source.splitlines(keepends=True), [], set(), set()
    starts = list(accumulate(map(len, lines), initial=0))

    def place(line, column):                     # ast counts bytes
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    for node in ast.walk(ast.parse(source)):     # a node comes before those inside it
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            docstrings.add(node.body[0].value)
        if isinstance(node, ast.JoinedStr):
            skipped.update(ast.walk(node))
            text, kind = template(node), "f-string"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text, kind = node.value, "docstring" if node in docstrings else "string"
        else:
            continue
        if kind == "f-string" or node not in skipped:
            found.append(Words(place(node.lineno, node.col_offset),
                               place(node.end_lineno, node.end_col_offset), text, kind))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            start = starts[token.start[0] - 1] + token.start[1]
            found.append(Words(start, start + len(token.string), token.string, "comment"))
    return sorted(found)


def template(node):
    """The text of an f-string, its expressions in {}."""
    def part(value):
        if isinstance(value, ast.Constant):
            return value.value.replace("{", "{{").replace("}", "}}")
        conversion = "" if value.conversion == -1 else f"!{chr(value.conversion)}"
        form = f":{template(value.format_spec)}" if value.format_spec else ""
        return f"{{{ast.unparse(value.value)}{conversion}{form}}}"

    return "".join(map(part, node.values))


def quoted(text):
    """A text as a Python string between double quotes."""
    return json.dumps(text, ensure_ascii=False)


def translated(source, table):
    """A Python source with the words of table, {English: other language}, in place of its own."""
    for words in reversed(words_in(source)):
        if words.text in table:
            new, old = table[words.text], source[words.start:words.end]
            if words.kind == "docstring":
                new = f'"""{new}"""'
            elif words.kind != "comment":
                column = words.start - source.rfind("\n", 0, words.start) - 1
                prefix = "f" if words.kind == "f-string" else ""
                new = prefix + quoted(new)
                if "\n" in old and not prefix:   # several lines: it stands in parentheses
                    new = f"\n{' ' * column}".join(map(quoted, pieces(table[words.text])))
            source = source[:words.start] + new + source[words.end:]
    return source


def pieces(text):
    """A text cut so that each piece fits into a line; a Chinese sign is two columns wide."""
    found, width = [""], 0
    for sign in text:
        width += 1 if ord(sign) < 0x2000 else 2
        if width > WIDTH:
            found, width = [*found, ""], 2
        found[-1] += sign
    return found


# ---- tables ----

def hash_of(text):
    """Twelve signs that change with the text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read(path):
    """A file of JSON, such as a notebook."""
    return json.loads(path.read_text(encoding="utf-8"))


def table_of(language, name):
    """A table of words; empty parts if it is not there yet."""
    path = HERE / language / f"{name}.json"
    return read(path) if path.exists() else {"cells": {}, "strings": {}}


def text_cells(content):
    """{id: text} of the text cells of a notebook."""
    return {cell["id"]: "".join(cell["source"]) for cell in content["cells"]
            if cell["cell_type"] == "markdown"}


@cache
def module_of(folder, name):
    """The file from which check or pictures take a name."""
    first = (HERE / folder / "__init__.py").read_text(encoding="utf-8")
    found = re.search(rf"from \.(\w+) import {name} as", first)
    return HERE / folder / f"{found[1] if found else '__init__'}.py"


def code_cells(content):
    """The sources of the code cells of a notebook."""
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def modules(content):
    """The files of check and pictures that a notebook uses, those in COMMON left out."""
    names = re.findall(r"\b(check|pictures)\.(\w+)", "\n".join(code_cells(content)))
    return sorted({module_of(*pair) for pair in names} - set(COMMON))


def shown(content):
    """All words of code that a reader of a notebook may see, without those of COMMON."""
    return ([words.text for cell in code_cells(content) for words in words_in(cell)]
            + [text for module in modules(content) for text in spoken(module)])


def spoken(module):
    """The strings of a module that are no docstrings."""
    return [words.text for words in words_in(module.read_text(encoding="utf-8"))
            if words.kind in ("string", "f-string")]


def state(language, path=None):
    """What the table of a notebook lacks, as a table in English, and a list of what is stale.

    Without path, that of the words that all notebooks share.
    """
    table = table_of(language, path.name[:2] if path else "common")
    cells = text_cells(read(path)) if path else {}
    strings = shown(read(path)) if path else [text for module in COMMON for text in spoken(module)]
    lacking = {"cells": {name: {"english": hash_of(text), "chinese": text}
                         for name, text in cells.items() if name not in table["cells"]},
               "strings": {text: text for text in strings
                           if SENTENCE.search(text) and text not in table["strings"]}}
    stale = [name for name, entry in table["cells"].items()
             if name not in cells or entry["english"] != hash_of(cells[name])]
    return lacking, stale + [text for text in table["strings"] if text not in strings]


# ---- the folder ----

def words_of(language, path):
    """The table of a notebook, with the words that all notebooks share."""
    table, common = table_of(language, path.name[:2]), table_of(language, "common")
    return table | {"strings": common["strings"] | table["strings"]}


def in_language(content, table, out=None):
    """A notebook as a dict -> the same with the words of a table; out: its folder, if it runs."""
    cells = [dict(cell) for cell in content["cells"]]
    for cell in cells:
        source, entry = "".join(cell["source"]), table["cells"].get(cell["id"])
        if cell["cell_type"] == "code":
            source = translated(source, table["strings"])
            if out and "setup" in cell["metadata"].get("tags", []):   # the folder's own check
                source = source.replace("str(NOTEBOOKS)", quoted(out.resolve().as_posix()))
        elif entry and entry["english"] == hash_of(source):
            source = entry["chinese"]
        if cell["cell_type"] == "markdown":      # the folder has no README of its own
            source = source.replace("](README.md", "](../notebooks/README.md")
        cell["source"] = source.splitlines(keepends=True)
    return content | {"cells": cells}


def write_modules(language, strings, out):
    """The folders beside the notebooks: checkers and pictures with other words, the rest as is."""
    for folder, target in (("check", "check"), ("oracles", "oracles"), ("pictures", "pictures/en"),
                           ("pictures", f"pictures/{language}")):
        shutil.copytree(HERE / folder, out / target,
                        ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*out.glob("check/*.py"), *out.glob(f"pictures/{language}/*.py")]:
        write_text(path, translated(path.read_text(encoding="utf-8"), strings))
    shutil.copy(HERE / language / "pictures.py", out / "pictures/__init__.py")
    shutil.copy(HERE / "ranks.py", out)


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("language", choices=LANGUAGES, help="zh: Chinese")
    parser.add_argument("notebooks", nargs="*", metavar="NN",
                        help="numbers of notebooks, for instance 02 03 [all of them]")
    parser.add_argument("--missing", action="store_true",
                        help="print what has no words yet, as a table to fill, and write nothing")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="a new or empty folder [notebooks-zh, beside notebooks]")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Write the folder, or print what is missing -> exit code."""
    arguments = parse_arguments(arguments)
    language, paths = arguments.language, chosen(arguments.notebooks)
    if arguments.missing:
        for path in [None, *paths]:
            print(json.dumps(state(language, path)[0], indent=1, ensure_ascii=False))
        return 0
    out = new_folder(arguments.out or HERE.parent / f"notebooks-{language}")
    strings = table_of(language, "common")["strings"]
    for path in paths:
        table = words_of(language, path)
        lacking, stale = state(language, path)
        strings |= table["strings"]
        write_text(out / path.name, json.dumps(in_language(read(path), table, out), indent=1,
                                               ensure_ascii=False) + "\n")
        english = len(lacking["cells"]) + len(lacking["strings"]) + len(stale)
        print(f"{out / path.name}" + (f": {english} texts stay English" if english else ""))
    write_modules(language, strings, out)
    return 0


if __name__ == "__main__":
    sys.exit(answer(main))
