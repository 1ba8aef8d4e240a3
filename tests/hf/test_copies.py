"""Tensors that a checkpoint holds twice, names that are far too many, FP8 in unusual places."""

import json
import os
import time
from functools import partial
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from minidsv3 import hf
from minidsv3.command import notice
from minidsv3.fp8 import BLOCK, dequantize, quantize
from minidsv3.hf.__main__ import main, quantized
from tests.hf.example import assert_refused, edit, random_model, rewrite

EMBEDDING, HEAD, MTP = "model.embed_tokens.weight", "lm_head.weight", "model.layers.3."
COPIES = {"tied head": (True, HEAD, EMBEDDING), "tied mtp": (True, MTP + "embed_tokens.weight",
                                                             EMBEDDING),
          "tied mtp head": (True, MTP + "shared_head.head.weight", EMBEDDING),
          "mtp": (False, MTP + "embed_tokens.weight", EMBEDDING),
          "mtp head": (False, MTP + "shared_head.head.weight", HEAD)}


@pytest.mark.parametrize("tied, copy, name", COPIES.values(), ids=COPIES)
def test_a_stored_copy_must_be_one(tmp_path, capsys, tied, copy, name):
    """Oracle: a true copy, also in bfloat16, loads as before; another one is named, in one line."""
    hf.save(random_model(tie_word_embeddings=tied), tmp_path / "model")
    expected = hf.load(tmp_path / "model").state_dict()
    rewrite(tmp_path / "model", lambda t: t.__setitem__(copy, t[name].bfloat16()))
    again = hf.load(tmp_path / "model").state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in expected.items())
    rewrite(tmp_path / "model", lambda t: t[copy][5, 2].add_(1))
    assert_refused(tmp_path / "model", [f"tensor {copy} differs from {name}", "tie_word"])
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "new")]) == 2
    assert copy in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert main(["info", str(tmp_path / "model")]) == 0                # headers alone
    assert "copies of embedding and head are compared on loading" in capsys.readouterr().out


@pytest.mark.parametrize("tied, copy, name", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("spoil, words", [
    (lambda tensor: torch.ones(3, 4), "has shape (3, 4)"),
    (lambda tensor: tensor.to(torch.int16), "is I16"),
    (lambda tensor: tensor.to(torch.float8_e4m3fn), "_scale_inv of shape (1, 1); found none")])
def test_headers_tell_of_a_copy_that_cannot_be_one(tmp_path, capsys, tied, copy, name, spoil,
                                                   words):
    """Oracle: the tensor is named by info, which reads headers alone."""
    hf.save(random_model(tie_word_embeddings=tied), tmp_path)
    rewrite(tmp_path, lambda t: t.__setitem__(copy, spoil(t[name])))
    assert main(["info", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert "loads         no" in out and f"tensor {copy} " in out and words in out


@pytest.mark.parametrize("fp8", [True, False])
def test_a_tied_head_is_stored_under_its_own_name_too(tmp_path, capsys, fp8):
    """Oracle: the embedding; other programs look for the head. Older folders do not have it."""
    model = random_model(vocab_size=80, num_nextn_predict_layers=0)
    hf.save(model, tmp_path / "model", fp8=fp8)
    assert json.loads((tmp_path / "model/config.json").read_text())["tie_word_embeddings"] is True
    tensors = safetensors.torch.load_file(tmp_path / "model/model.safetensors")
    assert tensors[HEAD].dtype == (torch.bfloat16 if fp8 else torch.float32)
    assert torch.equal(tensors[HEAD], tensors[EMBEDDING])
    assert main(["info", str(tmp_path / "model")]) == 0
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"{total:,} in the main model" in (told := capsys.readouterr().out)
    assert "copies of embedding and head are compared on loading (1)" in told
    expected = hf.load(tmp_path / "model").state_dict()
    rewrite(tmp_path / "model", lambda t: t.pop(HEAD))
    older = hf.load(tmp_path / "model").state_dict()
    assert all(torch.equal(older[name], tensor) for name, tensor in expected.items())
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "new")]) == 0
    written = safetensors.torch.load_file(tmp_path / "new/model.safetensors")
    assert written.keys() == {name for name in tensors if not name.endswith("_scale_inv")}
    assert torch.equal(written[HEAD], written[EMBEDDING])


