"""Sources of documents and the split; oracles: bytes on disk, set operations, folders by hand."""

import hashlib
import random
import sysconfig
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from minidsv3.data import corpus, sources
from minidsv3.data.corpus import Document


@pytest.fixture(scope="module")
def standard_library():
    return corpus.load()


def size(documents):
    return sum(len(document.text.encode()) for document in documents)


def test_default_corpus_is_the_standard_library_in_a_fixed_order(standard_library):
    """Oracle: the files themselves, read by name, and the order of a plain sort."""
    names = [document.name for document in standard_library.documents]
    assert names == sorted(names) and len(names) == len(set(names)) > 300
    assert 5e6 < size(standard_library.documents) < 30e6
    texts = dict(standard_library.documents)
    root = Path(sysconfig.get_path("stdlib"))
    for name in ("argparse.py", "json/decoder.py"):
        assert texts[name].encode() == (root / name).read_bytes()
    parts = {part for name in names for part in Path(name).parts}
    assert not parts & {"site-packages", "dist-packages", "idlelib", "turtledemo", "test", "tests"}
    assert not any(name.startswith("_sysconfigdata") for name in names)


def test_reference_topics_are_read_as_prose_without_repeated_chapters(standard_library):
    """Oracle: the installed dictionary; at most half of a topic's lines are in longer topics."""
    import pydoc_data.topics

    topics = {document.name.partition("#")[2]: document.text
              for document in standard_library.documents
              if document.name.startswith("pydoc_data/topics.py#")}
    assert len(topics) > 20 and "pydoc_data/topics.py" not in dict(standard_library.documents)
    assert all(pydoc_data.topics.topics[title] == text for title, text in topics.items())
    lines = {title: {line.strip() for line in text.splitlines() if len(line.strip()) > 20}
             for title, text in topics.items()}
    for title, own in lines.items():
        longer = [lines[other] for other in topics if len(topics[other]) > len(topics[title])]
        assert 2 * len(own & set().union(*longer)) <= len(own), title


def test_fingerprint_changes_with_every_name_text_and_border():
    """Oracle: hashlib over the same fields by hand."""
    documents = [Document("a", "bc"), Document("d", "é")]
    by_hand = hashlib.sha256()
    for part in (b"a", b"bc", b"d", "é".encode()):
        by_hand.update(len(part).to_bytes(8, "little"))
        by_hand.update(part)
    assert corpus.fingerprint(documents) == by_hand.hexdigest()
    others = [[Document("ab", "c"), documents[1]], [documents[0], Document("d", "e")]]
    assert len({corpus.fingerprint(each) for each in [documents, *others]}) == 3


def test_split_keeps_documents_whole_and_gives_validation_its_share(standard_library):
    """Oracle: set operations on documents, and bytes counted in the test."""
    documents = standard_library.documents
    train, validation = corpus.split(documents)
    assert not set(train) & set(validation) and set(train) | set(validation) == set(documents)
    assert 0.05 * size(documents) <= size(validation) <= 0.10 * size(documents)
    shuffled = random.Random(0).sample(documents, len(documents))
    again = corpus.split(shuffled)
    assert set(again[0]) == set(train) and set(again[1]) == set(validation)


def test_copies_never_stand_on_both_sides():
    """Oracle: the texts themselves, compared without their white space."""
    documents = [Document(f"{copy}/{number}.py", f"x = {number}" + "\n" * (copy + 1))
                 for copy in range(3) for number in range(40)]
    train, validation = corpus.split(documents)
    assert len(train) + len(validation) == 40
    assert not {each.text.strip() for each in train} & {each.text.strip() for each in validation}


