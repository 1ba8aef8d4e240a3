"""Bits per byte, balance and draft agreement against plain loops in float64."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import train_tiny
from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.data.batches import raw_bytes, validation_windows
from minidsv3.data.corpus import Corpus, Document
from minidsv3.data.tokenizer import Tokenizer
from minidsv3.infer.text import Piece
from minidsv3.measure import evaluate as evaluate_module
from minidsv3.measure.evaluate import evaluate, parses_to_last_statement

TEXT = "".join(f"def f{n}(x):\n    return x + {n}  # é€😀\n" for n in range(12))


@pytest.fixture(scope="module")
def setting():
    """A float64 model with two MTP modules, and the windows of one document."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([TEXT], 290)
    model = DeepSeekV3(ModelConfig.preset("tiny").replace(
        vocab_size=290, hidden_size=32, num_hidden_layers=3, intermediate_size=48,
        moe_intermediate_size=16, num_nextn_predict_layers=2, initializer_range=0.3))
    document = Document("one", TEXT)
    return model.double().eval(), *validation_windows([document], tokenizer, 23), document


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_bits_per_byte_are_those_of_a_loop(setting, batch):
    """Oracle: the sum of -log2 of each token's softmax probability, divided by the file's bytes."""
    model, inputs, targets, document = setting
    bits, count = 0.0, 0
    for window, wanted in zip(inputs, targets):
        with torch.no_grad():
            rows = model(window[None])[0].tolist()
        for row, target in zip(rows, wanted.tolist()):
            if target >= 0:
                largest = max(row)
                normaliser = math.fsum(math.exp(value - largest) for value in row)
                bits -= (row[target] - largest - math.log(normaliser)) / math.log(2)
                count += 1
    assert count == (targets != -100).sum() < targets.numel()
    result = evaluate(model, inputs, targets, raw_bytes([document]), batch)
    assert result.bits_per_byte == pytest.approx(bits / len(TEXT.encode()), rel=1e-10)


def test_max_vio_is_counted_by_hand(setting):
    """Oracle: the tokens of each expert counted in a plain loop, without padding."""
    model, inputs, targets, document = setting
    counts = [[0] * 16 for _ in range(4)]                  # two sparse blocks, two MTP modules
    for window, wanted in zip(inputs, targets):
        with torch.no_grad():
            hidden, routings = model.hidden_states(window[None])
            routings += model.mtp_states(hidden, window[None])[1]
        for layer, routing in enumerate(routings):
            later = max(0, layer - 1)                      # MTP depth k begins at token k
            for place, chosen in enumerate(routing.experts[0].tolist(), start=later):
                for expert in chosen if wanted[place] >= 0 else []:
                    counts[layer][expert] += 1
    expected = [max(row) / (sum(row) / 16) - 1 for row in counts]
    result = evaluate(model, inputs, targets, raw_bytes([document]), 4)
    assert result.max_vio == pytest.approx(expected, abs=5e-5)         # rounded to four digits
    assert all(router.load.sum() == 0 for router in model.routers())   # evaluation counts nothing


def test_agreement_compares_guesses_at_the_same_token(setting):
    """Oracle: a loop; depth k at place i and the main model at i + k predict token i + k + 1."""
    model, inputs, targets, document = setting
    same = count = 0
    for window, wanted in zip(inputs, targets):
        with torch.no_grad():
            hidden, _ = model.hidden_states(window[None])
            main = model.lm_head(hidden)[0].argmax(-1).tolist()
            for k, state in enumerate(model.mtp_states(hidden, window[None])[0], start=1):
                for i, guess in enumerate(model.lm_head(state)[0].argmax(-1).tolist()):
                    if wanted[i + k] >= 0:
                        same += guess == main[i + k]
                        count += 1
    result = evaluate(model, inputs, targets, raw_bytes([document]), 4)
    assert result.mtp_agreement == round(same / count, 4)


def test_a_dense_model_without_mtp_has_no_balance(setting):
    """Oracle: an empty list and None, not an error and no share."""
    _, inputs, targets, document = setting
    model = DeepSeekV3(ModelConfig.preset("tiny").replace(
        vocab_size=290, num_hidden_layers=1, num_nextn_predict_layers=0)).eval()
    result = evaluate(model, inputs, targets, raw_bytes([document]))
    assert result.max_vio == [] and result.mtp_agreement is None and result.bits_per_byte > 0


@pytest.mark.parametrize("text, valid", [
    ("", False), ("x = 1", False), ("x = 1\n", False), ("x = 1\ny", True), ("x = 1\ny = = 2", True),
    ("x = = 1\ny", False), ("# a\n# b\ny", False), ("def f(\n    a,\n):\n    return a\nx", True),
    ("def f():\n    return 1\n\n\ndef g(:", True), ("def f():\nreturn\nx", False),
    ("a = 1\nx = (1\ny = 2\nz", True), ("x = (1\ny = 2\nz", False),
    ('a = 1\ns = """\nfree text here\nand more', True), ('s = """\nx y z\n"""\nt', True),
    ("a = 1\n@wrap\ndef f():\n    pa", True), ("@wrap\nclass A:\n    b = 1\nc", True),
    ("try:\n    a\nexcept E:\n    b\nc", True), ("if a:\n    b\nelse:\n    c\nd", True),
    ("if a:\n    b\nelse:\n    c", False), ("a = 1\nif a:\n    b\nelse:\n    c", True),
    ("a = 'x\nb = 2\nc", False), ("a\0\nb\nc", False), ("x = '\\d'\ny", True),
    ("x = " + "(" * 500 + "\ny", False), ("x = 1\r\ny = 2\r\nz", True)])
