"""The two phases. Oracles: the report's numbers, hand-made steps, uninterrupted runs."""

import hashlib
import json
import shutil

import pytest
import torch

from minidsv3 import hf
from minidsv3.config import RopeScaling
from minidsv3.context import extend
from minidsv3.data.dataset import Dataset
from minidsv3.data.foreign import read_tokenizer
from minidsv3.files import write_text
from minidsv3.model.transformer import DeepSeekV3
from minidsv3.train.recipe import TrainConfig
from minidsv3.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("short_end")
STEPS = ["--steps", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def extended(finished_run, short_end, tmp_path_factory):
    """The miniature run, extended from a window of 32 to 256 and 1,024."""
    out = tmp_path_factory.mktemp("runs") / "extended"
    assert extend.main([str(finished_run), "--out", str(out), *STEPS]) == 0
    return out


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_report_ratios_give_the_report_numbers():
    """Oracle: section 4.3. 4,096 with 15,360 sequences: 32K with 1,920, 128K with 480, s = 40."""
    recipe = TrainConfig(window=4096, batch_size=15360, micro_batch=1, batch_start=3072,
                         learning_rate=2.2e-4)
    for growth, batch in zip(extend.GROWTH, (1920, 480)):
        phase = extend.phase_recipe(recipe, growth * 4096, 1000)
        assert (phase.window, phase.batch_size, phase.batch_start) == (growth * 4096, batch, batch)
        assert phase.window * phase.batch_size == 62_914_560
        assert phase.learning_rate == pytest.approx(7.3e-6)
    assert extend.yarn(4096, 32 * 4096) == RopeScaling(40.0, 4096, mscale=1.0, mscale_all_dim=1.0)


def test_both_phases_write_their_window_and_one_yarn_setting(finished_run, extended):
    """Oracle: the definition, from the window of the run."""
    for folder, window in ((extended / "phase1", 256), (extended, 1024)):
        config, recipe = hf.read_config(folder), hf.read_json(folder / "train.json")
        assert config.rope_scaling == RopeScaling(40.0, 32, mscale=1.0, mscale_all_dim=1.0)
        assert config.max_position_embeddings == recipe["window"] == window
        before = config.replace(rope_scaling=None, max_position_embeddings=256)
        assert before == hf.read_config(finished_run)     # as the miniature run is told to write
        assert (folder / "summary.json").is_file()
    lineage = hf.read_json(extended / "lineage.json")
    weights = (finished_run / "model.safetensors").read_bytes()
    assert lineage["from"] == str(finished_run) and lineage["windows"] == [256, 1024]
    assert lineage["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert hf.read_json(extended / "train.json")["start"] == str(extended / "phase1")


def test_the_learning_rate_is_the_last_one_and_biases_stay(finished_run, extended):
    """Oracle: the run's recipe; the biases of the run itself."""
    recipe = hf.read_json(finished_run / "train.json")
    for folder in (extended / "phase1", extended):
        rates = {line["lr"] for line in lines(folder)}
        assert rates == {recipe["muon_learning_rate"] * recipe["last_rate"]}
    before, after = hf.load(finished_run).state_dict(), hf.load(extended).state_dict()
    biases = [name for name in before if name.endswith("e_score_correction_bias")]
    assert biases and all(torch.equal(before[name], after[name]) for name in biases)
    assert not torch.equal(before["norm.weight"], after["norm.weight"])


def test_each_phase_begins_with_the_weights_of_the_one_before(finished_run, extended):
    """Oracle: the loss of the first batch, computed from the checkpoint without a Trainer."""
    for source, folder in ((finished_run, extended / "phase1"), (extended / "phase1", extended)):
        config, recipe = hf.read_config(folder), TrainConfig(**hf.read_json(folder / "train.json"))
        model = DeepSeekV3(config)
        model.load_state_dict(hf.load(source).state_dict())
        data = Dataset(recipe.data, config.vocab_size, recipe.window, recipe.fim_rate, recipe.seed,
                       read_tokenizer(source, config))
        loss = model.loss(data.batches.take(0, recipe.batch_size)).next_token.item()
        assert lines(folder)[0]["loss"] == pytest.approx(loss, abs=1e-5)


def test_transformers_reads_the_extended_run_and_gives_equal_logits(extended):
    """Oracle: transformers' DeepseekV3, at 32 times the window before extension."""
    from transformers import AutoModelForCausalLM
    theirs = AutoModelForCausalLM.from_pretrained(extended, dtype=torch.float32,
                                                  attn_implementation="sdpa")
    torch.manual_seed(0)
    tokens = torch.randint(5, 300, (1, 1024))
    with torch.inference_mode():
        expected, got = theirs(tokens).logits, hf.load(extended)(tokens)
    assert (got - expected).abs().max() / expected.abs().max() <= 1e-5
    assert theirs.config.max_position_embeddings == 1024


@pytest.mark.slow
@pytest.mark.parametrize("phase, step", [(1, 2), (2, 1)])
def test_an_interrupted_extension_resumes_bit_for_bit(
        phase, step, finished_run, extended, tmp_path, monkeypatch, capsys):
    """Oracle: the uninterrupted extension, its weights byte for byte."""
    out, window, train_step = tmp_path / "out", 256 if phase == 1 else 1024, Trainer.train_step

    def interrupting(trainer):
        line = train_step(trainer)
        trainer.interrupted = trainer.config.window == window and trainer.step == step
        return line

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupting)
        assert extend.main([str(finished_run), "--out", str(out), *STEPS]) == 130
    assert f"--out {out} --resume" in capsys.readouterr().out
    assert not (out / "summary.json").exists()
    assert extend.main([str(finished_run), "--out", str(out), "--resume", "--device", "cpu"]) == 0
    for name in ("model.safetensors", "phase1/model.safetensors", "config.json"):
        assert (out / name).read_bytes() == (extended / name).read_bytes(), name


@pytest.mark.slow
def test_minutes_plan_the_steps_of_both_phases(finished_run, tmp_path, monkeypatch):
    """Oracle: the shares of the minutes that the planner is asked for."""
    asked = []
    monkeypatch.setattr(extend, "plan_steps",
                        lambda trainer, minutes, begin: asked.append(minutes) or 2)
    assert extend.main([str(finished_run), "--out", str(tmp_path / "out"), "--minutes", "5",
                        "--device", "cpu"]) == 0
    assert asked == [2.0, 3.0] and len(lines(tmp_path / "out")) == 2


@pytest.mark.slow
def test_overwrite_replaces_an_older_extension(finished_run, extended, tmp_path, capsys):
    """Oracle: the same extension made in an empty folder."""
    out = tmp_path / "out"
    shutil.copytree(extended, out)
    assert extend.main([str(finished_run), "--out", str(out), *STEPS]) == 2
    assert "finished run" in capsys.readouterr().err
    assert extend.main([str(finished_run), "--out", str(out), "--windows", "64", "96", *STEPS,
                        "--overwrite"]) == 0
    assert hf.read_config(out).max_position_embeddings == 96


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(finished_run, tmp_path / "run")


def unfinished(run):
    (run / "summary.json").unlink()


def of_another_model(run):
    """A tokenizer of another size than the model's vocabulary."""
    config = json.loads((run / "tokenizer.json").read_text(encoding="utf-8"))
    config["model"]["vocab"]["zzz"] = 300
    write_text(run / "tokenizer.json", json.dumps(config))


def already_extended(run):
    config = json.loads((run / "config.json").read_text())
    config["rope_scaling"] = {"type": "yarn", "factor": 8,
                              "original_max_position_embeddings": 32}
    write_text(run / "config.json", json.dumps(config))


@pytest.mark.parametrize("damage, options, words", [
    (unfinished, [], "is an unfinished run; give"),
    (shutil.rmtree, [], "is no run; give"),
    (already_extended, [], "already extended to 256 tokens"),
    (of_another_model, [], "tokenizer.json"),
    (None, ["--windows", "16", "64"], "--windows 16 64 must rise from the run's window of 32"),
    (None, ["--windows", "64", "64"], "report's ratios are 256 1024"),
    (None, ["--windows", "64", "90000"], "fewer than one window of 90,000; give more text"),
    (None, ["--windows", "90000", "180000"], "fewer than one window of 90000"),
    (None, ["--steps", "0"], "--steps 0 must be at least 1"),
    (None, ["--minutes", "0"], "--minutes 0 must be above 0"),
    (None, ["--minutes", "0.001"], "--minutes 0.001 leave no time to train: phase 1 has 40% of"),
    (None, ["--data", "nowhere"], "'nowhere' does not exist"),
    (None, ["--resume"], "nothing to resume"),
    (None, ["--out", "{run}"], "would replace the run itself")])
def test_bad_input_ends_in_one_line_and_makes_nothing(
        damage, options, words, run, tmp_path, capsys):
    if damage:
        damage(run)
    out = tmp_path / "out"
    options = [option.format(run=run) for option in options]
    arguments = [str(run), "--out", str(out), "--steps", "2", "--device", "cpu", *options]
    if "--minutes" in options:
        arguments = [each for each in arguments if each not in ("--steps", "2")]
    assert extend.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert words in error.splitlines()[-1] and "Traceback" not in error
    assert not out.exists()
