"""The training loop: repeatable, resumable bit for bit, and safe however it is stopped."""

import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

import train_tiny
from minidsv3 import DeepSeekV3, hf
from minidsv3.data import corpus
from minidsv3.data.tokenizer import Tokenizer
from minidsv3.infer.text import complete
from minidsv3.measure.evaluate import bits_per_byte
from minidsv3.train import report
from minidsv3.train.checkpoint import EXPORTS, RunFolder
from minidsv3.train.recipe import learning_rate_factor
from minidsv3.train.step import Diverged
from minidsv3.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("short_end")
ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("step", "tokens", "loss", "mtp_loss", "balance_loss", "bits_per_byte", "lr", "max_vio")


def metrics(folder):
    """metrics.jsonl as dicts, without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_s"} for line in lines]


def make(arguments, folder):
    """A Trainer as train_tiny.py makes it."""
    parsed = train_tiny.parse_arguments([*arguments, "--out", str(folder)])
    return train_tiny.make_trainer(*train_tiny.configure(parsed), RunFolder(folder),
                                   torch.device("cpu"))


@contextmanager
def ctrl_c_in_the_third_step(monkeypatch):
    """Within this context, Ctrl-C interrupts every run in its third step."""
    real = Trainer.train_step

    def train_step(self):
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        yield


def test_two_runs_of_one_seed_are_one(finished_run, miniature, tmp_path):
    """Oracle: the finished run, bit for bit; another seed differs. Ctrl-C works as before."""
    handler = signal.getsignal(signal.SIGINT)
    assert train_tiny.main([*miniature, "--out", str(tmp_path / "same")]) == 0
    assert metrics(tmp_path / "same") == metrics(finished_run)
    assert train_tiny.main([*miniature, "--out", str(tmp_path / "other"), "--seed", "1"]) == 0
    assert metrics(tmp_path / "other") != metrics(finished_run)
    assert signal.getsignal(signal.SIGINT) is handler


def test_loss_falls(finished_run):
    """Oracle: the first loss is ln 300 nats, that of a uniform guess; the last one is lower."""
    losses = [line["loss"] for line in metrics(finished_run)]
    assert losses[0] == pytest.approx(math.log(300), abs=0.1) and losses[-1] < losses[0] - 0.2


def test_resume_after_a_kill_repeats_the_run(finished_run, miniature, tmp_path):
    """Oracle: the uninterrupted run: same losses, same weights, bit for bit."""
    folder = tmp_path / "killed"
    lines_before_kill = random.Random(3).randint(2, 5)
    command = [sys.executable, str(ROOT / "train_tiny.py"), *miniature, "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = folder / "metrics.jsonl"
    try:
        while process.poll() is None:
            if log.exists() and log.read_bytes().count(b"\n") >= lines_before_kill:
                break
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert (folder / "state.pt").is_file() and not (folder / "summary.json").exists()
    assert train_tiny.main(["--out", str(folder), "--resume", "--device", "cpu"]) == 0
    assert metrics(folder) == metrics(finished_run)
    for name in ("model.safetensors", "ema.safetensors"):
        assert (folder / name).read_bytes() == (finished_run / name).read_bytes()


def test_resume_at_every_step_is_bit_identical(finished_run, miniature, tmp_path, monkeypatch):
    """Oracle: the uninterrupted run. Here Ctrl-C stops the run in every step and it resumes."""
    folder, runs = tmp_path / "stopped", 0
    real = Trainer.train_step

    def step_then_interrupt(self):
        signal.raise_signal(signal.SIGINT)
        return real(self)

    monkeypatch.setattr(Trainer, "train_step", step_then_interrupt)
    arguments, code = [*miniature, "--out", str(folder)], 130
    while code == 130:
        code = train_tiny.main(arguments)
        arguments, runs = ["--out", str(folder), "--resume", "--device", "cpu"], runs + 1
    assert code == 0 and runs == 7                         # one for each step, one to finish
    assert metrics(folder) == metrics(finished_run)
    for name in ("model.safetensors", "ema.safetensors"):
        assert (folder / name).read_bytes() == (finished_run / name).read_bytes()


@pytest.mark.slow
def test_a_run_in_eight_bits_resumes_bit_for_bit(miniature, tmp_path, monkeypatch, capsys):
    """Oracle: the same run without a break. The saved state keeps the moments in bfloat16.

    The last lines print the memory that is saved: half of the moments, since all are AdamW's.
    """
    arguments = [*miniature, "--precision", "fp8", "--optimizer", "adamw"]
    assert train_tiny.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    with ctrl_c_in_the_third_step(monkeypatch):
        assert train_tiny.main([*arguments, "--out", str(tmp_path / "broken")]) == 130
    assert train_tiny.main(["--out", str(tmp_path / "broken"), "--resume", "--device", "cpu"]) == 0
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]
    summary = json.loads((tmp_path / "whole" / "summary.json").read_bytes())
    assert summary["dtype"] == "fp8"
    memory = summary["memory"]
    assert 2 * memory["moments"] == memory["moments_in_fp32"]
    assert f"keeps {memory['kept']:,} bytes (bfloat16: {memory['kept_in_bf16']:,})" in (
        capsys.readouterr().out)


def test_a_layer_with_no_finite_input_ends_a_run_in_eight_bits(miniature, tmp_path, monkeypatch,
                                                               capsys):
    """Oracle: exit code 1 and one line, which names the layer that gets the bad input."""
    real = Trainer.train_step

    def broken(self):
        self.model.layers[0].self_attn.q_a_layernorm.weight.data[0] = math.inf
        return real(self)

    monkeypatch.setattr(Trainer, "train_step", broken)
    arguments = [*miniature, "--precision", "fp8", "--out", str(tmp_path / "run")]
    assert train_tiny.main(arguments) == 1
    assert "error: the input of layers.0.self_attn.q_b_proj holds" in capsys.readouterr().err


def test_ctrl_c_saves_and_says_how_to_go_on(miniature, tmp_path, monkeypatch, capsys):
    """Oracle: exit code 130, the command to resume, the state after this step, the old handler."""
    handler = signal.getsignal(signal.SIGINT)
    with ctrl_c_in_the_third_step(monkeypatch):
        assert train_tiny.main([*miniature, "--out", str(tmp_path / "run")]) == 130
    assert f"python train_tiny.py --out {tmp_path / 'run'} --resume" in capsys.readouterr().out
    state = RunFolder(tmp_path / "run", resume=True).load_state()
    assert state["step"] == 3 == len(metrics(tmp_path / "run"))
    assert signal.getsignal(signal.SIGINT) is handler
    assert hf.load(tmp_path / "run").config.hidden_size == 32


def test_a_second_ctrl_c_ends_at_once(miniature, tmp_path, monkeypatch, capsys):
    """Oracle: exit code 130, no traceback, and the checkpoint from before this step."""
    def twice(self):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", twice)
    assert train_tiny.main([*miniature, "--out", str(tmp_path / "run")]) == 130
    assert "--resume" in capsys.readouterr().out
    assert RunFolder(tmp_path / "run", resume=True).load_state()["step"] == 0


def test_micro_batches_add_up_to_the_batch(miniature, tmp_path):
    """Oracle: one backward pass of the whole batch; only the order of float32 sums differs."""
    whole = make(miniature, tmp_path / "a")
    parts = make([*miniature, "--set", "micro_batch=2"], tmp_path / "b")
    uneven = make([*miniature, "--set", "micro_batch=4"], tmp_path / "c")
    tokens = whole.data.batches.take(0, 6)                 # (6, T+1)
    terms = [each.update.gradients(tokens, 0.3).tolist() for each in (whole, parts, uneven)]
    for other, means in zip((parts, uneven), terms[1:]):
        assert means == pytest.approx(terms[0], rel=1e-5)
        for a, b in zip(whole.model.parameters(), other.model.parameters()):
            assert (a.grad - b.grad).abs().max() <= 1e-5 * a.grad.abs().max() + 1e-9
        loads = [each.model.update_router_bias(0.0) for each in (whole, other)]
        if other is parts:
            assert torch.equal(*loads)
            assert loads[0][0].sum() == 6 * 32 * 2                       # main block: B * T * K
            assert loads[0][1].sum() == 6 * 31 * 2                       # MTP block: T - 1 of them
            assert whole.model.update_router_bias(0.0).sum() == 0            # new count


def test_a_step_uses_all_its_schedules(miniature, tmp_path):
    """Oracle: the values of the schedules, computed here from the sizes of the steps."""
    run = make(miniature, tmp_path / "run")
    assert run.sizes == [4, 6, 6, 6, 6, 6]                 # the ramp is shorter than a step
    line, loads = run.train_step()
    assert line["tokens"] == 4 * 32 and line["step"] == run.step == 1
    assert line["lr"] == pytest.approx(run.optimizers[0].param_groups[0]["peak"]
                                       * learning_rate_factor(run.config, 4 / 34))
    routers = run.model.routers()
    for router, load in zip(routers, loads):
        expected = run.config.gamma * (load.double().mean() - load).sign()
        torch.testing.assert_close(router.e_score_correction_bias, expected.float())
    # Averaged weights: in step 0 the old weights have a share of 1 / 10.
    fresh = make(miniature, tmp_path / "fresh")
    for average, old, new in zip(run.average, fresh.model.parameters(), run.model.parameters()):
        torch.testing.assert_close(average, 0.1 * old.detach() + 0.9 * new.detach())


def test_mtp_rests_in_every_second_step(miniature, tmp_path):
    """Oracle: the log; a rest leaves MTP's weights as they are, decay included."""
    run = make([*miniature, "--set", "mtp_every=2"], tmp_path / "run")
    for step in range(4):
        before = [parameter.detach().clone() for parameter in run.model.mtp.parameters()]
        line, loads = run.train_step()
        same = all(map(torch.equal, before, run.model.mtp.parameters()))
        rests = step % 2 == 0
        assert same == rests and (line["mtp_loss"] == 0) == rests
        assert loads[-1].any() != rests and line["max_vio"] >= 0


