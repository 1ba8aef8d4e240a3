"""Documents to learn from: the Python standard library, or any text of yours.

The default needs no network and no account: the interpreter's own sources lie on every disk that
runs this program, and hold code, comments and (in `pydoc_data/topics.py`) the language reference
as prose. A source is named by one string:

    python-stdlib            the standard library of this interpreter: about 11 MB
    python-packages          that, and all packages installed for it: 160 MB with requirements.txt
    notes.txt, my_project/   a file, or every text file of a folder
    https://...              a page or file, fetched when asked and never before
    hf:NAME                  a data set of the hub, streamed by the package `datasets`

`load` returns a `Corpus`; `split` divides documents, never the inside of one, into training and
validation. What each source reads and leaves out is in `sources.py`; tokens and windows are made in
`tokenizer.py` and `batches.py`.
"""

import hashlib
import sysconfig
from pathlib import Path
from typing import NamedTuple

from ..command import UserError
from . import sources
from .sources import Document

FEW_DOCUMENTS = 20               # fewer than this are cut into sections before the split
SECTIONS = 50                    # about so many; one section is then 2 % of the text


class Corpus(NamedTuple):
    """Documents of one source; `sha256` covers names and texts, `skipped` the files not text."""

    name: str
    documents: list[Document]
    sha256: str
    skipped: int = 0


def load(source: str = "python-stdlib") -> Corpus:
    """Read the documents of a source (see the head of this module), in an order that never varies.

    Empty documents and copies of another document are dropped. FileNotFoundError for a path that
    is not there; UserError for a source without text, a binary file, or a failed download.
    """
    skipped = 0
    library = Path(sysconfig.get_path("stdlib"))
    if source == "python-stdlib":
        documents, skipped = sources.standard_library(library)
    elif source == "python-packages":
        roots = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
        documents, skipped = sources.python_packages(library, roots)
    elif source.startswith(("http://", "https://")):
        documents = [Document(source, sources.decode(sources.download(source), source))]
    elif source.startswith("hf:"):
        documents = list(sources.stream_from_hub(source.removeprefix("hf:")))
    elif source.strip() and Path(source).is_dir():
        documents, skipped = sources.read_folder(Path(source))
    elif source.strip() and Path(source).exists():
        documents = [Document(Path(source).name, sources.decode(Path(source).read_bytes(), source))]
    else:
        raise FileNotFoundError(f"data source {source!r} does not exist; give a file, a folder, "
                                "a URL, hf:NAME, python-stdlib, or python-packages")
    documents = distinct(documents)
    if not documents:
        note = f" ({skipped} binary files skipped)" if skipped else ""
        raise UserError(f"data source {source!r} holds no text{note}; give one with UTF-8 text")
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
    first = {}                       # by hash: a second copy of all texts would fill the memory
    for document in sorted(documents):
        words = " ".join(document.text.split()).encode()
        first.setdefault(hashlib.sha256(words).digest(), document)
    kept = set(first.values())
    return [document for document in documents if document in kept and document.text.strip()]


def split(
    documents: list[Document], validation_share: float = 0.06
) -> tuple[list[Document], list[Document]]:
    """Divide documents into (training, validation), never one document between both.

    Which side a document falls on depends on its name and on the others' sizes, not on their
    order. Validation gets `validation_share` of the bytes or a little more. Where whole documents
    cannot do that (few of them, or one holds more than half), they are cut into sections first.
    """
    if not 0 < validation_share < 1:
        raise UserError(f"validation_share must lie between 0 and 1, got {validation_share}")
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
        raise UserError(f"{sum(sizes)} bytes of text are too few to divide into training and "
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
