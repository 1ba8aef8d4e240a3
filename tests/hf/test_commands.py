"""python -m minidsv3.hf info and convert: what they tell, write and refuse."""

import json
import re
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from minidsv3 import hf
from minidsv3.hf.__main__ import main, parse_size
from tests.hf.example import edit, random_model, rewrite, stack_experts


def listing(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*")
            if path.is_file()}


def test_info_tells_what_is_there(folder, capsys):
    """Oracle: counted from the model that was saved."""
    model = hf.load(folder)
    mtp = sum(p.numel() for p in model.mtp.parameters())
    total = sum(p.numel() for p in model.parameters()) - mtp
    assert main(["info", str(folder)]) == 0
    text = capsys.readouterr().out
    for words in (f"{total:,} in the main model", f"{mtp:,} in 1 MTP", "3 blocks (1 dense)",
                  "6 routed, 2 per token", "128 tokens", "F32", "loads         yes"):
        assert words in text, words


def test_info_names_what_would_not_load(folder, capsys):
    """Oracle: the tensors taken out, ten at most and the number of the others; exit code 2."""
    rewrite(folder, lambda t: [t.pop(n) for n in list(t) if ".experts." in n and "layers.1" in n])
    assert main(["info", str(folder)]) == 2
    out = capsys.readouterr().out
    assert "loads         no" in out and out.count("lacks tensor model.layers.1.mlp.experts.") == 10
    assert "and 8 more" in out


def test_info_reads_headers_alone(folder, monkeypatch):
    """Oracle: a reader that refuses to read tensors."""
    monkeypatch.setattr(hf.Checkpoint, "raw", None)
    assert main(["info", str(folder)]) == 0


def test_convert_to_fp8_equals_saving_in_fp8(folder, tmp_path):
    """Oracle: hf.save(fp8=True), tensor by tensor; a tokenizer goes along."""
    (folder / "tokenizer.json").write_text("{}")
    hf.save(hf.load(folder), tmp_path / "saved", fp8=True)
    assert main(["convert", str(folder), str(tmp_path / "new"), "--fp8"]) == 0
    saved, new = (safetensors.torch.load_file(tmp_path / name / "model.safetensors")
                  for name in ("saved", "new"))
    assert saved.keys() == new.keys()
    for name in saved:
        assert saved[name].dtype == new[name].dtype, name
        assert torch.equal(saved[name].float(), new[name].float()), name
    assert (tmp_path / "new/tokenizer.json").read_text() == "{}"
    assert hf.read_config(tmp_path / "new") == hf.read_config(folder)


def test_convert_back_to_bfloat16_and_into_shards(folder, tmp_path):
    """Oracle: load gives the same numbers from all forms; FP8 twice is FP8 once."""
    for source, out, options in (("model", "fp8", ["--fp8"]), ("fp8", "again", ["--fp8"]),
                                 ("fp8", "bf16", ["--max-shard-size", "9KB"])):
        assert main(["convert", str(tmp_path / source), str(tmp_path / out), *options]) == 0
    assert len(list((tmp_path / "bf16").glob("model-*-of-*.safetensors"))) > 2
    config = json.loads((tmp_path / "bf16/config.json").read_text())
    assert "quantization_config" not in config and config["torch_dtype"] == "bfloat16"
    fp8, again, bf16 = (hf.load(tmp_path / name, torch.bfloat16).state_dict()
                        for name in ("fp8", "again", "bf16"))
    for name in fp8:
        assert torch.equal(fp8[name], again[name]) and torch.equal(fp8[name], bf16[name]), name


def test_convert_takes_stacks_apart(folder, tmp_path):
    """Oracle: the per-expert names of the source."""
    names = set(safetensors.torch.load_file(folder / "model.safetensors"))
    expected = hf.load(folder).state_dict()

    rewrite(folder, stack_experts)
    assert main(["convert", str(folder), str(tmp_path / "new")]) == 0
    assert set(safetensors.torch.load_file(tmp_path / "new/model.safetensors")) == names
    again = hf.load(tmp_path / "new").state_dict()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


@pytest.mark.parametrize("arguments, words", [
    (["info", "nowhere"], "no folder nowhere"),
    (["info"], "required.*--help"), ([], "required.*--help"),
    (["copy", "a"], "invalid choice: 'copy'"),
    (["convert", "MODEL", "MODEL"], "exists already; name a new folder"),
    (["convert", "MODEL", "new", "--max-shard-size", "much"], "shard-size much is not a size"),
    (["convert", "MODEL", "new", "--max-shard-size", "0"], "--max-shard-size 0 is not a size")])
def test_bad_input_is_one_line_and_leaves_everything(folder, tmp_path, monkeypatch, capsys,
                                                     arguments, words):
    """Oracle: the words, exit code 2, the same files."""
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    assert main([str(folder) if word == "MODEL" else word for word in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(words, lines[0]), lines
    assert listing(tmp_path) == before


def test_a_failing_conversion_leaves_no_folder(folder, tmp_path, monkeypatch):
    """Oracle: there is none."""
    monkeypatch.setattr("minidsv3.hf.__main__.write_companions",
                        lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    assert main(["convert", str(folder), str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_a_name_on_the_hub_is_fetched(folder, monkeypatch):
    """Oracle: the folder that the hub's library gives; patterns that leave out code and pickles."""
    import huggingface_hub
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download",
                        lambda name, allow_patterns: asked.append((name, allow_patterns)) or folder)
    assert hf.load("owner/name").config == hf.read_config(folder)
    assert asked == [("owner/name", ["*.json", "*.safetensors"])]


def test_without_a_network_one_line_names_the_other_way(monkeypatch, tmp_path):
    """Oracle: the words; a missing folder inside one that exists is never asked of the hub."""
    import huggingface_hub

    def fail(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match=r"owner/name.*no route.*name a folder") as caught:
        hf.load("owner/name")
    assert "\n" not in str(caught.value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(FileNotFoundError, match="no folder runs/tiny; name one"):
        hf.load("runs/tiny")


@pytest.mark.parametrize("text, size", [("9", 9), ("5GB", 5 * 10**9), ("1.5 mb", 1_500_000)])
def test_sizes(text, size):
    """Oracle: by hand."""
    assert parse_size(text) == size


def test_as_a_module(folder):
    """Oracle: the exit code of a process of its own."""
    edit(folder, model_type="llama")
    done = subprocess.run([sys.executable, "-m", "minidsv3.hf", "info", str(folder)],
                          capture_output=True, text=True)
    assert done.returncode == 2 and "model_type='llama'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_random_models_of_all_kinds_convert(tmp_path):
    """Oracle: load, on tied weights and two MTP modules."""
    model = random_model(num_nextn_predict_layers=2)
    hf.save(model, tmp_path / "model")
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "new")]) == 0
    again = hf.load(tmp_path / "new").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
