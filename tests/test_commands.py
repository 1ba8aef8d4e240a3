"""Both commands from outside: bad input gives one line and exit code 2, and changes no file."""

import io
import json
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import generate
import train_tiny
from minidsv3 import DeepSeekV3, hf
from minidsv3.data.tokenizer import Tokenizer
from minidsv3.hf import hub
from minidsv3.infer.text import HealedSequence, complete
from minidsv3.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("short_end")
ROOT = Path(generate.__file__).resolve().parent
SHIPPED = ROOT / "checkpoints/tiny"               # its drafts are often right
STATS = {"new_tokens", "seconds", "tokens_per_s", "prefill_s", "cache_bytes", "passes",
         "acceptance"}


def listing(folder):
    """{path: bytes, or None for a folder} of everything below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*")}


def complaint(main, arguments, capsys):
    """The one line that a command says about bad input."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    assert "Traceback" not in captured.out
    return lines[0]


def words_in_order(line, words):
    """Whether the line has all of the words, in this order."""
    return re.search(".*".join(map(re.escape, words)), line)


# options added to those of the miniature run, and the words of the error
TRAIN = [
    (["--preset", "huge"], ["preset 'huge' is unknown", "tiny"]),
    (["--preset", "v3-671b"], ["no training recipe", "'v3-671b'", "tiny, short, small"]),
    (["--set", "qk_rope_head_dim=7"], ["qk_rope_head_dim=7 is odd", "use 8"]),
    (["--set", "n_routed_experts=5"], ["n_routed_experts=5", "n_group=2", "multiple of 2"]),
    (["--set", "num_experts_per_tok=9"], ["num_experts_per_tok=9", "choose 1 to"]),
    (["--set", "vocab_size=100"], ["vocab_size=100", "at least 262"]),
    (["--set", "window=300"], ["max_position_embeddings=256", "window=300", "leave it out"]),
    (["--set", "window=1"], ["window=1 ", "num_nextn_predict_layers=1", "change one"]),
    (["--set", "hiden_size=32"], ["hiden_size", "did you mean hidden_size"]),
    (["--set", "nonsense"], ["'nonsense'", "config.py"]),
    (["--set", "hidden_size"], ["hidden_size has no value", "write --set hidden_size=VALUE"]),
    (["--set", "hidden_size=wide"], ["hidden_size='wide'", "give int"]),
    (["--set", "hidden_size=3.5"], ["hidden_size=3.5", "give int"]),
    (["--set", "warmup=2"], ["warmup=2", "choose 0 to 1"]),
    (["--set", "beta1=1"], ["beta1=1.0 would never forget", "choose below 1"]),
    (["--set", f"learning_rate={10**400}"], ["learning_rate has 401 digits", "below 1e300"]),
    (["--set", f"n_shared_experts={10**30}"], ["n_shared_experts=", "choose up to 1024"]),
    (["--data", "http://[::1"], ["could not fetch 'http://[::1'", "check the address"]),
    (["--steps", "0"], ["steps=0", "at least 1"]),
    (["--steps", "-3"], ["steps=-3", "at least 1"]),
    (["--steps", "many"], ["--steps", "'many'", "--help"]),
    (["--save-every", "0"], ["save_every=0", "at least 1"]),
    (["--seed", "-1"], ["seed=-1", "for instance 0"]),
    (["--device", "tpu"], ["device 'tpu' is unknown", "choose auto, cpu"]),
    (["--device", "cuda:99"], ["device 'cuda:99' is not on this machine", "cpu"]),
    (["--precision", "fp4"], ["precision='fp4'", "choose auto"]),
    (["--optimizer", "sgd"], ["optimizer='sgd'", "adamw or muon"]),
    (["--resume"], ["nothing to resume", "state.pt", "leave out --resume"]),
    (["--resume", "--overwrite"], ["not allowed with", "--help"]),
    (["--colour", "red"], ["--colour red", "--help"]),
]


