"""Folders as users have them: other encodings, links, runs inside, odd names, large texts."""

import codecs
import hashlib
import json
import os
import random
import shutil
import tracemalloc

import pytest

import train_tiny
from minidsv3.command import answer
from minidsv3.context import needle
from minidsv3.data import corpus, sources
from minidsv3.data.batches import encode_documents
from minidsv3.data.corpus import Document
from minidsv3.data.tokenizer import Tokenizer, well_formed
from minidsv3.measure import evaluate
from minidsv3.study import fp8 as study_fp8
from tests.train.test_trainer import ctrl_c_in_the_third_step, metrics

pytestmark = pytest.mark.usefixtures("short_end")


def write(root, files):
    """Write {relative path: bytes} below a folder."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def names(root):
    """The names of the documents of a folder."""
    return [document.name for document in corpus.load(str(root)).documents]


def test_what_is_left_out_is_told_in_one_line(tmp_path, capsys):
    """Oracle: files counted by hand; the first of each kind is named, hidden ones are not told."""
    text = "Straße, Käse und Öl; naïve café, élève\n"
    write(tmp_path, {f"{n:02}.txt": f"{n} {text}".encode("cp1252" if n % 3 else "utf-8")
                     for n in range(12)} | {"picture.bin": b"\1\0\2", ".git/x": b"\xff"})
    assert names(tmp_path) == ["00.txt", "03.txt", "06.txt", "09.txt"]
    line, = capsys.readouterr().err.splitlines()
    assert line == (f"of {str(tmp_path)!r} 4 files are read, and left out are: "
                    "9 not UTF-8 text (01.txt: byte 0xdf at 6, ...)")


def test_a_link_to_a_folder_is_told_and_not_entered(tmp_path, capsys):
    """It may lead in a circle. Oracle: the line, and the documents without it."""
    root = write(tmp_path / "root", {"a.txt": b"text a\n"})
    write(tmp_path / "other", {"b.txt": b"text b\n"})
    try:
        (root / "link").symlink_to(tmp_path / "other", target_is_directory=True)
        (root / "circle").symlink_to(root, target_is_directory=True)
        (root / "c.txt").symlink_to(tmp_path / "other" / "b.txt")
    except OSError:
        pytest.skip("this system makes no links")
    assert names(root) == ["a.txt", "c.txt"]
    assert "2 link to a folder (circle, ...)" in capsys.readouterr().err


def test_nothing_is_told_where_nothing_is_left_out(tmp_path, capsys):
    """Oracle: no line, though some files are hidden or empty."""
    write(tmp_path, {"a.txt": b"text\n", "b/c.txt": b"", ".hidden": b"\xff", ".venv/d.txt": b"d"})
    assert names(tmp_path) == ["a.txt"] and capsys.readouterr().err == ""


def test_training_and_evaluation_tell_what_is_left_out(miniature, tmp_path, small_text, capsys):
    """Oracle: the same line from both commands."""
    write(tmp_path / "texts", {"old.txt": "Öl".encode("latin-1")})
    shutil.copy(small_text, tmp_path / "texts")
    data = ["--data", str(tmp_path / "texts")]
    run = str(tmp_path / "run")
    words = "1 files are read, and left out are: 1 not UTF-8 text (old.txt: byte 0xd6 at 0)"
    assert train_tiny.main([*miniature, *data, "--steps", "1", "--out", run]) == 0
    assert words in capsys.readouterr().err
    corpus.notice.cache_clear()
    assert evaluate.main([run, *data, "--samples", "0", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert words in err and "validation part of" in out


@pytest.mark.parametrize("out", ["run", "."])
def test_a_run_inside_its_own_text_is_no_text(miniature, small_text, tmp_path, monkeypatch, out):
    """`--data .`, with the run in a folder below it, or in it. Oracle: the hash and the names."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"mine.txt": small_text.read_bytes(), "more/config.json": b'{"mine": 1}\n'})
    before = corpus.load(".").sha256
    assert train_tiny.main([*miniature, "--data", ".", "--steps", "2", "--out", out]) == 0
    assert names(".") == ["mine.txt", "more/config.json"]
    (tmp_path / out / "summary.json").unlink()
    assert train_tiny.main(["--resume", "--out", out, "--device", "cpu"]) == 0
    assert json.loads((tmp_path / out / "summary.json").read_bytes())["corpus_sha256"] == before


