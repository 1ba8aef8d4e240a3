"""Documents to learn from: the Python standard library, or any text of yours.

The default needs no network and no account: the interpreter's own sources lie on every disk that
runs this program, and hold code, comments and (in `pydoc_data/topics.py`) the language reference
as prose. A source is named by one string:

    python-stdlib            the standard library of this interpreter
    notes.txt, my_project/   a file, or every text file of a folder
    https://...              a page or file, fetched when asked and never before
    hf:NAME                  a data set of the hub, streamed by the package `datasets`

`load` returns a `Corpus`; `split` divides documents, never the inside of one, into training and
validation. Tokens and windows are made in `tokenizer.py` and `batches.py`.
"""

import ast
import hashlib
import http.client
import io
import sysconfig
import tokenize
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Left out of the standard library: installed packages, tests (often broken on purpose), two
# collections of demos, and files generated at build time, which hold paths of one machine.
EXCLUDED_FOLDERS = {"site-packages", "dist-packages", "idlelib", "turtledemo", "test", "tests"}
EXCLUDED_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize")

URL_TIMEOUT = 30                 # seconds without an answer
URL_BYTES = 256 * 2**20          # more than that is not a text for this program
HUB_BYTES = 64 * 2**20           # UTF-8 bytes streamed from the hub: six standard libraries
HUB_DOCUMENTS = 50_000

FEW_DOCUMENTS = 20               # fewer than this are cut into sections before the split
SECTIONS = 50                    # about so many; one section is then 2 % of the text


class Document(NamedTuple):
    """One text that is read from its beginning to its end, and its name (posix, relative)."""

    name: str
    text: str


class Corpus(NamedTuple):
    """Documents of one source; `sha256` covers names and texts, `skipped` counts binary files."""

    name: str
    documents: list[Document]
    sha256: str
    skipped: int = 0


def load(source: str = "python-stdlib") -> Corpus:
    """Read the documents of a source (see the head of this module), in an order that never varies.

    Empty documents and copies of another document are dropped. FileNotFoundError for a path that
    is not there; ValueError for a source without text, a binary file, or a failed download.
    """
    skipped = 0
    if source == "python-stdlib":
        documents = standard_library(Path(sysconfig.get_path("stdlib")))
    elif source.startswith(("http://", "https://")):
        documents = [Document(source, _decode(_download(source), source))]
    elif source.startswith("hf:"):
        documents = list(_stream_from_hub(source.removeprefix("hf:")))
    elif source.strip() and Path(source).is_dir():
        documents, skipped = _read_folder(Path(source))
    elif source.strip() and Path(source).exists():
        documents = [Document(Path(source).name, _decode(Path(source).read_bytes(), source))]
    else:
        raise FileNotFoundError(f"data source {source!r} does not exist; give a file, a folder, "
                                "a URL, hf:NAME, or python-stdlib")
    documents = distinct(documents)
    if not documents:
        note = f" ({skipped} binary files skipped)" if skipped else ""
        raise ValueError(f"data source {source!r} holds no text{note}; give one with UTF-8 text")
    return Corpus(source, documents, fingerprint(documents), skipped)


def fingerprint(documents: list[Document]) -> str:
    """SHA-256 of names and texts, in hexadecimal. Lengths go in too, so that no border can move."""
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.name.encode(), document.text.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def distinct(documents: list[Document]) -> list[Document]:
    """Drop empty documents, and copies that differ in white space only: the first name stays.

    A copy in the validation split would reward memory, not skill.
    """
    first = {}
    for document in sorted(documents):
        first.setdefault(" ".join(document.text.split()), document)
    kept = set(first.values())
    return [document for document in documents if document in kept and document.text.strip()]


def standard_library(root: Path) -> list[Document]:
    """The `.py` files below `root` as documents, sorted by path; reference topics one by one."""
    documents = []
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if EXCLUDED_FOLDERS & set(relative.parts) or relative.name.startswith(EXCLUDED_FILES):
            continue
        text = _decode_source(path.read_bytes())
        if relative.as_posix() == "pydoc_data/topics.py":
            documents += _topics(relative.as_posix(), text)
        elif text is not None:
            documents.append(Document(relative.as_posix(), text))
    return documents