@pytest.mark.parametrize("arguments, words", TRAIN, ids=lambda value: " ".join(value)[:40])
def test_train_refuses_bad_input(miniature, tmp_path, monkeypatch, capsys, arguments, words):
    """Oracle: the words of the error; no folder is made."""
    monkeypatch.chdir(tmp_path)
    line = complaint(train_tiny.main, [*miniature, "--out", "run", *arguments], capsys)
    assert words_in_order(line, words), line
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("content, words", [
    (None, ["text.txt' does not exist", "give a file"]), (b"", ["text.txt' holds no text", "give"]),
    (b" \n\n", ["holds no text", "give"]), (b"\0\1\2\xff" * 99, ["is not UTF-8 text", "convert"]),
    ("é".encode("latin-1") * 99, ["is not UTF-8 text", "0xe9", "convert"]),
    (b"x", ["text", "give more text"]), (b"too short", ["tokens", "more text"])])
def test_train_refuses_a_text_it_cannot_use(miniature, tmp_path, capsys, content, words):
    """Oracle: the words of the error; the folder is unchanged."""
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    before = listing(tmp_path)
    line = complaint(train_tiny.main, [*miniature, "--data", tmp_path / "text.txt",
                                       "--out", tmp_path / "run"], capsys)
    assert words_in_order(line, words), line
    assert listing(tmp_path) == before


def test_train_does_not_touch_a_finished_run(miniature, finished_run, capsys):
    """Oracle: the folder's bytes before and after."""
    before = listing(finished_run)
    for arguments, words in [([], ["a finished run", "--overwrite"]),
                             (["--resume"], ["is finished", "--out"])]:
        line = complaint(train_tiny.main, [*miniature, "--out", finished_run, *arguments], capsys)
        assert words_in_order(line, words)
    assert listing(finished_run) == before


def test_overwrite_replaces_a_finished_run(miniature, finished_run, tmp_path, capsys):
    """Oracle: a fresh run with the same options; a file that is not of a run is kept."""
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"old")
    (tmp_path / "run" / "mine.txt").write_text("mine")
    assert train_tiny.main([*miniature, "--out", str(tmp_path / "run"), "--overwrite"]) == 0
    after = listing(tmp_path / "run")
    assert after.keys() == listing(finished_run).keys() | {"mine.txt"}
    assert after["model.safetensors"] == (finished_run / "model.safetensors").read_bytes()


