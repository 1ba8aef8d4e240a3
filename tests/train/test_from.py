"""--from: a run that begins with another checkpoint's weights, router biases and tokenizer."""

import json
import re
import shutil

import huggingface_hub
import pytest
import torch

import train_tiny
from minidsv3 import DeepSeekV3, ModelConfig, hf
from minidsv3.data.foreign import ForeignTokenizer, read_tokenizer
from minidsv3.train.checkpoint import RunFolder
from tests.data.test_foreign import byte_level

pytestmark = pytest.mark.usefixtures("short_end")


@pytest.fixture
def from_run(finished_run, small_text):
    """Arguments that start from the weights of the finished miniature run."""
    settings = ("window=32", "batch_size=6", "batch_start=6", "micro_batch=6", "eval_every=3")
    return ["--from", str(finished_run), "--data", str(small_text), "--device", "cpu",
            "--precision", "fp32", "--steps", "4", "--save-every", "2",
            *(word for setting in settings for word in ("--set", setting))]


def make(arguments, folder):
    parsed = train_tiny.parse_arguments([*arguments, "--out", str(folder)])
    return train_tiny.make_trainer(*train_tiny.configure(parsed), RunFolder(folder),
                                   torch.device("cpu"))


def test_weights_biases_and_tokenizer_are_those_of_the_checkpoint(finished_run, from_run, tmp_path):
    """Oracle: the checkpoint loaded directly. Its config needs no option for the model."""
    trainer, source = make(from_run, tmp_path / "new"), hf.load(finished_run)
    assert trainer.model.config == source.config
    for name, tensor in source.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], tensor), name
    expected = read_tokenizer(finished_run, source.config)
    assert trainer.data.tokenizer.token_bytes == expected.token_bytes
    assert trainer.config.optimizer == "muon" and trainer.step == 0


def test_a_run_from_a_run_learns_on_and_resumes(finished_run, from_run, tmp_path):
    """Its first loss is below that of the source. Oracle of resuming: the uninterrupted run."""
    assert train_tiny.main([*from_run, "--out", str(tmp_path / "whole")]) == 0
    first, last = ([json.loads(line)["loss"] for line in
                    (folder / "metrics.jsonl").read_text().splitlines()]
                   for folder in (finished_run, tmp_path / "whole"))
    assert last[0] < first[0] - 0.2
    trainer = make(from_run, tmp_path / "half")
    trainer.write_recipe()
    with trainer.folder.open_metrics(0) as log:
        for _ in range(2):
            log.write(json.dumps(trainer.train_step()[0]) + "\n")
    trainer.save()
    assert train_tiny.main(["--resume", "--device", "cpu", "--out", str(tmp_path / "half")]) == 0
    resumed = [json.loads(line)["loss"]
               for line in (tmp_path / "half/metrics.jsonl").read_text().splitlines()]
    assert resumed == last


def test_a_run_from_a_checkpoint_resumes_without_it(finished_run, from_run, tmp_path):
    """Oracle: the uninterrupted run; what it began with has gone."""
    source = tmp_path / "source"
    shutil.copytree(finished_run, source)
    arguments = ["--from", str(source), *from_run[2:]]
    assert train_tiny.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    trainer = make(arguments, tmp_path / "half")
    trainer.write_recipe()
    for _ in range(2):
        trainer.train_step()
    trainer.save()
    shutil.rmtree(source)
    assert train_tiny.main(["--resume", "--device", "cpu", "--out", str(tmp_path / "half")]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "half")]
    assert weights[0] == weights[1]