def test_valid_up_to_the_last_statement(text, valid, recwarn):
    """Oracle: each text judged by hand; no warning about the text reaches the user."""
    assert parses_to_last_statement(text) is valid
    assert not recwarn.list


def test_without_mtp_no_share_is_shown(miniature, tmp_path, capsys):
    """A share of 0 would say that the drafts are bad. Oracle: null in JSON, no row in the table."""
    folder = str(tmp_path / "run")
    assert train_tiny.main([*miniature, "--steps", "1", "--set", "num_nextn_predict_layers=0",
                            "--out", folder]) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["mtp_agreement"] is None
    capsys.readouterr()
    for json_asked, words in ((["--json"], '"mtp_agreement": null'), ([], "bits per byte")):
        assert evaluate_module.main([folder, "--samples", "0", *json_asked]) == 0
        out = capsys.readouterr().out
        assert words in out and "MTP draft" not in out and "None" not in out


def test_the_command_repeats_the_figures_of_a_run(finished_run, capsys):
    """Oracle: the run's summary.json, for its own validation text and window."""
    summary = json.loads((finished_run / "summary.json").read_text())
    arguments = [str(finished_run), "--window", "32", "--samples", "2", "--length", "5", "--json"]
    assert evaluate_module.main([*arguments, "--device", "cpu"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["bits_per_byte"] == pytest.approx(summary["val_bits_per_byte"], abs=1e-4)
    assert figures["max_vio"] == summary["max_vio"]
    assert figures["mtp_agreement"] == summary["mtp_agreement"]
    assert figures["data"].startswith("validation part of ") and 0 <= figures[
        "share_that_parses"] <= 1


def test_the_command_reads_another_text_whole(finished_run, tmp_path, capsys):
    """Oracle: the size of the text in bytes, and the words of the table."""
    (tmp_path / "text.txt").write_text("abc é\n" * 500, encoding="utf-8")
    assert evaluate_module.main([str(finished_run), "--data", str(tmp_path / "text.txt"),
                                 "--window", "32", "--samples", "0", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "all of " in text and "3,500" in text and "bits per byte" in text
    assert "samples that parse" not in text


@pytest.mark.parametrize("trained, options, window, notices", [
    (32, [], 32, 0), (32, ["--window", "16"], 16, 0), (32, ["--window", "64"], 64, 1),
    (5000, [], 4096, 0)])
def test_the_default_window_is_the_trained_one(finished_run, tmp_path, capsys, trained, options,
                                               window, notices):
    """Oracle: the config.json of the folder, edited; beyond it there is one line on stderr."""
    folder = shutil.copytree(finished_run, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": trained}))
    arguments = [str(folder), "--samples", "0", "--device", "cpu", "--json", *options]
    assert evaluate_module.main(arguments) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["window"] == window and len(err.splitlines()) == notices
    assert not notices or err.startswith("64 tokens are more than the 32")


def test_a_longer_window_makes_smaller_batches(finished_run, monkeypatch):
    """Oracle: the shapes given to the model: 4,096 tokens at once at most, or one window."""
    shapes, whole = [], DeepSeekV3.hidden_states

    def watched(self, tokens, *others):
        shapes.append(tokens.shape)
        return whole(self, tokens, *others)

    monkeypatch.setattr(DeepSeekV3, "hidden_states", watched)
    for window, rows in ((64, 64), (256, 16), (3000, 1), (5000, 1)):
        shapes.clear()
        assert evaluate_module.main([str(finished_run), "--samples", "0", "--device", "cpu",
                                     "--window", str(window)]) == 0
        assert max(shape[0] for shape in shapes) <= rows and shapes[0][1] == window


def test_the_share_that_parses_counts_seeds(setting, monkeypatch):
    """Oracle: given texts in place of completions, two of four valid."""
    texts = ["f():\n    pass\nx = 1\n", "f(:\nx = 1\n", "g():\n    return\ny = 2\n", "(((\n)\nx\n"]
    monkeypatch.setattr(evaluate_module, "complete",
                        lambda *_, seed, **__: [Piece(0, texts[seed]), Piece(None, "")])
    assert evaluate_module.share_that_parses(None, None, 4, 10) == 0.5


@pytest.mark.parametrize("options, words", [
    (["--window", "1"], "--window 1 must be at least 2"),
    (["--window", "99999"], "99,999 tokens are more than 64 times the 256"),
    (["--samples", "-1"], "--samples -1 must be"), (["--data", "nowhere.txt"], "nowhere.txt"),
    (["--device", "warp"], "device 'warp'")])
def test_the_command_refuses_bad_input_in_one_line(finished_run, capsys, options, words):
    """Oracle: the words and exit code 2."""
    assert evaluate_module.main([str(finished_run), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and words in lines[0], lines


def test_a_run_s_own_text_is_known_by_any_spelling(finished_run, small_text, tmp_path, monkeypatch):
    """Oracle: the full path and the one relative to its folder; another text is read whole."""
    monkeypatch.chdir(small_text.parent)
    assert "validation" in evaluate_module.documents_of(finished_run, small_text.name)[1]
    (tmp_path / "train.json").write_text("{}")
    assert "all of" in evaluate_module.documents_of(tmp_path, ".")[1]
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(ValueError, match="train.json holds a list"):
        evaluate_module.documents_of(tmp_path, None)


def moved_run(finished_run, folder, data, keep=()):
    """A copy of the run that says another place of its text, with only these files beside."""
    shutil.copytree(finished_run, folder)
    recipe = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps(recipe | {"data": str(data)}))
    for name in {"summary.json", "state.pt"} - set(keep):
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize("keep", [["summary.json"], ["state.pt"]])
def test_a_text_that_changed_since_the_training_is_told(
        finished_run, small_text, tmp_path, capsys, keep):
    """Oracle: the hash in summary.json, or in state.pt of an unfinished run; one line on stderr."""
    text = tmp_path / "texts" / small_text.name
    text.parent.mkdir()
    shutil.copy(small_text, text)
    run = moved_run(finished_run, tmp_path / "run", text, keep)
    assert evaluate_module.documents_of(run, None)[1] == f"validation part of {text}"
    assert capsys.readouterr().err == ""
    text.write_text(text.read_text(encoding="utf-8") + "one more line\n" * 90, encoding="utf-8")
    name = evaluate_module.documents_of(run, None)[1]
    assert name == f"validation part of {text}, not as in training"
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{text} is not the text that this model was trained on: its SHA-256")


def test_the_text_of_the_training_is_known_in_another_place(finished_run, small_text, tmp_path,
                                                            capsys):
    """Oracle: its hash; only the validation part is read, though the run names another place."""
    run = moved_run(finished_run, tmp_path / "run", "gone.txt", ["summary.json"])
    shutil.copy(small_text, tmp_path)
    documents, name = evaluate_module.documents_of(run, str(tmp_path / small_text.name))
    assert name.startswith("validation part of ") and capsys.readouterr().err == ""
    assert 0 < raw_bytes(documents) < small_text.stat().st_size / 5


def test_a_run_of_several_processes_knows_its_text(tmp_path):
    """Oracle: by hand, the newest of its states; a folder without any does not tell."""
    for step, name in ((20, "old"), (40, "new")):
        (tmp_path / "state" / f"step-{step:08}").mkdir(parents=True)
        (tmp_path / "state" / f"step-{step:08}" / "run.json").write_text(
            json.dumps({"corpus_sha256": name}))
    assert evaluate_module.hash_of_text(tmp_path) == "new"
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "state.pt").write_bytes(b"damaged")
    assert evaluate_module.hash_of_text(tmp_path) is None


@pytest.mark.parametrize("trained_on, data, told", [
    ("texts", "texts/a/1.txt", True), ("texts/a", "texts", True), ("texts/a", "texts/b", False),
    ("texts/a/1.txt", ".", True), ("texts", "texts2", False), ("gone", ".", False)])
def test_a_text_that_overlaps_with_that_of_the_training_is_told(
        tmp_path, monkeypatch, capsys, trained_on, data, told):
    """Of one folder a part may be evaluated, or all of it with more. Oracle: by hand."""
    for name in ("texts/a/1.txt", "texts/b/2.txt", "texts2/3.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\n" * 99)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/train.json").write_text(json.dumps({"data": trained_on}))
    (tmp_path / "run/summary.json").write_text('{"corpus_sha256": "another"}')
    assert evaluate_module.documents_of(tmp_path / "run", data)[1] == f"all of {data}"
    assert (f"documents in common with {trained_on}" in capsys.readouterr().err) == told


def test_the_library_is_a_part_of_all_packages(tmp_path, monkeypatch, capsys):
    """Oracle: the line, for a run on all packages that is evaluated on the library."""
    (tmp_path / "train.json").write_text('{"data": "python-packages"}')
    monkeypatch.setattr(evaluate_module.corpus, "load", lambda name: Corpus(
        name, [Document(f"{n}", f"text {n}") for n in range(40)], "hash"))
    assert "validation" in evaluate_module.documents_of(tmp_path, "python-stdlib")[1]
    assert "in common with python-packages" in capsys.readouterr().err


def test_a_run_that_does_not_know_its_text_says_so(finished_run, tmp_path, capsys):
    """Only what other programs read was copied, or an old summary. Oracle: the line; none beside
    the summary of a run.
    """
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (run / "state.pt").unlink()
    assert "validation" in evaluate_module.documents_of(run, None)[1]
    assert capsys.readouterr().err == ""
    (run / "summary.json").write_text("{}")
    assert "validation" in evaluate_module.documents_of(run, None)[1]
    assert "is still the text that this model was trained on is not known" in (
        capsys.readouterr().err)
