"""Where text comes from: the Python installation, your files and folders, the network, the hub.

Each reading function turns one kind of source into documents; `corpus.load` chooses among them. A
file that is not text is skipped and counted if the source may have others; alone, it is an error.
"""

import ast
import http.client
import io
import os
import tokenize
import urllib.request
from pathlib import Path
from typing import NamedTuple

from ..command import UserError
from ..files import EXPORTS, LOCK, SHARED, STATE_FILE, first_line, holds_a_run

# Left out of the standard library and of packages: packages installed inside the library, tests
# (often broken on purpose), two collections of demos, and files generated at build or install time,
# which contain paths of one machine.
EXCLUDED_FOLDERS = {"site-packages", "dist-packages", "idlelib", "turtledemo", "test", "tests"}
EXCLUDED_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize", "__editable__")

# Some packages ship tables of data as Python files. Such a file is very long, or its lines are.
TABLE_CHARACTERS = 2**20
TABLE_LINE = 200                 # average length of a line [characters]

URL_TIMEOUT = 30                 # without an answer [s]
URL_BYTES = 256 * 2**20          # a larger download is refused
HUB_BYTES = 64 * 2**20           # streamed from the hub at most: six times the standard library
HUB_DOCUMENTS = 50_000

BOM = "\ufeff"                   # a byte order mark, which some editors write before a text
RUN_FILES = {STATE_FILE, SHARED, LOCK, "lineage.json", *EXPORTS}
RUN_FILES |= {f"{name}.tmp" for name in RUN_FILES}       # which a killed run leaves


class Document(NamedTuple):
    """One text and its name: a relative path with forward slashes, a URL, or a hub name."""

    name: str
    text: str


def standard_library(root):
    """The `.py` files below `root` -> documents sorted by path, number of files skipped.

    Skipped are files that cannot be read or decoded. Each topic of the language reference becomes a
    document of its own.
    """
    documents, skipped = [], 0
    for name, path in python_files([root]).items():
        text = read_python(path)
        if text is None:
            skipped += 1
        elif name == "pydoc_data/topics.py":
            documents += topics(name, text)
        else:
            documents.append(Document(name, text))
    return documents, skipped


def python_packages(library, roots):
    """Packages below `roots` and the standard library -> documents, number of files skipped.

    They are sorted by name; names begin with `packages/` or `stdlib/`. Tables and near copies are
    left out. Raises UserError if there is no package, since python-stdlib is a source of its own.
    """
    documents, skipped = [], 0
    for name, path in python_files(roots).items():
        text = read_python(path)
        if text is None:
            skipped += 1
        elif not is_table(text):
            documents.append(Document(f"packages/{name}", text))
    if not any(document.text.strip() for document in documents):
        places = ", ".join(str(root) for root in roots)
        raise UserError(f"data source 'python-packages' found no packages in {places}; run "
                        "`pip install -r requirements.txt`, or take python-stdlib.")
    more, undecodable = standard_library(library)
    documents += [Document(f"stdlib/{name}", text) for name, text in more]
    return without_near_copies(documents), skipped + undecodable


def python_files(roots):
    """{path below its root, with forward slashes: file}, sorted, without what is excluded above.

    Of two roots that have the same path the first one counts, as `import` would find it. So it does
    no harm if both folders of an interpreter are the same, or one is a link to the other.
    """
    found = {}
    for root in dict.fromkeys(roots):
        for path in root.rglob("*.py"):
            relative = path.relative_to(root)
            if (EXCLUDED_FOLDERS.isdisjoint(relative.parts) and path.is_file()
                    and not relative.name.startswith(EXCLUDED_FILES)):
                found.setdefault(relative.as_posix(), path)
    return dict(sorted(found.items()))


def read_python(path):
    """The text of a Python file in the encoding that it declares; line ends stay as they are.

    None if it cannot be read, if it contains a NUL byte, which Python allows in no source, or if
    its bytes do not match the declared encoding.
    """
    try:
        data = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
        text.encode()                            # fails if the text has a lone surrogate
    except (OSError, SyntaxError, UnicodeError, LookupError):
        return None
    return None if "\0" in text else text


def is_table(text):
    """Whether a Python file is a table of data, not code or prose."""
    lines = text.count("\n") + 1
    return len(text) > TABLE_CHARACTERS or len(text) > TABLE_LINE * lines


def without_near_copies(documents):
    """Drop documents of which more than half of the lines occur in longer ones; keep the order.

    Generated files, vendored packages with rewritten imports, and chapters of a longer text would
    put the same lines on both sides of the split. Short lines such as `else:` do not count.
    """
    kept, seen = set(), set()
    for document in sorted(documents, key=lambda each: (-len(each.text), each.name)):
        lines = {line.strip() for line in document.text.splitlines() if len(line.strip()) > 20}
        if 2 * len(lines & seen) <= len(lines):
            kept.add(document)
        seen |= lines
    return [document for document in documents if document in kept]