def test_experts_move_in_every_second_step(miniature, tmp_path):
    """Oracle: which weights change; in their step experts have sqrt(2) times the usual rate."""
    options = ["--set", "optimizer=muon", "--set", "expert_every=2"]
    run = make([*miniature, *options], tmp_path / "run")
    experts = dict(run.model.layers[-1].mlp.experts.named_parameters())
    others = dict(run.model.layers[-1].self_attn.named_parameters())
    for step in range(4):
        before = {name: p.detach().clone() for name, p in (experts | others).items()}
        run.train_step()
        assert all(torch.equal(before[name], p) == (step % 2 == 0) for name, p in experts.items())
        assert not any(torch.equal(before[name], p) for name, p in others.items())
    matrices, stacks = run.optimizers[0].param_groups[:2]
    assert stacks["lr"] == pytest.approx(2**0.5 * matrices["lr"])


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_the_run(miniature, tmp_path, monkeypatch, capsys, broken):
    """One line names step and remedy; the state of the step before is kept, with finite weights."""
    real = DeepSeekV3.loss
    calls = []

    def loss(self, *arguments):
        calls.append(1)
        terms = real(self, *arguments)
        if len(calls) == 4:
            bad = float("nan") if broken == "loss" else (terms.total * 0).sqrt()  # gradient 1/0
            return terms._replace(total=terms.total + bad)
        return terms

    monkeypatch.setattr(DeepSeekV3, "loss", loss)
    assert train_tiny.main([*miniature, "--out", str(tmp_path / "run"), "--save-every", "1"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and "step 4" in line and "learning_rate" in line
    assert "last checkpoint is kept" in line
    state = RunFolder(tmp_path / "run", resume=True).load_state()
    assert state["step"] == 3 and len(metrics(tmp_path / "run")) == 3
    assert all(value.isfinite().all() for value in state["model"].values())


def test_weights_that_are_not_finite_at_the_end_are_not_saved(miniature, tmp_path, capsys):
    """Oracle: the state of before the run, exit code 1 and one line, though the loss was finite."""
    arguments = [*miniature, "--steps", "1", "--set", "weight_decay=1e300"]
    assert train_tiny.main([*arguments, "--out", str(tmp_path / "run")]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: a weight is not finite, after step 1 of seed 0")
    assert "try a lower learning_rate" in line
    state = RunFolder(tmp_path / "run", resume=True).load_state()
    assert state["step"] == 0
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize("window", [32, 64])
def test_the_sample_stays_within_the_window_that_is_written(
        miniature, tmp_path, monkeypatch, capsys, window):
    """Oracle: no notice, though a sample usually has 200 tokens; config.json says the window."""
    monkeypatch.setattr(report, "complete", complete)            # the sample in full
    folder = tmp_path / "run"
    wish = miniature.index("max_position_embeddings=256")
    arguments = [*miniature[:wish - 1], *miniature[wish + 1:], "--steps", "1",
                 "--set", f"window={window}", "--out", str(folder)]
    assert train_tiny.main(arguments) == 0
    assert "trained on" not in capsys.readouterr().err
    assert hf.read_config(folder).max_position_embeddings == window
    sample = (folder / "sample.txt").read_text(encoding="utf-8")
    assert sample.startswith("def ") and (folder / "summary.json").exists()


def test_a_state_alone_is_enough_to_finish(finished_run, miniature, tmp_path, monkeypatch):
    """Oracle: the weights of the uninterrupted run; metrics hold the steps that are left."""
    folder = tmp_path / "run"
    with ctrl_c_in_the_third_step(monkeypatch):
        assert train_tiny.main([*miniature, "--out", str(folder)]) == 130
    for path in folder.iterdir():
        if path.name != "state.pt":
            path.unlink()
    assert train_tiny.main(["--out", str(folder), "--resume", "--device", "cpu"]) == 0
    assert metrics(folder) == metrics(finished_run)[3:]
    assert (folder / "model.safetensors").read_bytes() == (
        finished_run / "model.safetensors").read_bytes()


def test_a_full_disk_in_the_middle_keeps_the_last_state(miniature, tmp_path, monkeypatch, capsys):
    """Oracle: exit code 2, one line, the state saved before; the run can still be finished."""
    real = torch.save

    def full_at_four(state, file):
        if state["step"] == 4:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        return real(state, file)

    monkeypatch.setattr(torch, "save", full_at_four)
    folder = tmp_path / "run"
    assert train_tiny.main([*miniature, "--out", str(folder)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: cannot write") and "No space left" in line
    assert RunFolder(folder, resume=True).load_state()["step"] == 2
    assert not list(folder.glob("*.tmp"))
    monkeypatch.undo()
    assert train_tiny.main(["--out", str(folder), "--resume", "--device", "cpu"]) == 0


def test_the_folder_is_complete(finished_run, small_text):
    """Oracle: the lists of files, metrics and figures that other programs read."""
    assert {path.name for path in finished_run.iterdir()} == {"state.pt", *EXPORTS}
    lines = metrics(finished_run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(set(FIGURES) <= set(line) for line in lines)
    assert [line["step"] for line in lines if "val_bits_per_byte" in line] == [3, 6]
    summary = json.loads((finished_run / "summary.json").read_text(encoding="utf-8"))
    assert set(summary) >= {
        "val_bits_per_byte", "val_bits_per_byte_ema", "seconds", "steps", "tokens", "tokens_per_s",
        "max_vio", "parameters", "parameters_active", "device", "dtype", "seed", "torch", "python",
        "corpus_sha256", "command"}
    assert summary["steps"] == 6 and summary["tokens"] == 34 * 32 == lines[-1]["tokens"]
    assert summary["corpus_sha256"] == corpus.load(str(small_text)).sha256
    assert summary["val_bits_per_byte"] == lines[-1]["val_bits_per_byte"]
    assert len(summary["max_vio"]) == 2 and summary["dtype"] == "float32"
    recipe = json.loads((finished_run / "train.json").read_text(encoding="utf-8"))
    assert recipe["steps"] == 6 and recipe["window"] == 32
    assert (finished_run / "sample.txt").read_text(encoding="utf-8").startswith("def ")
    for name in ("loss.png", "expert_load.png"):
        assert (finished_run / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("every, steps, looked", [(1, 3, [1, 2, 3]), (2, 5, [2, 4]), (4, 3, [3])])
def test_loads_are_written_where_mtp_works(miniature, tmp_path, every, steps, looked):
    """Oracle: the steps by hand; a module that rests in the last step is not drawn with load 0."""
    folder = tmp_path / "run"
    assert train_tiny.main([*miniature, "--set", f"mtp_every={every}", "--steps", str(steps),
                            "--out", str(folder)]) == 0
    found = {line["step"]: line["expert_load"] for line in metrics(folder) if "expert_load" in line}
    assert [*found] == looked
    assert all(any(row) == (step % every == 0) for step, rows in found.items() for row in rows[-1:])


def test_a_line_of_metrics_by_hand(miniature, tmp_path):
    """Oracle: samples in order without a gap, the bytes of their targets, the averaged weights."""
    run = make([*miniature, "--set", "ema_decay=0.2"], tmp_path / "run")
    taken, take = [], run.data.batches.take

    def listen(*which):
        taken.append(which)
        return take(*which)

    run.data.batches.take = listen
    for step in range(3):
        before = [average.clone() for average in run.average]
        line, _ = run.train_step()
        targets = take(*taken[-1])[:, 1:].flatten().tolist()
        size = sum(len(run.data.tokenizer.token_bytes[token]) for token in targets)
        assert line["bits_per_byte"] == pytest.approx(
            line["loss"] / math.log(2) * len(targets) / size)
        decay = min(0.2, (1 + step) / (10 + step))
        for average, old, new in zip(run.average, before, run.model.parameters(), strict=True):
            torch.testing.assert_close(average, decay * old + (1 - decay) * new.detach())
    assert taken == [(0, 4), (4, 6), (10, 6)]


def test_the_score_of_the_averaged_weights_is_theirs(finished_run, miniature, tmp_path):
    """Oracle: a model with the weights of ema.safetensors, on the same validation text."""
    folder = shutil.copytree(finished_run, tmp_path / "averaged")
    (folder / "ema.safetensors").replace(folder / "model.safetensors")
    data = make(miniature, tmp_path / "new").data
    score = bits_per_byte(hf.load(folder), data.inputs, data.targets, data.validation_bytes)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["val_bits_per_byte_ema"] == pytest.approx(score, rel=1e-6)
    assert abs(summary["val_bits_per_byte"] - score) > 1e-4 * score


def test_a_quick_sample_is_spread_and_counts_bytes(miniature, tmp_path):
    """Oracle: its first and last window; a loop over its targets."""
    data = make(miniature, tmp_path / "run").data
    inputs, targets, size = data.quick_sample(5 * 32)
    assert len(inputs) == 5 < len(data.inputs)
    assert torch.equal(inputs[0], data.inputs[0]) and torch.equal(inputs[-1], data.inputs[-1])
    assert size == sum(len(data.tokenizer.token_bytes[token])
                       for token in targets.flatten().tolist() if token >= 0)


def test_averaged_weights_are_those_of_the_state(finished_run):
    """Oracle: the list in state.pt, in the order of the model's parameters."""
    state = torch.load(finished_run / "state.pt", weights_only=True)
    saved = safetensors.torch.load_file(finished_run / "ema.safetensors")
    raw = safetensors.torch.load_file(finished_run / "model.safetensors")
    model = hf.load(finished_run)
    names = [name for name, _ in model.named_parameters()]
    average = state["average"][names.index("layers.0.mlp.down_proj.weight")]
    assert torch.equal(saved["model.layers.0.mlp.down_proj.weight"], average)
    assert saved.keys() == raw.keys()
    assert not torch.equal(raw["model.layers.0.mlp.down_proj.weight"], average)


def test_after_a_run_the_trainer_holds_the_raw_weights(miniature, tmp_path):
    """Oracle: model.safetensors, which is written before the averaged weights are evaluated."""
    run = make([*miniature, "--steps", "2"], tmp_path / "run")
    run.run()
    saved = hf.load(tmp_path / "run").state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in run.model.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_the_run_folder(finished_run, miniature, tmp_path, tied):
    """Oracle: transformers: its tokenizer gives equal ids, its model equal logits within 1e-5."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    folder = finished_run
    if not tied:
        folder = tmp_path / "untied"
        assert train_tiny.main([*miniature, "--out", str(folder), "--steps", "2",
                                "--set", "tie_word_embeddings=false"]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours = hf.load(str(folder))
    text = "def f7(x):\n    return x + 7  # é€😀\n"
    ids = tokenizer(text)["input_ids"]
    assert ids == Tokenizer.load(folder).encode(text)
    tokens = torch.tensor([ids])
    with torch.no_grad():
        reference = theirs(tokens).logits
        gap = (ours(tokens) - reference).abs().max() / reference.abs().max()
    assert gap <= 1e-5
    assert tied == (theirs.lm_head.weight.data_ptr() == theirs.model.embed_tokens.weight.data_ptr())


def test_another_text_is_not_resumed(miniature, small_text, tmp_path, monkeypatch, capsys):
    """The error names the text that has changed; the saved state is unchanged."""
    text = tmp_path / "text.txt"
    text.write_bytes(small_text.read_bytes())
    arguments = [*miniature, "--data", str(text), "--out", str(tmp_path / "run")]
    monkeypatch.setattr(Trainer, "train_step", lambda self: (_ for _ in ()).throw(Diverged("x")))
    assert train_tiny.main(arguments) == 1
    before = (tmp_path / "run" / "state.pt").read_bytes()
    text.write_bytes(small_text.read_bytes() + b"more\n")
    capsys.readouterr()
    assert train_tiny.main(["--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "text.txt' has changed" in capsys.readouterr().err
    assert (tmp_path / "run" / "state.pt").read_bytes() == before


def test_a_compiler_that_fails_is_no_end(miniature, tmp_path, monkeypatch, capsys):
    """One line says so. The uncompiled loss stays, with no gradients or loads of the attempt."""
    def fail_late(function):
        def compiled(*arguments):
            function(*arguments).total.backward()
            raise RuntimeError("no compiler here")
        return compiled
    monkeypatch.setattr(torch, "compile", fail_late)
    run = make(miniature, tmp_path / "run")
    run.update.compile(run.data.batches.take(0, 6))
    assert "torch.compile failed (RuntimeError: no compiler here)" in capsys.readouterr().out
    assert_nothing_compiled(run)


def assert_nothing_compiled(run):
    """The loss is the uncompiled one, and the attempt has left no gradients and no loads."""
    assert run.update.loss == run.model.loss
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert all(router.load.sum() == 0 for router in run.model.routers())


@pytest.mark.parametrize("factor, said", [(1.0, None), (0.0, "100%"), (1.5, "50%"),
                                          (float("nan"), "nan%")])
def test_a_compiler_with_wrong_gradients_is_not_used(
        miniature, tmp_path, monkeypatch, capsys, factor, said):
    """Oracle: a loss of the right value, whose gradient is that of the model times a factor."""
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            return factor * dy

    def compiled(function):
        def loss(tokens):
            terms = function(tokens)
            return terms._replace(total=Scaled.apply(terms.total))
        return loss
    monkeypatch.setattr(torch, "compile", compiled)
    run = make(miniature, tmp_path / "run")
    run.update.compile(run.data.batches.take(0, 6))
    if said is None:
        assert run.update.loss != run.model.loss and not capsys.readouterr().out
    else:
        assert f"the gradient is off by {said}" in capsys.readouterr().out
        assert_nothing_compiled(run)


@pytest.mark.slow
def test_a_compiled_loss_trains_alike(miniature, tmp_path, monkeypatch, capsys):
    """Oracle: the same steps uncompiled; torch's tracing of the loss and of its gradient, without
    the machine code that torch would make of them.
    """
    whole, losses = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda loss: whole(loss, backend="aot_eager"))
    for compiled in (False, True):
        run = make(miniature, tmp_path / str(compiled))
        if compiled:
            run.update.compile(run.data.batches.take(0, 6))
            assert run.update.loss != run.model.loss, capsys.readouterr().out
        losses.append([run.train_step()[0]["loss"] for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_sample_goes_on_from_def(finished_run):
    """Oracle: sampling again with the same seed from the finished folder."""
    model, tokenizer = hf.load(finished_run), Tokenizer.load(finished_run)
    pieces = complete(model, tokenizer, "def ", 200, temperature=0.7, top_p=0.95, seed=0)
    expected = "def " + "".join(piece.text for piece in pieces)
    assert (finished_run / "sample.txt").read_bytes().decode() == expected
