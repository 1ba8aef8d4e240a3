"""Documents to learn from: the Python standard library, or any text of yours.

The default needs no network and no account: every machine that runs this program has the sources
of the Python standard library. They hold code, comments and, in `pydoc_data/topics.py`, the
language reference as prose. A source is named by one string:

    python-stdlib            the standard library of this interpreter: about 11 MB
    python-packages          that, and all packages installed for it: 160 MB with requirements.txt
    notes.txt, my_project/   a file, or every text file of a folder
    https://...              a page or file, fetched only when you name it
    hf:NAME                  a data set of the hub, streamed by the package `datasets`

`load` returns a `Corpus`. `split` divides it into training and validation, by whole documents
where it can. `sources.py` says what each source reads and leaves out; `tokenizer.py` and
`batches.py` make tokens and windows.
"""

import hashlib
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from ..command import UserError, notice
from . import sources
from .sources import Document

FEW_DOCUMENTS = 20               # fewer than this are cut into sections before the split
SECTIONS = 50                    # about this many, so that one section is 2 % of the text
PIECE = 2**16                    # characters of a text whose words are listed at once


class Corpus(NamedTuple):
    """Documents of one source; `sha256` covers names and texts, `skipped` counts files left out."""

    name: str
    documents: list[Document]
    sha256: str
    skipped: int = 0


def load(source="python-stdlib"):
    """Read the documents of a source (see the top of this module), always in the same order.

    Empty documents and copies of another document are dropped; a notice says what else is left out
    of a folder. Raises FileNotFoundError for a path that does not exist, UserError for a source
    without text, one too large for the memory, a binary file or a failed download.
    """
    try:
        return read(source)
    except MemoryError:
        raise UserError(f"data source {source!r} needs more memory than this machine has free; "
                        "give a part of it.") from None


def read(source):
    """What `load` returns, if there is enough memory."""
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
        documents, left_out = sources.read_folder(Path(source))
        if skipped := len(left_out):
            notice(sources.told(left_out, source, len(documents)))
    elif source.strip() and Path(source).exists():
        documents = [Document(Path(source).name, sources.decode(Path(source).read_bytes(), source))]
    else:
        raise FileNotFoundError(f"data source {source!r} does not exist; give a file, a folder, "
                                "a URL, hf:NAME, python-stdlib, or python-packages.")
    documents = distinct(documents)
    if not documents:
        note = f" ({skipped} files or folders left out)" if skipped else ""
        raise UserError(f"data source {source!r} holds no text{note}; give one with UTF-8 text.")
    return Corpus(source, documents, fingerprint(documents), skipped)


def fingerprint(documents):
    """SHA-256 of names and texts, in hexadecimal.

    Each part is preceded by its length, so that moving a border between two parts changes the hash.
    """
    digest = hashlib.sha256()
    for document in documents:
        for part in (name_bytes(document), document.text.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def name_bytes(document):
    """The name of a document as bytes, also where the name of its file is not UTF-8."""
    return document.name.encode("utf-8", sys.getfilesystemencodeerrors())


def distinct(documents):
    """Drop empty documents and copies; of several copies the one with the first name stays.

    Copies are documents that differ only in white space. A copy of a training document in the
    validation split would measure memorisation.
    """
    first = {}                       # by hash: the texts themselves would need the memory twice
    for document in sorted(documents):
        first.setdefault(hash_of_words(document.text), document)
    kept = set(first.values())
    return [document for document in documents
            if document in kept and document.text and not document.text.isspace()]


def hash_of_words(text):
    """SHA-256 of a text whose white space is one space each, without that at its ends.

    It is computed piece by piece, because a list of all words takes ten times the memory of a text.
    """
    digest, begun, gap = hashlib.sha256(), False, False
    for start in range(0, len(text), PIECE):
        piece = text[start:start + PIECE]
        if words := piece.split():
            apart = begun and (gap or piece[0].isspace())
            digest.update((" " * apart + " ".join(words)).encode())
            begun, gap = True, False
        gap = gap or piece[-1].isspace()
    return digest.digest()


def split(documents, validation_share=0.06):
    """Divide documents into (training, validation); no document is in both.

    The side of a document depends on its name and on the sizes of the others, not on their order.
    Validation gets `validation_share` of the bytes or a little more. If there are only a few
    documents, or one of them holds more than half of the text, they are first cut into sections.
    """
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share={validation_share} must be above 0 and below 1, for "
                         "instance 0.06.")
    documents = distinct(documents)
    sizes = [len(document.text.encode()) for document in documents]
    if len(documents) < FEW_DOCUMENTS or 2 * max(sizes) > sum(sizes):
        length = -(-sum(len(document.text) for document in documents) // SECTIONS)
        documents = [part for document in documents for part in sections(document, length)]
        sizes = [len(document.text.encode()) for document in documents]
    validation = choose_validation(documents, sizes, validation_share * sum(sizes))
    sides = ([document for document in documents if document not in validation],
             [document for document in documents if document in validation])
    if not all(sides):
        raise UserError(f"{sum(sizes)} bytes of text are too few to divide into training and "
                        "validation; give more text.")
    return sides


def choose_validation(documents, sizes, wanted):
    """Take documents in the order of their names' hashes until they hold the bytes wanted -> set.

    Documents larger than all the bytes wanted come last, because one of them would be too much.
    """
    chosen, taken = set(), 0
    for _, _, document, size in sorted(
        (size > wanted, hashlib.sha256(name_bytes(document)).digest(), document, size)
        for document, size in zip(documents, sizes)
    ):
        if taken >= wanted:
            break
        chosen.add(document)
        taken += size
    return chosen


def sections(document, length):
    """Cut a document into parts of at most `length` characters; joined, they are its text again.

    A cut falls after the last line end within `length`, or else after the last white space, or
    else anywhere. Example, length 4: "a\\nbc\\ndefgh" -> "a\\n", "bc\\n", "defg", "h".
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