def _decode_source(data: bytes) -> str | None:
    """Decode a Python file by the coding it declares; line ends stay as they are. None: it lies."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        return None


def _topics(name: str, text: str) -> list[Document]:
    """Take the prose out of a file that is one `topics = {title: text}`.

    Many topics are chapters of a longer one; those would put the same lines on both sides of the
    split, so the longest is kept and what it already holds is left out.
    """
    table = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            table.update(ast.literal_eval(node.value))
    kept, seen = [], set()
    for title in sorted(table, key=lambda title: (-len(table[title]), title)):
        lines = {line.strip() for line in table[title].splitlines() if len(line.strip()) > 20}
        if 2 * len(lines & seen) <= len(lines):
            kept.append(Document(f"{name}#{title}", table[title]))
        seen |= lines
    return sorted(kept)


def _decode(data: bytes, source: str) -> str:
    """UTF-8 bytes -> text, refusing what is not text. Line ends stay as they are."""
    try:
        if b"\0" not in data:
            return data.decode("utf-8")
        reason = f"a NUL byte at {data.index(0)}"
    except UnicodeDecodeError as error:
        reason = f"byte {data[error.start]:#04x} at {error.start}"
    raise ValueError(f"data source {source!r} is not UTF-8 text ({reason}); convert it to UTF-8, "
                     "or give another file")


def _read_folder(root: Path) -> tuple[list[Document], int]:
    """Every text file below a folder, sorted by path, and the number of binary files passed over.

    Hidden files and folders (.git, .venv) are not looked into: they are seldom meant.
    """
    documents, skipped = [], 0
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    for name in sorted(paths):
        if any(part.startswith(".") for part in name.split("/")):
            continue
        try:
            documents.append(Document(name, _decode(paths[name].read_bytes(), name)))
        except ValueError:
            skipped += 1
    return documents, skipped


def _download(url: str) -> bytes:
    """Fetch a URL, at most URL_BYTES of it."""
    request = urllib.request.Request(url, headers={"User-Agent": "minidsv3"})
    try:
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT) as response:
            data = response.read(URL_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ValueError(f"could not fetch {url!r} ({' '.join(str(error).split())}); check the "
                         "address and the network, or save the text and give the file") from None
    if len(data) > URL_BYTES:
        raise ValueError(f"{url!r} is larger than {URL_BYTES >> 20} MiB; save the part you need "
                         "and give the file")
    return data


def _stream_from_hub(name: str) -> Iterator[Document]:
    """Stream texts of a hub data set until HUB_BYTES or HUB_DOCUMENTS are reached."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f"hf:{name} needs the package `datasets`; run `pip install datasets`, or "
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
        raise ValueError(f"could not read hf:{name} ({' '.join(str(error).split())}); check the "
                         "name and the network") from None


def _text_field(row: dict) -> str:
    """The text of one row: the column `text` or `content`, else the longest string."""
    for column in ("text", "content"):
        if isinstance(row.get(column), str):
            return row[column]
    texts = [value for value in row.values() if isinstance(value, str)]
    if not texts:
        raise ValueError(f"no column of text among {sorted(row)}")
    return max(texts, key=len)


def split(
    documents: list[Document], validation_share: float = 0.06
) -> tuple[list[Document], list[Document]]:
    """Divide documents into (training, validation), never one document between both.

    Which side a document falls on depends on its name and on the others' sizes, not on their
    order. Validation gets `validation_share` of the bytes or a little more. Where whole documents
    cannot do that (few of them, or one holds more than half), they are cut into sections first.
    """
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share must lie between 0 and 1, got {validation_share}")
    documents = distinct(documents)
    sizes = [len(document.text.encode()) for document in documents]
    if len(documents) < FEW_DOCUMENTS or 2 * max(sizes) > sum(sizes):
        length = -(-sum(len(document.text) for document in documents) // SECTIONS)
        documents = [part for document in documents for part in sections(document, length)]
        sizes = [len(document.text.encode()) for document in documents]
    validation = _choose(documents, sizes, validation_share * sum(sizes))
    sides = ([document for document in documents if document not in validation],
             [document for document in documents if document in validation])
    if not all(sides):
        raise ValueError(f"{sum(sizes)} bytes of text are too few to divide into training and "
                         "validation; give more text")
    return sides


def _choose(documents: list[Document], sizes: list[int], wanted: float) -> set[Document]:
    """Take documents in the order of their names' hash until they hold the bytes wanted.

    Documents larger than all that is wanted come last: one of them would be too much.
    """
    chosen, taken = set(), 0
    for _, _, document, size in sorted(
        (size > wanted, hashlib.sha256(document.name.encode()).digest(), document, size)
        for document, size in zip(documents, sizes)
    ):
        if taken >= wanted:
            break
        chosen.add(document)
        taken += size
    return chosen


def sections(document: Document, length: int) -> list[Document]:
    """Cut a document into parts of at most `length` characters, which joined give it back.

    Cuts fall after the last line end in reach, else after the last white space, else anywhere.
    Example, length 4: "a\\nbc\\ndefgh" -> "a\\n", "bc\\n", "defg", "h".
    """
    text, start, parts = document.text, 0, []
    while start < len(text):
        stop = min(start + length, len(text))
        if stop < len(text):
            line_end = text.rfind("\n", start, stop)
            blank = max(text.rfind(space, start, stop) for space in " \t\r")
            stop = (line_end if line_end >= 0 else blank if blank >= 0 else stop - 1) + 1
        parts.append(Document(f"{document.name}#{len(parts):05d}", text[start:stop]))
        start = stop
    return parts