def test_a_copy_of_what_is_not_a_number_is_one(tmp_path):
    """Oracle: it loads, so that what is wrong is told where it is computed."""
    model = random_model()
    model.embed_tokens.weight.data.fill_(torch.nan)
    hf.save(model, tmp_path)
    assert hf.load(tmp_path).lm_head.weight.isnan().all()


def test_far_too_many_names_are_never_made(folder, capsys):
    """Oracle: the seconds; 3,000 blocks of 16,000 experts would be 144 million names."""
    edit(folder, num_hidden_layers=3000, n_routed_experts=15999)
    begin = time.process_time()
    assert main(["info", str(folder)]) == 2
    assert time.process_time() - begin < 5
    line, = capsys.readouterr().err.splitlines()
    assert "num_hidden_layers=3000, n_routed_experts=15999" in line and "different models" in line
    edit(folder, num_hidden_layers=3000, n_routed_experts=6, first_k_dense_replace=3000)
    assert_refused(folder, ["asks for more than 21,000", "num_hidden_layers=3000"])


ODD = ["lm_head.weight", "model.layers.2.mlp.gate.weight", "model.layers.3.eh_proj.weight"]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("options", [["--fp8"], []])
def test_fp8_where_the_release_has_none_is_converted_by_its_scales(folder, tmp_path, name, options):
    """Oracle: codes times scales by hand; the copy of the head in the MTP layer is the same."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    codes, scale = quantize(3 * tensors[name], BLOCK)
    new = {name: codes, name + "_scale_inv": scale}
    if name == "lm_head.weight":
        new |= {f"model.layers.3.shared_head.head.weight{end}": tensor.clone()
                for end, tensor in (("", codes), ("_scale_inv", scale))}
    rewrite(folder, lambda t: t.update(new))
    assert main(["convert", str(folder), str(tmp_path / "new"), *options]) == 0
    written = safetensors.torch.load_file(tmp_path / "new/model.safetensors")
    assert torch.equal(written[name], dequantize(codes, scale, BLOCK).bfloat16())
    assert not any(each.removesuffix("_scale_inv") == name for each in written if each != name)
    hf.load(tmp_path / "new")


def written_config(folder, out, options, **changes):
    """config.json of `folder` with changes, after a conversion."""
    edit(folder, **changes)
    assert main(["convert", str(folder), str(out), *options]) == 0
    return json.loads((out / "config.json").read_text())


def test_the_written_config_agrees_with_the_weights(folder, tmp_path):
    """Oracle: by hand; what describes the weights is kept or consistent, all else unchanged."""
    out = iter(tmp_path / f"out{n}" for n in range(9))
    config = written_config(folder, next(out), [], torch_dtype="float32", dtype="float32", extra=7)
    assert (config["torch_dtype"], config["dtype"], config["extra"]) == ("float32", "float32", 7)
    config = written_config(folder, fp8 := next(out), ["--fp8"])
    assert config["torch_dtype"] == config["dtype"] == "bfloat16" and config["extra"] == 7
    edit(fp8, torch_dtype=None, dtype="float8")
    config = written_config(fp8, next(out), [])
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    kept = {"scale_fmt": "float", "modules_to_not_convert": ["lm_head", "layers.0.self_attn"]}
    given = json.loads((fp8 / "config.json").read_text())["quantization_config"] | kept
    config = written_config(fp8, next(out), ["--fp8"], quantization_config=given)
    assert config["quantization_config"] == given


def test_modules_that_are_left_out_stay_in_bfloat16(folder, tmp_path):
    """Oracle: transformers' own reading of the names; scales are powers of two where asked for."""
    from transformers.quantizers.quantizers_utils import should_convert_module
    left = ["model.layers.1.mlp.experts.1", "shared_experts.up_proj", r"model.layers.2.*o_proj"]
    edit(folder, quantization_config={"quant_method": "fp8", "scale_fmt": "ue8m0",
                                      "modules_to_not_convert": left})
    assert main(["convert", str(folder), str(tmp_path / "new"), "--fp8"]) == 0
    written = safetensors.torch.load_file(tmp_path / "new/model.safetensors")
    count = 0
    for name, tensor in written.items():
        if quantized(name, None):
            is_fp8 = should_convert_module(name.removesuffix(".weight"), left)
            count += not is_fp8
            assert tensor.dtype == (torch.float8_e4m3fn if is_fp8 else torch.bfloat16), name
            assert (name + "_scale_inv" in written) == is_fp8
            if is_fp8:
                assert (torch.frexp(written[name + "_scale_inv"])[0] == 0.5).all()
    assert count == 3 + 3 + 1                    # one expert, three shared experts, one o_proj
    hf.load(tmp_path / "new")