def test_train_does_not_touch_files_in_the_way(miniature, tmp_path, capsys):
    """--out is a file, lies below one, or holds a model. Oracle: the bytes before and after."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    before = listing(tmp_path)
    for out, words in [("file", ["file is a file", "name a folder"]),
                       ("file/run", ["file is a file", "name a folder"]),
                       ("model", ["config.json already", "--out"])]:
        line = complaint(train_tiny.main, [*miniature, "--out", tmp_path / out], capsys)
        assert words_in_order(line, words), line
    assert listing(tmp_path) == before


def unfinished(finished_run, folder):
    """A copy of the run as a kill would have left it."""
    shutil.copytree(finished_run, folder)
    (folder / "summary.json").unlink()
    return folder


@pytest.mark.parametrize("arguments, words", [
    ([], ["an unfinished run", "--resume to go on"]),
    (["--resume", "--steps", "7"], ["steps=6, not 7", "leave that out"]),
    (["--resume", "--set", "hidden_size=64"], ["hidden_size=32, not 64", "leave that out"]),
    (["--resume", "--seed", "5"], ["seed=0, not 5", "leave that out"]),
    (["--resume", "--preset", "small"], ["not", "leave that out"])])
def test_resume_refuses_other_flags(finished_run, tmp_path, capsys, arguments, words):
    """The error names the field and both values. Oracle: the bytes before and after."""
    folder = unfinished(finished_run, tmp_path / "run")
    before = listing(folder)
    line = complaint(train_tiny.main, ["--out", folder, *arguments], capsys)
    assert words_in_order(line, words), line
    assert listing(folder) == before


def test_resume_refuses_a_damaged_state(finished_run, tmp_path, capsys):
    """The error names the path and a remedy. Oracle: the bytes before and after."""
    folder = unfinished(finished_run, tmp_path / "run")
    (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:5000])
    before = listing(folder)
    line = complaint(train_tiny.main, ["--out", folder, "--resume"], capsys)
    assert words_in_order(line, ["state.pt cannot be read", "--overwrite"])
    assert listing(folder) == before


def test_resume_takes_flags_that_agree(finished_run, tmp_path):
    """Oracle: the figures of the finished run."""
    folder = unfinished(finished_run, tmp_path / "run")
    assert train_tiny.main(["--out", str(folder), "--resume", "--steps", "6", "--set",
                            "hidden_size=32", "--device", "cpu"]) == 0
    old, new = (json.loads((each / "summary.json").read_text(encoding="utf-8"))
                for each in (finished_run, folder))
    assert old["val_bits_per_byte"] == new["val_bits_per_byte"]


GENERATE = [
    (["--temperature", "-1"], ["temperature=-1", "must not be negative"]),
    (["--temperature", "inf"], ["temperature=inf", "0 is greedy"]),
    (["--temperature", "nan"], ["temperature=nan", "0 is greedy"]),
    (["--temperature", "hot"], ["--temperature", "'hot'", "--help"]),
    (["--top-p", "1.5"], ["top_p=1.5", "choose above 0, up to 1"]),
    (["--top-p", "0"], ["top_p=0", "choose above 0"]),
    (["--top-k", "0"], ["top_k=0", "at least 1"]),
    (["--seed", "-1"], ["seed=-1", "for instance 0"]),
    (["--max-new-tokens", "0"], ["max_new_tokens=0", "at least 1"]),
    (["--max-new-tokens", "20000"], ["20,001 tokens", "64 times the 256", "choose up to 16,384"]),
    (["--prompt", "é" * 20_000], ["tokens are more than 64 times the 256", "choose up to 16,384"]),
    (["--device", "gpu"], ["device 'gpu' is unknown", "choose auto, cpu"]),
]


@pytest.mark.parametrize("arguments, words", GENERATE, ids=lambda value: " ".join(value)[:40])
def test_generate_refuses_bad_settings(finished_run, capsys, arguments, words):
    """Oracle: the words of the error, which is the only line."""
    line = complaint(generate.main, ["--model", finished_run, "--device", "cpu", *arguments],
                     capsys)
    assert words_in_order(line, words), line


def test_generate_goes_beyond_the_window_with_one_notice(finished_run, tmp_path, capsys):
    """Oracle: one line for 40 new tokens and the prompt, by hand; without these, none."""
    folder = shutil.copytree(finished_run, tmp_path / "short")
    values = json.loads((folder / "config.json").read_bytes()) | {"max_position_embeddings": 32}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    arguments = ["--model", str(folder), "--device", "cpu", "--prompt", "", "--stats",
                 "--max-new-tokens"]
    assert generate.main([*arguments, "31"]) == 0
    assert capsys.readouterr().err == ""
    assert generate.main([*arguments, "40"]) == 0
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("41 tokens are more than the 32 that this model was trained on")


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"w": 1}))


def other_vocabulary(folder):
    Tokenizer.train([], 262).save(folder)


def edit_tensors(change):
    """A function that damages the tensors of a folder."""
    def damage(folder):
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return damage


def without_a_shard(folder):
    hf.save(hf.load(folder), folder, max_shard_size=9_000)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def wrong_index(folder):
    hf.save(hf.load(folder), folder, max_shard_size=9_000)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model.norm.weight": "model-0',
                                               '"model.norm.weight": "../model-0'))


def without_scales(folder):
    hf.save(hf.load(folder), folder, fp8=True)
    edit_tensors(lambda t: t.pop("model.layers.0.mlp.up_proj.weight_scale_inv"))(folder)


# how a copy of a good folder is damaged, and the words of the error
BROKEN = [
    (edit_tensors(lambda t: t.pop("model.norm.weight")), ["lacks tensor model.norm.weight (32,)"]),
    (edit_tensors(lambda t: t.update({"model.extra": torch.ones(2)})), ["has tensor model.extra"]),
    (edit_tensors(lambda t: t.update({"model.norm.weight": torch.ones(7)})),
     ["model.norm.weight has shape (7,)", "(32,)"]),
    (edit_tensors(lambda t: t.pop("model.layers.2.enorm.weight")), ["lacks", "layers.2.enorm"]),
    (edit_tensors(lambda t: t["model.norm.weight"].fill_(float("nan"))), ["weights are damaged"]),
    (without_a_shard, ["model-00002-of-", "is missing"]),
    (wrong_index, ["index.json", "model.norm.weight", "'../model-0"]),
    (without_scales, ["up_proj.weight is F8_E4M3", "weight_scale_inv of shape (1, 1)"]),
    (lambda folder: shutil.rmtree(folder), ["no folder", "config.json and model.safetensors"]),
    (lambda folder: (folder / "config.json").write_text("{broken"), ["config.json", "not JSON"]),
    (lambda folder: (folder / "config.json").write_bytes(b"\xff\0"), ["config.json", "not JSON"]),
    (lambda folder: (folder / "config.json").write_text("[1]"), ["config.json holds a list"]),
    (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'),
     ["model_type='llama'", "another architecture", "deepseek_v3"]),
    (lambda folder: (folder / "model.safetensors").unlink(), ["model.safetensors is missing"]),
    (pickled, ["pytorch_model.bin is pickled", "convert"]),
    (lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-100]), ["cannot be read", "copy it again"]),
    (lambda folder: (folder / "model.safetensors").write_bytes(b""), ["cannot be read", "copy"]),
    (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json is missing"]),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"),
     ["tokenizer.json cannot be used", "byte-level BPE"]),
    (other_vocabulary, ["tokenizer.json has 262", "vocab_size=300", "different models"]),
]


@pytest.mark.parametrize("damage, words", BROKEN)
def test_generate_refuses_a_broken_model(finished_run, tmp_path, capsys, damage, words):
    """Oracle: the words of the error; the damaged folder is unchanged."""
    folder = tmp_path / "model"
    shutil.copytree(finished_run, folder)
    damage(folder)
    before = listing(tmp_path)
    line = complaint(generate.main, ["--model", folder, "--prompt", "def "], capsys)
    assert words_in_order(line, words), line
    assert listing(tmp_path) == before


def test_generate_says_how_to_make_the_first_model(tmp_path, monkeypatch, capsys):
    """Oracle: the command in the error, when there is neither a run nor the shipped checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "HERE", tmp_path)
    line = complaint(generate.main, ["--prompt", "def "], capsys)
    words = shlex.split(line.partition("make one with: ")[2])
    assert words == ["python", str(ROOT / "train_tiny.py")] and Path(words[1]).is_file()