@pytest.mark.parametrize("documents", [
    [Document("one", "".join(f"line {number}\n" for number in range(2000)))],
    [Document("no line ends", "word " * 4000)],
    [Document("no space at all", "ab" * 5000)],
    [Document("same lines", "again\n" * 500)],
    [Document("giant", "x y\n" * 50_000)] + [Document(str(n), f"tiny {n}") for n in range(30)],
])
def test_few_or_lopsided_documents_are_cut_into_sections(documents):
    """Oracle: the sections of both sides, sorted and joined, are the documents again."""
    train, validation = corpus.split(documents)
    joined = "".join(part.text for part in sorted(train + validation))
    assert sorted(joined) == sorted("".join(document.text for document in documents))
    assert len(train) + len(validation) == len(set(train) | set(validation))
    assert 0.05 * len(joined) <= size(validation) <= 0.2 * len(joined)
    if len(documents) == 1:
        assert joined == documents[0].text


def test_a_large_document_goes_to_training_where_small_ones_suffice():
    """Oracle: eight names; by their hashes alone some would go to validation."""
    small = [Document(f"small {number}", f"x = {number}\n" * 100) for number in range(40)]
    for name in "abcdefgh":
        train, validation = corpus.split([*small, Document(name, "large\n" * 4000)])
        assert name in dict(train) and name not in dict(validation)
        assert 0.05 <= size(validation) / size(train + validation) <= 0.10


def test_sections_end_at_lines_where_there_are_lines():
    """Oracle: a case by hand."""
    parts = corpus.sections(Document("f", "a\nbc\nde fgh\rijklm"), 4)
    assert [part.text for part in parts] == ["a\n", "bc\n", "de ", "fgh\r", "ijkl", "m"]