def test_a_foreign_checkpoint_is_trained_with_its_own_tokenizer(small_text, tmp_path, capsys):
    """The run folder holds the foreign tokenizer; a warning says that there is no MTP layer."""
    source = tmp_path / "foreign"
    config = ModelConfig.preset("tiny").replace(
        vocab_size=420, hidden_size=32, num_hidden_layers=2, intermediate_size=48,
        num_attention_heads=2, moe_intermediate_size=16, num_nextn_predict_layers=0)
    hf.save(DeepSeekV3(config), source)
    values = json.loads((source / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (source / "config.json").write_text(json.dumps(values))
    byte_level().save(str(source / "tokenizer.json"))
    out = tmp_path / "run"
    assert train_tiny.main(["--from", str(source), "--data", str(small_text), "--steps", "2",
                            "--device", "cpu", "--set", "window=32", "--out", str(out)]) == 0
    assert "no MTP layer" in capsys.readouterr().err
    model = hf.load(out)
    assert len(model.mtp) == 0
    assert isinstance(read_tokenizer(out, model.config), ForeignTokenizer)
    # Killed before its first save, a run goes on with its own copy, although it is at step 0.
    again = ["--from", str(source), "--data", str(small_text), "--steps", "2", "--set", "window=32"]
    make(again, tmp_path / "killed").write_recipe()
    shutil.rmtree(source)
    expected = (out / "tokenizer.json").read_bytes()
    assert (tmp_path / "killed/tokenizer.json").read_bytes() == expected
    assert train_tiny.main(["--resume", "--device", "cpu", "--out", str(tmp_path / "killed")]) == 0
    assert (tmp_path / "killed/tokenizer.json").read_bytes() == expected
    assert (tmp_path / "killed/model.safetensors").read_bytes() == (
        out / "model.safetensors").read_bytes()


def test_a_name_on_the_hub_is_downloaded(finished_run, from_run, tmp_path, monkeypatch):
    """Oracle: the run from the folder that the hub gives."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: finished_run)
    trainer = make(["--from", "owner/name", *from_run[2:]], tmp_path / "new")
    expected = make(from_run, tmp_path / "other")
    assert trainer.data.tokenizer.token_bytes == expected.data.tokenizer.token_bytes
    assert all(map(torch.equal, trainer.model.parameters(), expected.model.parameters()))


def test_a_head_of_its_own_is_not_tied(small_text, tmp_path, capsys):
    """The embedding of such a checkpoint would be lost without a word."""
    config = ModelConfig.preset("tiny").replace(vocab_size=420, hidden_size=32, num_hidden_layers=1,
                                                tie_word_embeddings=False)
    hf.save(DeepSeekV3(config), tmp_path / "untied")
    byte_level().save(str(tmp_path / "untied/tokenizer.json"))
    assert train_tiny.main(["--from", str(tmp_path / "untied"), "--data", str(small_text), "--set",
                            "tie_word_embeddings=true", "--out", str(tmp_path / "new")]) == 2
    assert ("do not fit a model with tie_word_embeddings=True, not False; leave"
            in capsys.readouterr().err)


def without_marks(folder):
    """Remove the fill-in-the-middle marks from the tokenizer of this folder."""
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace("fim▁hole", "no▁hole"), encoding="utf-8")


@pytest.mark.parametrize("options, words", [
    (["--from", "nowhere"], "no folder nowhere"),
    (["--from", "."], "config.json is missing"),
    (["--set", "hidden_size=64"], "--from .*finished: .* hidden_size=64, not 32; leave what"),
    (["--set", "num_hidden_layers=3"], "--from .*num_hidden_layers=3, not 2; leave"),
    (["--set", "num_nextn_predict_layers=0"], "num_nextn_predict_layers=0, not 1; leave"),
    (["--set", "window=300", "--set", "q_lora_rank=null", "--set", "n_group=1", "--set",
      "topk_group=1"], "model with q_lora_rank=None, not 16, n_group=1, not 2; leave")])
def test_what_cannot_begin_is_told_in_one_line(from_run, tmp_path, monkeypatch, capsys, options,
                                               words):
    """Oracle: the words of the error; no folder is left behind."""
    monkeypatch.chdir(tmp_path)
    assert train_tiny.main([*from_run, *options, "--out", str(tmp_path / "new")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert re.search(words, lines[-1]) and len(lines[-1]) < 400, lines
    assert len(lines) == 1 + ("window=300" in options)             # the longer window is said
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_is_not_trained_over_itself(finished_run, from_run, tmp_path, capsys):
    """Oracle: the bytes of the checkpoint before and after."""
    source = shutil.copytree(finished_run, tmp_path / "source")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    assert train_tiny.main([*from_run, "--from", str(source), "--out", str(source),
                            "--overwrite"]) == 2
    assert "--from and --out are both" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_a_tokenizer_without_marks_needs_fim_rate_0(small_text, tmp_path, capsys):
    """The error names an option, and the run works with that option."""
    source = tmp_path / "foreign"
    hf.save(DeepSeekV3(ModelConfig.preset("tiny").replace(
        vocab_size=420, hidden_size=32, num_hidden_layers=2, intermediate_size=48,
        num_attention_heads=2, moe_intermediate_size=16)), source)
    byte_level().save(str(source / "tokenizer.json"))
    without_marks(source)
    arguments = ["--from", str(source), "--data", str(small_text), "--steps", "1", "--device",
                 "cpu", "--set", "window=32", "--out", str(tmp_path / "run")]
    assert train_tiny.main(arguments) == 2
    assert "--set fim_rate=0" in capsys.readouterr().err
    assert train_tiny.main([*arguments, "--set", "fim_rate=0"]) == 0