@pytest.mark.parametrize("left", [["("], 12, [3]])
def test_names_of_modules_that_are_none_are_refused(folder, tmp_path, capsys, left):
    """Oracle: the key and its value in one line."""
    edit(folder, quantization_config={"quant_method": "fp8", "modules_to_not_convert": left})
    assert main(["convert", str(folder), str(tmp_path / "new"), "--fp8"]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert f"modules_to_not_convert={left!r}" in line and not (tmp_path / "new").exists()


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_not_followed(folder, tmp_path, capsys, there):
    """Oracle: the link and what it names are as before."""
    target, link = tmp_path / "target", tmp_path / "link"
    if there:
        target.mkdir()
    link.symlink_to(target, target_is_directory=True)
    assert main(["convert", str(folder), str(link)]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert "link is a link" in line and "name a new folder" in line
    assert link.is_symlink() and target.exists() == there
    assert not there or not list(target.iterdir())


@pytest.mark.parametrize("cached", [True, False])
def test_info_of_a_name_on_the_hub_downloads_no_weights(folder, monkeypatch, capsys, cached):
    """Oracle: what info prints of the folder itself; the patterns that are asked of the hub."""
    import huggingface_hub
    assert main(["info", str(folder)]) == 0
    expected = capsys.readouterr().out
    path, asked = folder / "model.safetensors", []
    checkpoint, size = hf.Checkpoint(folder), path.stat().st_size
    tensors = {name: SimpleNamespace(dtype=checkpoint.dtypes[name], shape=list(shape),
                                     data_offsets=(0, 0))
               for name, shape in checkpoint.shapes.items()}
    tensors["model.norm.weight"].data_offsets = (10, 10 + size)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns:
                        asked.append((name, allow_patterns)) or folder)
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda name: SimpleNamespace(
        files_metadata={"model.safetensors": SimpleNamespace(tensors=tensors)}))
    if not cached:
        path.unlink()
    assert main(["info", "owner/name"]) == 0
    assert capsys.readouterr().out == expected and asked == [("owner/name", ["*.json"])]


def test_headers_that_the_hub_does_not_give_are_one_line(folder, monkeypatch, capsys):
    """Oracle: the words."""
    import huggingface_hub

    def fail(name):
        raise ConnectionError("no\nroute")

    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: folder)
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", fail)
    assert main(["info", "owner/name"]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert "owner/name" in line and "(no); with no network, name a folder" in line


@pytest.mark.parametrize("told", [1, None])
def test_a_converted_config_names_no_layer_that_is_not_there(folder, tmp_path, capsys, told):
    """The MTP layer was removed, and config.json still has it, or says nothing. Oracle: by hand."""
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors)
                                     if name.startswith(MTP)])
    config = written_config(folder, tmp_path / "out", [], num_nextn_predict_layers=told)
    assert config["num_nextn_predict_layers"] == 0
    notice.cache_clear()
    capsys.readouterr()
    hf.load(tmp_path / "out")
    assert capsys.readouterr().err == ""


def test_names_of_tensors_are_shown_as_signs(folder, monkeypatch, capsys):
    """A terminal would obey them. Oracle: the characters by hand; a pipe gets them all."""
    rewrite(folder, lambda tensors: tensors.update({"model.\x1b[2Jx": torch.zeros(2)}))
    for terminal, name in ((True, "model.\u241b[2Jx"), (False, "model.\x1b[2Jx")):
        monkeypatch.setattr("sys.stdout.isatty", partial(bool, terminal), raising=False)
        assert main(["info", str(folder)]) == 2
        assert f"the checkpoint has tensor {name}, for which" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode on Windows")
def test_a_folder_whose_name_is_no_utf_8_is_named_before_anything_is_written(
        folder, tmp_path, capsys):
    """Oracle: the words, for writing and for reading; no folder is made."""
    odd = tmp_path / os.fsdecode(b"stra\xdfe")
    assert main(["convert", str(folder), str(odd)]) == 2
    assert "the name is not UTF-8" in capsys.readouterr().err and not odd.exists()
    try:
        folder.rename(odd)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    assert main(["info", str(odd)]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert "the name is not UTF-8" in line and "rename it" in line and "copy it" not in line