def topics(name, text):
    """The texts of a Python file that is one assignment `topics = {title: text}` -> documents.

    Many topics are chapters of a longer topic; these are left out.
    """
    table = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            table.update(ast.literal_eval(node.value))
    return without_near_copies([Document(f"{name}#{title}", table[title])
                                for title in sorted(table)])


class NotText(UserError):
    """A file is not UTF-8 text; `reason` says where one sees that."""

    def __init__(self, source, reason):
        self.reason = reason
        super().__init__(f"data source {source!r} is not UTF-8 text ({reason}); convert it to "
                         "UTF-8, or give another file.")


def decode(data, source):
    """UTF-8 bytes -> text without a byte order mark; line ends stay as they are.

    Raises NotText, a UserError, if it is not text.
    """
    try:
        if b"\0" not in data:
            return data.decode("utf-8").removeprefix(BOM)
        reason = f"a NUL byte at {data.index(0)}"
    except UnicodeDecodeError as error:
        reason = f"byte {data[error.start]:#04x} at {error.start}"
    raise NotText(source, reason)


def read_folder(root):
    """Every text file below a folder -> documents sorted by path, [(kind, path) left out].

    Hidden files and folders such as .git and .venv are left out: they rarely hold the text meant.
    So are the files of runs, which would change with each run, and links to folders, which may
    lead in a circle; these are listed with all that could not be read as text.
    """
    documents, left_out = [], []
    for name, path in sorted(files_below(root, left_out).items()):
        try:
            documents.append(Document(name, decode(path.read_bytes(), name)))
        except NotText as error:
            left_out.append(("not UTF-8 text", f"{name}: {error.reason}"))
        except OSError as error:
            left_out.append(("unreadable", f"{name}: {first_line(error)}"))
    return documents, left_out


def files_below(root, left_out):
    """{path below a folder, with forward slashes: file}; appends to left_out what is not entered.

    Of a folder that holds a run only the run's own files are left out if it is the root.
    """
    def unreadable(error):
        left_out.append(("unreadable", first_line(error)))

    found, own = {}, RUN_FILES if holds_a_run(root) else set()
    for place, folders, files in os.walk(root, onerror=unreadable):
        visible, folders[:] = [name for name in sorted(folders) if name[0] != "."], []
        for name in visible:
            path = Path(place, name)
            kind = ("link to a folder" if path.is_symlink() else
                    "folder of a run" if holds_a_run(path) else None)
            if kind:
                left_out.append((kind, path.relative_to(root).as_posix()))
            elif name not in own:
                folders.append(name)
        for path in (Path(place, name) for name in sorted(files)
                     if name[0] != "." and name not in own):
            if path.is_file():
                found[path.relative_to(root).as_posix()] = path
            else:
                left_out.append(("broken link or no file", path.relative_to(root).as_posix()))
        own = set()                              # below the root, such names are not of a run
    return found


def told(left_out, source, read):
    """What is left out of a folder, as one line: how much, why, and the first of each kind."""
    kinds = {}
    for kind, name in left_out:
        kinds.setdefault(kind, []).append(name)
    what = ", ".join(f"{len(names)} {kind} ({names[0]}{', ...' if names[1:] else ''})"
                     for kind, names in kinds.items())
    return f"of {source!r} {read} files are read, and left out are: {what}"


def download(url):
    """The bytes at a URL. Raises UserError if it cannot be fetched or is larger than URL_BYTES."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "minidsv3"})
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT) as response:
            data = response.read(URL_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"could not fetch {url!r} ({' '.join(str(error).split())}); check the "
                        "address and the network, or save the text and give the file.") from None
    if len(data) > URL_BYTES:
        raise UserError(f"{url!r} is larger than {URL_BYTES >> 20} MiB; save the part you need "
                        "and give the file.")
    return data


def stream_from_hub(name):
    """Yield documents of a hub data set until HUB_BYTES or HUB_DOCUMENTS are reached.

    Raises UserError if the package `datasets` is missing or the data set cannot be read.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"hf:{name} needs the package `datasets`; run `pip install datasets`, or "
                        "give a file or a folder.") from None
    size = 0
    try:
        for number, row in enumerate(datasets.load_dataset(name, split="train", streaming=True)):
            text = text_of_row(row).removeprefix(BOM)
            data = text.encode("utf-8", "replace")       # lone surrogates become "?"
            size += len(data)
            if size > HUB_BYTES or number >= HUB_DOCUMENTS:
                return
            yield Document(f"{name}/{number:06d}", data.decode())
    # The client of the hub raises many unrelated types, all because this name gave no text.
    except Exception as error:
        raise UserError(f"could not read hf:{name} ({' '.join(str(error).split())}); check the "
                        "name and the network.") from None


def text_of_row(row):
    """The text of one row: the column `text` or `content`, or else the longest string."""
    for column in ("text", "content"):
        if isinstance(row.get(column), str):
            return row[column]
    texts = [value for value in row.values() if isinstance(value, str)]
    if not texts:
        raise ValueError(f"no column of text among {sorted(row)}")
    return max(texts, key=len)