def test_generate_finds_the_run_then_the_box(tmp_path, monkeypatch):
    """runs/tiny comes before the shipped checkpoint. Oracle: the two folders, made in turn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "HERE", tmp_path)
    for folder in (tmp_path / "checkpoints/tiny", tmp_path / "runs/tiny"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text("")
        assert hf.find().resolve() == folder.resolve()
    with pytest.raises(FileNotFoundError, match="no folder ''; name one"):     # not another model
        hf.find("")


@pytest.mark.parametrize("command, options", [
    (train_tiny, ["--preset", "--data", "--from", "--steps", "--seed", "--out", "--device",
                  "--precision",
                  "--optimizer", "--save-every", "--compile", "--resume", "--overwrite", "--set"]),
    (generate, ["--model", "--prompt", "--max-new-tokens", "--temperature", "--top-k", "--top-p",
                "--min-p", "--stop", "--seed", "--device", "--speculative", "--show-drafts",
                "--fim-prefix", "--fim-suffix", "--stats"])])
def test_help_names_every_option(command, options, capsys):
    """Oracle: the list of options."""
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in options)


@pytest.mark.parametrize("prompt", ["", "def ", "def f1(x):\n    ", "é€", "    ", "x = 12"])
def test_generate_prints_the_prompt_and_its_continuation(finished_run, capsys, prompt):
    """Oracle: the model called directly with the same seed; --stats has all its keys."""
    arguments = ["--model", str(finished_run), "--device", "cpu", "--seed", "3", "--prompt", prompt,
                 "--max-new-tokens", "25", "--stats"]
    assert generate.main(arguments) == 0
    text, _, last = capsys.readouterr().out.rstrip("\n").rpartition("\n")
    model, tokenizer = hf.load(finished_run), Tokenizer.load(finished_run)
    pieces = list(complete(model, tokenizer, prompt, 25, temperature=0.7, top_p=0.95, seed=3))
    assert text == prompt + "".join(piece.text for piece in pieces)
    stats = json.loads(last)
    assert stats.keys() == STATS and stats["acceptance"] == []
    assert stats["passes"] == len(pieces) - 1 <= 25 and stats["cache_bytes"] > 0
    assert 0 < stats["prefill_s"] <= stats["seconds"]


def test_generate_stops_at_eos(finished_run, monkeypatch, capsys):
    """Oracle: a model that must give EOS in its fourth pass; later passes read one token each."""
    real, passes = DeepSeekV3.hidden_states, []

    def hidden_states(self, tokens, cache=None, counts=None):
        passes.append(tokens.size(1))
        return real(self, tokens, cache, counts)

    def restrict(self, row):
        eos = torch.arange(len(row)) == 1
        return row.masked_fill(~eos if len(passes) == 4 else eos, float("-inf"))

    monkeypatch.setattr(DeepSeekV3, "hidden_states", hidden_states)
    monkeypatch.setattr(HealedSequence, "restrict", restrict)
    arguments = ["--model", str(finished_run), "--device", "cpu", "--prompt", "word", "--stats"]
    assert generate.main(arguments) == 0
    stats = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert stats["new_tokens"] == 3 and stats["passes"] == len(passes) == 4
    assert passes[1:] == [1, 1, 1]                         # the cache holds the rest


def test_generate_fills_a_gap(finished_run, capsys):
    """Oracle: the model called directly; its text is printed between prefix and suffix."""
    assert generate.main(["--model", str(finished_run), "--device", "cpu", "--fim-prefix", "def f(",
                          "--fim-suffix", "):\n", "--max-new-tokens", "9"]) == 0
    model, tokenizer = hf.load(finished_run), Tokenizer.load(finished_run)
    pieces = complete(model, tokenizer, "def f(", 9, temperature=0.7, top_p=0.95, suffix="):\n")
    middle = "".join(piece.text for piece in pieces)
    assert capsys.readouterr().out == f"def f({middle}):\n\n"
    assert pieces.sequence.tokens[0] == tokenizer.fim_begin_id


class Typed(io.StringIO):
    """Stands for stdin: what a user types at a terminal."""

    def isatty(self):
        return True


def test_generate_asks_at_a_terminal(finished_run, monkeypatch, capsys):
    """Oracle: each typed line given as --prompt; an empty line ends the program."""
    arguments = ["--model", str(finished_run), "--device", "cpu", "--max-new-tokens", "5"]
    expected = ""
    for prompt in ("def f", "x ="):
        assert generate.main([*arguments, "--prompt", prompt]) == 0
        expected += capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", Typed("def f\nx =\n\nnever read\n"))
    assert generate.main(arguments) == 0
    assert capsys.readouterr().out.partition("\n")[2] == expected


def test_generate_reads_what_is_piped_in(finished_run, monkeypatch, capsys):
    """Oracle: the same text as --prompt; bytes that are not valid UTF-8 are replaced."""
    arguments = ["--model", str(finished_run), "--device", "cpu", "--max-new-tokens", "5"]
    assert generate.main([*arguments, "--prompt", "é = 1\n\ufffd"]) == 0
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xc3\xa9 = 1\n\xff")))
    assert generate.main(arguments) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("closed", [None, io.TextIOWrapper(io.BytesIO())])
def test_generate_without_any_stdin_begins_a_document(finished_run, monkeypatch, capsys, closed):
    """There is no stdin, or it is closed. Oracle: an empty --prompt."""
    arguments = ["--model", str(finished_run), "--device", "cpu", "--max-new-tokens", "5"]
    assert generate.main([*arguments, "--prompt", ""]) == 0
    expected = capsys.readouterr().out
    if closed is not None:
        closed.buffer.close()
    monkeypatch.setattr(sys, "stdin", closed)
    assert generate.main(arguments) == 0
    assert capsys.readouterr().out == expected


@pytest.fixture(scope="module")
def shipped():
    """The shipped model and its tokenizer."""
    return hf.load(SHIPPED), Tokenizer.load(SHIPPED)


def test_generate_shows_accepted_drafts_in_green(shipped, capsys):
    """Oracle: the drafted pieces of the same completion; without colours the text is equal."""
    arguments = ["--model", str(SHIPPED), "--device", "cpu", "--prompt", "def f",
                 "--max-new-tokens", "20", "--temperature", "0"]
    assert generate.main(arguments) == 0
    plain = capsys.readouterr().out
    assert generate.main([*arguments, "--speculative", "2", "--show-drafts"]) == 0
    shown = capsys.readouterr().out
    assert shown.replace(generate.GREEN, "").replace(generate.PLAIN, "") == plain
    model, tokenizer = shipped
    drafted = [piece for piece in complete(model, tokenizer, "def f", 20, speculative=2)
               if piece.drafted]
    assert shown.count(generate.GREEN) == len(drafted) > 0


def test_generate_shows_a_draft_that_ends_the_text(shipped, monkeypatch, capsys):
    """Oracle: the number of accepted drafts, for every length at which the text may end."""
    arguments = ["--model", str(SHIPPED), "--device", "cpu", "--prompt", "def f",
                 "--temperature", "0", "--speculative", "3", "--show-drafts", "--max-new-tokens"]
    model, tokenizer = shipped
    monkeypatch.setattr(hf, "load", lambda *_, **__: model)      # which takes most of the time
    for length in range(2, 9):
        assert generate.main([*arguments, str(length)]) == 0
        pieces = complete(model, tokenizer, "def f", length, speculative=3)
        list(pieces)
        assert capsys.readouterr().out.count(generate.GREEN) == sum(pieces.decoder.accepted)


def test_generate_ends_quietly_when_nobody_reads_on(finished_run):
    """The reader closes the pipe at once. Oracle: exit code 141, as in a shell, and no message."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "generate.py"), "--model", str(finished_run), "--prompt", "def",
         "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(timeout=100) == 141
    assert process.stderr.read() == b""