@pytest.mark.parametrize("files, is_run", [
    (["state.pt"], True), (["run.lock"], True), (["study.json"], True),
    (["tokenizer.json", "train.json"], True), (["tokenizer.json", "config.json"], True),
    (["train.json"], False), (["config.json"], False), (["tokenizer.json"], False),
    (["needle.json"], True), (["config.json", "model-00001-of-00002.safetensors"], True),
    (["model.safetensors.txt", "config.json"], False), (["summary.json", "sample.txt"], False)])
def test_what_is_taken_for_a_run(tmp_path, files, is_run):
    """Texts may be called train.json, too. Oracle: the documents of the folder above."""
    write(tmp_path, {f"inner/{name}": f"content of {name}\n".encode() for name in files}
          | {"a.txt": b"text\n", "inner/deep/b.txt": b"deep\n"})
    assert len(names(tmp_path)) == (1 if is_run else 2 + len(files))


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode on Windows")
def test_names_that_are_no_utf_8_work(tmp_path):
    """Oracle: hashlib over the raw bytes of the names; both sides of the split have documents."""
    root = os.fsencode(tmp_path)
    try:
        for n in range(30):
            with open(os.path.join(root, b"caf\xe9 %d.txt" % n), "wb") as file:
                file.write(b"text number %d\n" % n)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    loaded = corpus.load(str(tmp_path))
    digest = hashlib.sha256()
    for document in loaded.documents:
        for part in (os.fsencode(document.name), document.text.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    assert loaded.sha256 == digest.hexdigest() and len(loaded.documents) == 30
    assert all(corpus.split(loaded.documents))


def test_lone_surrogates_in_a_text_become_the_replacement_character():
    """Oracle: by hand. Pairs are one character in Python, and stay."""
    assert well_formed("a\ud83d b\udce9\U0001f600") == "a\ufffd b\ufffd\U0001f600"
    tokenizer = Tokenizer.train(["some text"], 270)
    encoded, = encode_documents([Document("a", "x\udc80y")], tokenizer)
    assert tokenizer.decode(encoded[:-1]) == "x\ufffdy"


def test_a_byte_order_mark_is_dropped(tmp_path, monkeypatch):
    """Oracle: the text after it. One within the text stays."""
    mark = codecs.BOM_UTF8
    write(tmp_path, {"a.txt": mark + b"first\n", "b.txt": b"second" + mark + b"\n"})
    assert [each.text for each in corpus.load(str(tmp_path)).documents] == [
        "first\n", "second\ufeff\n"]
    assert corpus.load(str(tmp_path / "a.txt")).documents[0].text == "first\n"
    stand_in = type("datasets", (), {
        "load_dataset": lambda *_, **__: iter([{"text": "\ufeffthird\n"}])})
    monkeypatch.setitem(__import__("sys").modules, "datasets", stand_in)
    assert corpus.load("hf:a/b").documents[0].text == "third\n"


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 100])
def test_the_hash_of_words_does_not_depend_on_its_pieces(monkeypatch, piece):
    """Oracle: all words listed at once, for texts of few different characters at random."""
    monkeypatch.setattr(corpus, "PIECE", piece)
    draw = random.Random(piece)
    for length in range(30):
        text = "".join(draw.choice("ab \n\u2003é") for _ in range(length))
        expected = hashlib.sha256(" ".join(text.split()).encode()).digest()
        assert corpus.hash_of_words(text) == expected, text


