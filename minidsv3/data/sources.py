"""Where text comes from: the interpreter's disk, files and folders of yours, the network, the hub.

Every function here reads one kind of source into documents; `corpus.load` chooses among them. None
of them fails on a file that is not text where there are others: such files are counted.
"""

import ast
import http.client
import io
import tokenize
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..command import UserError

# Left out of the standard library and of packages: packages within the library, tests (often
# broken on purpose), two collections of demos, and files generated at build or install time, which
# hold paths of one machine.
EXCLUDED_FOLDERS = {"site-packages", "dist-packages", "idlelib", "turtledemo", "test", "tests"}
EXCLUDED_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize", "__editable__")

# Packages ship tables of data as Python; they show in the size of the file or of its lines.
TABLE_CHARACTERS = 2**20
TABLE_LINE = 200                 # characters, on average

URL_TIMEOUT = 30                 # seconds without an answer
URL_BYTES = 256 * 2**20          # more than that is not a text for this program
HUB_BYTES = 64 * 2**20           # UTF-8 bytes streamed from the hub: six standard libraries
HUB_DOCUMENTS = 50_000


class Document(NamedTuple):
    """One text that is read from its beginning to its end, and its name (posix, relative)."""

    name: str
    text: str


def standard_library(root: Path) -> tuple[list[Document], int]:
    """The `.py` files below `root`, sorted by path, and how many could not be read or decoded.

    The reference topics become one document each.
    """
    documents, skipped = [], 0
    for name, path in _python_files([root]).items():
        text = _read_python(path)
        if text is None:
            skipped += 1
        elif name == "pydoc_data/topics.py":
            documents += _topics(name, text)
        else:
            documents.append(Document(name, text))
    return documents, skipped


def python_packages(library: Path, roots: Iterable[Path]) -> tuple[list[Document], int]:
    """The packages below `roots` and the standard library, sorted by name, and the files skipped.

    Names begin with `packages/` or `stdlib/`. Tables and near copies are left out. UserError if
    no package is there: the standard library alone is another source.
    """
    roots = list(roots)
    documents, skipped = [], 0
    for name, path in _python_files(roots).items():
        text = _read_python(path)
        if text is None:
            skipped += 1
        elif not _is_table(text):
            documents.append(Document(f"packages/{name}", text))
    if not any(document.text.strip() for document in documents):
        places = ", ".join(str(root) for root in roots)
        raise UserError(f"data source 'python-packages' found no packages in {places}; run "
                        "`pip install -r requirements.txt`, or take python-stdlib")
    more, undecodable = standard_library(library)
    documents += [Document(f"stdlib/{name}", text) for name, text in more]
    return without_near_copies(documents), skipped + undecodable


def _python_files(roots: list[Path]) -> dict[str, Path]:
    """{posix path below its root: file}, sorted, without what is excluded above.

    A path that two roots share counts once, from the first root, where `import` finds it. So the
    two folders of an interpreter may be one, or one a link to the other.
    """
    found = {}
    for root in dict.fromkeys(roots):
        for path in root.rglob("*.py"):
            relative = path.relative_to(root)
            if (EXCLUDED_FOLDERS.isdisjoint(relative.parts) and path.is_file()
                    and not relative.name.startswith(EXCLUDED_FILES)):
                found.setdefault(relative.as_posix(), path)
    return dict(sorted(found.items()))


def _read_python(path: Path) -> str | None:
    """The text of a Python file by the coding it declares, line ends as they are.

    None if it cannot be read, holds a NUL as no source may, or if the declaration lies.
    """
    try:
        data = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
        text.encode()                            # fails where an escape made half a character
    except (OSError, SyntaxError, UnicodeError, LookupError):
        return None
    return None if "\0" in text else text


def _is_table(text: str) -> bool:
    """Whether a file is data rather than something to read."""
    lines = text.count("\n") + 1
    return len(text) > TABLE_CHARACTERS or len(text) > TABLE_LINE * lines


def without_near_copies(documents: list[Document]) -> list[Document]:
    """Drop documents of which more than half the lines stand in longer ones; keep the order.

    Generated files, vendored packages with their imports rewritten and chapters of a longer text
    would put the same lines on both sides of the split. Short lines (`else:`) do not count.
    """
    kept, seen = set(), set()
    for document in sorted(documents, key=lambda each: (-len(each.text), each.name)):
        lines = {line.strip() for line in document.text.splitlines() if len(line.strip()) > 20}
        if 2 * len(lines & seen) <= len(lines):
            kept.add(document)
        seen |= lines
    return [document for document in documents if document in kept]


def _topics(name: str, text: str) -> list[Document]:
    """Take the prose out of a file that is one `topics = {title: text}`.

    Many topics are chapters of a longer one, so those are left out.
    """
    table = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            table.update(ast.literal_eval(node.value))
    return without_near_copies([Document(f"{name}#{title}", table[title])
                                for title in sorted(table)])


def decode(data: bytes, source: str) -> str:
    """UTF-8 bytes -> text, refusing what is not text. Line ends stay as they are."""
    try:
        if b"\0" not in data:
            return data.decode("utf-8")
        reason = f"a NUL byte at {data.index(0)}"
    except UnicodeDecodeError as error:
        reason = f"byte {data[error.start]:#04x} at {error.start}"
    raise UserError(f"data source {source!r} is not UTF-8 text ({reason}); convert it to UTF-8, "
                    "or give another file")


def read_folder(root: Path) -> tuple[list[Document], int]:
    """Every text file below a folder, sorted by path, and the number of binary files passed over.

    Hidden files and folders (.git, .venv) are not looked into: they are seldom meant.
    """
    documents, skipped = [], 0
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    for name in sorted(paths):
        if any(part.startswith(".") for part in name.split("/")):
            continue
        try:
            documents.append(Document(name, decode(paths[name].read_bytes(), name)))
        except UserError:
            skipped += 1
    return documents, skipped


def download(url: str) -> bytes:
    """Fetch a URL, at most URL_BYTES of it."""
    request = urllib.request.Request(url, headers={"User-Agent": "minidsv3"})
    try:
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT) as response:
            data = response.read(URL_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"could not fetch {url!r} ({' '.join(str(error).split())}); check the "
                        "address and the network, or save the text and give the file") from None
    if len(data) > URL_BYTES:
        raise UserError(f"{url!r} is larger than {URL_BYTES >> 20} MiB; save the part you need "
                        "and give the file")
    return data


def stream_from_hub(name: str) -> Iterator[Document]:
    """Stream texts of a hub data set until HUB_BYTES or HUB_DOCUMENTS are reached."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"hf:{name} needs the package `datasets`; run `pip install datasets`, or "
                        "give a file or a folder") from None
    size = 0
    try:
        for number, row in enumerate(datasets.load_dataset(name, split="train", streaming=True)):
            data = _text_field(row).encode("utf-8", "replace")    # lone surrogates become "?"
            size += len(data)
            if size > HUB_BYTES or number >= HUB_DOCUMENTS:
                return
            yield Document(f"{name}/{number:06d}", data.decode())
    # The hub's client raises a dozen unrelated types for one thing: this name gave no text.
    except Exception as error:
        raise UserError(f"could not read hf:{name} ({' '.join(str(error).split())}); check the "
                        "name and the network") from None


def _text_field(row: dict) -> str:
    """The text of one row: the column `text` or `content`, else the longest string."""
    for column in ("text", "content"):
        if isinstance(row.get(column), str):
            return row[column]
    texts = [value for value in row.values() if isinstance(value, str)]
    if not texts:
        raise UserError(f"no column of text among {sorted(row)}")
    return max(texts, key=len)