@pytest.mark.parametrize("arguments, words", [
    (["--fim-prefix", "a"], "--fim-prefix and --fim-suffix belong together"),
    (["--fim-suffix", "a", "--fim-prefix", "b", "--prompt", "c"], "belong together"),
    (["--prompt", "a", "--show-drafts"], "add --speculative 2"),
    (["--prompt", "a", "--speculative", "-1"], "speculative=-1"),
    (["--prompt", "a", "--min-p", "2"], "min_p=2.0")])
def test_generate_refuses_odd_wishes(finished_run, capsys, arguments, words):
    """Oracle: the words of the error, exit code 2."""
    arguments = ["--model", str(finished_run), "--device", "cpu", *arguments]
    assert words in complaint(generate.main, arguments, capsys)


@pytest.mark.skipif(sys.platform == "win32", reason="quotes as POSIX shells read them")
def test_the_commands_that_a_run_prints_work_as_they_stand(
        miniature, tmp_path, monkeypatch, capsys):
    """Oracle: the commands themselves, split as a shell does. Blank and quote are in the name."""
    monkeypatch.chdir(tmp_path)
    real = Trainer.train_step

    def stop(self):
        self.interrupted = True
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop)
        assert train_tiny.main([*miniature, "--steps", "2", "--out", "it's my/run"]) == 130
    said = capsys.readouterr().out.partition("go on with: ")[2].splitlines()[0]
    program, script, *words = shlex.split(said)
    assert program == "python" and Path(script).samefile(train_tiny.__file__)
    assert train_tiny.main([*words, "--device", "cpu"]) == 0
    said = capsys.readouterr().out.rpartition("next: ")[2]
    program, script, *words = shlex.split(said)
    assert program == "python" and Path(script).samefile(generate.__file__)
    assert generate.main([*words, "--max-new-tokens", "2", "--device", "cpu"]) == 0