def test_reading_takes_few_bytes_for_each_byte_of_text(tmp_path):
    """One large file. Oracle: Python's own count of its memory: at most 3.5 for each byte."""
    line = "def function(argument):\n    return argument + 1  # some more words\n"
    text = "".join(f"{number} {line}" for number in range(40_000))
    write(tmp_path, {"large.txt": text.encode()})
    tracemalloc.start()
    try:
        documents = corpus.load(str(tmp_path / "large.txt")).documents
        sides = corpus.split(documents)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 3.5 * len(text) and sum(map(len, sides)) > 40


def test_encoding_takes_few_bytes_beyond_the_tokens(tmp_path):
    """Oracle: Python's own count: 4 bytes for each token, and as many while it is made."""
    text = "def f(x):\n    return x1 + 29\n" * 20_000
    tokenizer = Tokenizer.train([text[:1000]], 280)
    tracemalloc.start()
    try:
        encoded, = encode_documents([Document("a", text)], tokenizer)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(encoded) > 100_000 and peak <= 2.5 * encoded.nbytes


def test_too_little_memory_is_one_line(tmp_path, monkeypatch, capsys):
    """Oracle: exit code 2 and the words, where a text is read and anywhere else."""
    def fail(*_):
        raise MemoryError

    write(tmp_path, {"a.txt": b"text\n"})
    with monkeypatch.context() as patch:
        patch.setattr(sources, "decode", fail)
        assert answer(lambda: corpus.load(str(tmp_path / "a.txt"))) == 2
    assert "a.txt' needs more memory than this machine has free; give a part of it." in (
        capsys.readouterr().err)
    assert answer(fail) == 2
    assert capsys.readouterr().err == ("error: there is not enough memory; give less text, or "
                                       "choose a smaller model, batch or window.\n")


def test_what_a_map_of_needles_writes_is_no_text(finished_run, small_text, tmp_path, monkeypatch):
    """It is written below the text by default. Oracle: the hash before."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"mine.txt": small_text.read_bytes()})
    before = corpus.load(".").sha256
    assert needle.main([str(finished_run), "--data", ".", "--lengths", "80", "--depths", "1",
                        "--trials", "1", "--device", "cpu"]) == 0
    assert list(tmp_path.glob("runs/**/needle.json")) and corpus.load(".").sha256 == before


def test_what_a_study_in_eight_bits_writes_is_no_text(small_text, tmp_path, monkeypatch):
    """Its runs lie below the text. Oracle: the hash before, in place of the runs."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"mine.txt": small_text.read_bytes()})
    before = corpus.load(".").sha256
    monkeypatch.setattr(study_fp8, "run_all", lambda _, tasks, *__: write(
        tmp_path, {str(path): b"{}" for path, *_ in tasks}))
    study_fp8.make_missing(study_fp8.parse_arguments(
        ["--data", ".", "--out", "mine", "--seeds", "1", "--arms", "fp32"]))
    assert len(list(tmp_path.glob("mine/runs/*.json"))) == 2 and corpus.load(".").sha256 == before


def test_what_a_killed_run_left_half_written_is_no_text(
        finished_run, miniature, small_text, tmp_path, monkeypatch):
    """In the folder of the run, which is that of the text. Oracle: the unbroken run's log."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"small.txt": small_text.read_bytes()})
    with ctrl_c_in_the_third_step(monkeypatch):
        assert train_tiny.main([*miniature, "--data", ".", "--out", "."]) == 130
    write(tmp_path, {"metrics.jsonl.tmp": b'{"step": 1}\n', "tokenizer.json.tmp": b"{"})
    assert train_tiny.main(["--resume", "--out", ".", "--device", "cpu"]) == 0
    assert metrics(tmp_path) == metrics(finished_run)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_links_that_lead_nowhere_and_pipes_are_told(tmp_path, capsys):
    """Oracle: the number of both, and the first of them by name; nothing waits for the pipe."""
    write(tmp_path, {"b.txt": b"text\n"})
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    os.mkfifo(tmp_path / "c.txt")
    assert names(tmp_path) == ["b.txt"]
    assert "2 broken link or no file (a.txt, ...)" in capsys.readouterr().err