def test_folder_and_file_keep_their_bytes(tmp_path):
    """Oracle: the bytes written, with mixed line ends; binary and hidden files are left out."""
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    files = {"b/x.txt": "eins\r\nzwei\rdrei é\n".encode(), "a.md": b"text\n", "empty.txt": b"",
             "image.png": b"\x89\0\1", "latin.txt": b"\xe9", ".git/config": b"secret"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    loaded = corpus.load(str(tmp_path))
    assert [document.name for document in loaded.documents] == ["a.md", "b/x.txt"]
    assert all(document.text.encode() == files[document.name] for document in loaded.documents)
    assert loaded.skipped == 2
    single = corpus.load(str(tmp_path / "b" / "x.txt"))
    assert single.documents == [Document("x.txt", files["b/x.txt"].decode())]


def test_declared_coding_is_followed_and_line_ends_stay(tmp_path):
    """Oracle: the text before it was encoded."""
    text = "# -*- coding: latin-1 -*-\r\nname = 'é'\r\n"
    (tmp_path / "old.py").write_bytes(text.encode("latin-1"))
    (tmp_path / "broken.py").write_bytes(b"name = '\xe9'\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "t.py").write_text("pass", encoding="utf-8")
    assert sources.standard_library(tmp_path) == ([Document("old.py", text)], 1)


def grow(root, files):
    """Write {relative path: bytes} below a new folder."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def test_packages_come_with_the_library_and_from_the_first_folder_that_has_them(
        tmp_path, monkeypatch):
    """Oracle: the bytes written, in the order of a plain sort, whatever order the disk gives."""
    library = grow(tmp_path / "lib", {"json.py": b"library", "site-packages/a.py": b"a package"})
    pure = grow(tmp_path / "pure", {"json.py": b"package", "b/x.py": b"from pure",
                                    "b/-.py": b"before", "B.py": b"capital", "read.me": b"?"})
    plat = grow(tmp_path / "plat", {"b/x.py": b"from plat", "c.py": b"c\r\n"})
    expected = {"packages/B.py": "capital", "packages/b/-.py": "before",
                "packages/b/x.py": "from pure", "packages/c.py": "c\r\n",
                "packages/json.py": "package", "stdlib/json.py": "library"}
    found = {name: list(Path.rglob(folder, "*.py"))
             for name, folder in (("lib", library), ("pure", pure), ("plat", plat))}
    for order in (sorted, reversed):
        monkeypatch.setattr(Path, "rglob",
                            lambda self, _, order=order: order(found[self.name]))
        documents, skipped = sources.python_packages(library, [pure, pure, plat])
        assert documents == sorted(map(Document._make, expected.items())) and skipped == 0


def test_packages_leave_out_tests_tables_and_what_cannot_be_decoded(tmp_path):
    """Oracle: for each rule, files by hand that it keeps and files that it leaves out."""
    kept = {"p/code.py": b"x = 1\n", "p/testing.py": b"y = 2\n",
            "p/old.py": "# coding: latin-1\n# é\n".encode("latin-1"),
            "p/wide.py": b"#" * 399 + b"\n", "p/large.py": b"a = '%07d'\n" % 1 * (2**20 // 14)}
    left_out = {"p/tests/a.py": b"a\n", "p/test/b.py": b"b\n", "sitecustomize.py": b"c\n",
                "__editable___p_finder.py": b"MAPPING = '/home/me'\n",
                "p/wider.py": b"#" * 401 + b"\n", "p/larger.py": b"b = 2\n" * (2**20 // 6 + 1),
                "p/folder.py/note.txt": b"no file of Python\n"}
    broken = {"p/lies.py": b"'\xe9'\n", "p/unknown.py": b"# coding: nonsense\n",
              "p/no_text.py": b"# coding: rot13\n", "p/nul.py": b"a\0b\n",
              "p/half.py": b"# coding: unicode_escape\n'\\ud800'\n"}
    root = grow(tmp_path / "site", kept | left_out | broken)
    library = grow(tmp_path / "lib", {"l.py": b"z = 3\n", "lies.py": b"'\xe8'\n"})
    documents, skipped = sources.python_packages(library, [root])
    assert [name for name, _ in documents] == [
        *(f"packages/{name}" for name in sorted(kept)), "stdlib/l.py"]
    assert dict(documents)["packages/p/old.py"].endswith("é\n")
    assert skipped == len(broken) + 1
    corpus.fingerprint(documents)


def test_near_copies_are_left_out_and_the_longest_stays(tmp_path):
    """Oracle: lines counted by hand; the others share some of the ten lines of the original."""
    def lines(*numbers):
        return "".join(f"    a_line_of_some_length = {number}\n" for number in numbers)

    near = Document("b", "import other\n" + lines(*range(6), *range(20, 25)))
    half = Document("c", lines(*range(5), *range(30, 35)))
    short = Document("d", "else:\n" * 9)
    original = Document("e", lines(*range(10)) + "pass\n" * 40)
    repeated = Document("f", "else:\n" * 10)
    documents = [near, half, short, original, repeated]
    assert sources.without_near_copies(documents) == [half, short, original, repeated]
    assert sources.without_near_copies(documents[::-1]) == [repeated, original, short, half]
    library = grow(tmp_path / "lib", {"original.py": original.text.encode()})
    site = grow(tmp_path / "site", {"_vendor/copy.py": near.text.encode(), "own.py": b"x = 1"})
    documents, _ = sources.python_packages(library, [site])
    assert [name for name, _ in documents] == ["packages/own.py", "stdlib/original.py"]


def test_packages_of_this_interpreter_are_found(monkeypatch):
    """Oracle: the place where `import` finds them. Files are not read: each text is its path."""
    import json

    import torch

    own = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    if Path(torch.__file__).parents[1] not in own:
        pytest.skip("torch is not among the packages of this interpreter itself")
    monkeypatch.setattr(sources, "read_python", lambda path: f"# {path}\n")
    loaded = corpus.load("python-packages")
    texts = dict(loaded.documents)
    for name, module in (("packages/torch", torch), ("stdlib/json", json)):
        assert Path(texts[f"{name}/__init__.py"][2:-1]).samefile(module.__file__)
    assert len(texts) == len(loaded.documents) > 2000 and loaded.name == "python-packages"
    assert {name.split("/")[0] for name in texts} == {"packages", "stdlib"}
    assert sum(Path(text[2:-1]).stat().st_size for text in texts.values()) > 50e6


def test_no_packages_is_refused_in_one_line(tmp_path):
    """Oracle: the folders and the remedy are in the text."""
    library = grow(tmp_path / "lib", {"a.py": b"text\n"})
    site = grow(tmp_path / "site", {"empty/__init__.py": b"\n"})
    for roots in ([site], [tmp_path / "missing", site]):
        with pytest.raises(ValueError, match="no packages .* `pip install -r req") as caught:
            sources.python_packages(library, roots)
        assert all(str(root) in str(caught.value) for root in roots)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make, kind, words", [
    (lambda path: path / "missing", FileNotFoundError,
     ["missing", "does not exist", "give", "python-stdlib", "python-packages"]),
    (lambda path: "", FileNotFoundError, ["''", "give a file"]),
    (lambda path: write(path / "empty.txt", b" \n"), ValueError, ["empty.txt", "no text", "give"]),
    (lambda path: write(path / "n.bin", b"ab\0"), ValueError, ["n.bin", "NUL byte", "convert"]),
    (lambda path: write(path / "l1.txt", b"caf\xe9"), ValueError, ["0xe9 at 3", "convert"]),
    (lambda path: write(path / "f" / "n.bin", b"\0").parent, ValueError,
     ["no text", "1 files or folders left out"]),
    (lambda path: "http://127.0.0.1:1/x", ValueError, ["127.0.0.1:1/x", "check", "network"]),
    (lambda path: "https://", ValueError, ["'https://'", "check"]),
])
def test_bad_sources_are_refused_in_one_line(tmp_path, make, kind, words):
    """Oracle: the value and the remedy are in the text, which is one line."""
    with pytest.raises(kind) as caught:
        corpus.load(str(make(tmp_path)))
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def write(path, data):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_hub_name_without_the_package_says_what_to_install(monkeypatch):
    """Oracle: the remedy is in the text; the import is made to fail."""
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"hf:a/b .* `pip install datasets`"):
        corpus.load("hf:a/b")


def test_a_hub_stream_stops_at_its_caps(monkeypatch):
    """Oracle: a stand-in for `datasets` with ten rows, limits of four documents and of 25 bytes."""
    rows = [{"id": "a long name of a row", "text": f"row {number} \ud800"} for number in range(10)]
    stand_in = type("datasets", (), {"load_dataset": lambda *args, **options: iter(rows)})
    monkeypatch.setitem(__import__("sys").modules, "datasets", stand_in)
    monkeypatch.setattr(sources, "HUB_DOCUMENTS", 4)
    assert [each.text for each in corpus.load("hf:a/b").documents] == [
        f"row {number} ?" for number in range(4)]
    monkeypatch.setattr(sources, "HUB_BYTES", 25)
    assert len(corpus.load("hf:a/b").documents) == 3


def test_a_url_is_fetched_and_its_size_limited(monkeypatch):
    """Oracle: the bytes that a server on this machine sends."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/text" else 404)
            self.end_headers()
            self.wfile.write("drei é\r\n".encode())

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert corpus.load(url + "/text").documents == [Document(url + "/text", "drei é\r\n")]
        with pytest.raises(ValueError, match="404"):
            corpus.load(url + "/missing")
        monkeypatch.setattr(sources, "URL_BYTES", 4)
        with pytest.raises(ValueError, match="larger than"):
            corpus.load(url + "/text")
        server.shutdown()


@pytest.mark.parametrize("documents, share, words", [
    ([], 0.06, "0 bytes"), ([Document("a", "x")], 0.06, "1 bytes"),
    ([Document("a", "xy")], 1.5, "1.5"),
])
def test_a_split_that_cannot_be_is_refused(documents, share, words):
    """Oracle: the value is in the error's text."""
    with pytest.raises(ValueError, match=words):
        corpus.split(documents, share)