@pytest.mark.parametrize("options", [
    ["--prompt", "def \udce9("], ["--prompt", "x = \udc80"], ["--prompt", "a\ud800"],
    ["--fim-prefix", "\udcff", "--fim-suffix", "b\udcff\n"], ["--prompt", "a", "--stop", "\udce9"]])
def test_generate_takes_bytes_that_are_no_utf_8(finished_run, capsys, options):
    """What a shell gives for them. Oracle: the same command with U+FFFD in their places."""
    arguments = ["--model", str(finished_run), "--device", "cpu", "--max-new-tokens", "5"]
    texts = []
    for each in (options, [re.sub("[\ud800-\udfff]", "\ufffd", word) for word in options]):
        assert generate.main([*arguments, *each]) == 0
        texts.append(capsys.readouterr().out.replace("?", "\ufffd"))   # how a console shows it
    assert texts[0] == texts[1]


def test_generate_drops_a_byte_order_mark(finished_run, monkeypatch, capsys):
    """Some shells put one before what they pipe. Oracle: the same text as --prompt."""
    arguments = ["--model", str(finished_run), "--device", "cpu", "--max-new-tokens", "5"]
    assert generate.main([*arguments, "--prompt", "x = \ufeff1"]) == 0
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffx = \ufeff1".encode())))
    assert generate.main(arguments) == 0
    assert capsys.readouterr().out == expected
