"""Shards and their index: written, read tensor by tensor, refused where they do not fit."""

import json
import shutil

import pytest
import safetensors.torch
import torch

from minidsv3 import hf
from minidsv3.hf.writer import write_weights
from tests.hf.example import assert_refused, random_model, rewrite, stack_experts


@pytest.fixture
def shards(tmp_path):
    """A good checkpoint in several files."""
    hf.save(random_model(tie_word_embeddings=False), tmp_path / "shards", max_shard_size=10_000)
    return tmp_path / "shards"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def change_index(folder, change):
    """Edit the weight map of an index."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_shards_hold_what_one_file_holds(folder, shards):
    """Oracle: the single file; every shard within its size, the index complete."""
    whole = safetensors.torch.load_file(folder / "model.safetensors")
    files = sorted(shards.glob("*.safetensors"))
    assert len(files) > 3
    assert [f.name for f in files] == [f"model-{n:05}-of-{len(files):05}.safetensors"
                                       for n in range(1, len(files) + 1)]
    index = json.loads((shards / "model.safetensors.index.json").read_text())
    parts = {file.name: safetensors.torch.load_file(file) for file in files}
    assert index["weight_map"] == {name: file for file, part in parts.items() for name in part}
    together = {name: tensor for part in parts.values() for name, tensor in part.items()}
    assert together.keys() == whole.keys()
    assert all(torch.equal(together[name], whole[name]) for name in whole)
    sizes = [sum(t.numel() * 4 for t in part.values()) for part in parts.values()]
    assert max(sizes) <= 10_000 and sum(sizes) == index["metadata"]["total_size"]


def test_loading_shards_gives_the_model_that_was_saved(folder, shards):
    """Oracle: the model from one file, bit for bit."""
    one, many = hf.load(folder).state_dict(), hf.load(shards).state_dict()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_transformers_loads_the_shards(shards):
    """Oracle: its logits are ours."""
    from transformers import AutoModelForCausalLM
    tokens, ours = torch.arange(20)[None], hf.load(shards)
    theirs = AutoModelForCausalLM.from_pretrained(shards, dtype=torch.float32,
                                                  experts_implementation="eager")
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-3)


def test_a_tensor_larger_than_a_shard_has_its_own_file(tmp_path):
    """Oracle: one tensor a file."""
    write_weights(tmp_path, [(f"t{n}", torch.ones(10)) for n in range(3)], max_shard_size=39)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_what_an_older_checkpoint_left_is_not_read_again(tmp_path):
    """Oracle: the last one saved, in whichever form; its files and no others."""
    for shift, size in enumerate((10_000, 10**9, 20_000, 5_000)):
        model = random_model()
        with torch.no_grad():
            model.norm.weight.fill_(shift)
        hf.save(model, tmp_path, max_shard_size=size)
        assert hf.load(tmp_path).norm.weight[0] == shift
        assert len(names(tmp_path)) == (2 if size == 10**9 else
                                        2 + len(list(tmp_path.glob("*.safetensors"))))


def test_a_failure_while_writing_keeps_the_old_checkpoint(shards):
    """Oracle: the same files with the same bytes."""
    before = {path.name: path.read_bytes() for path in shards.iterdir()}

    def tensors():
        yield from ((f"t{n}", torch.ones(4000)) for n in range(3))
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError, match="the source is gone"):
        write_weights(shards, tensors(), max_shard_size=10_000)
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before


NAME = "model.norm.weight"


@pytest.mark.parametrize("change, words", [
    (lambda i: i["weight_map"].update({NAME: "model-00099-of-00099.safetensors"}),
     ["model-00099-of-00099.safetensors is missing", "lists it"]),
    (lambda i: i["weight_map"].update({NAME: "model-00001-of-"}), [NAME, "'model-00001-of-'"]),
    (lambda i: i["weight_map"].update({NAME: "../model.safetensors"}), ["'../model.safetensors'"]),
    (lambda i: i["weight_map"].update({NAME: 7}), [NAME, "7"]),
    (lambda i: i["weight_map"].update({"model.extra.weight": i["weight_map"][NAME]}),
     ["model.extra.weight is in", "but it is not"]),
    (lambda i: i["weight_map"].pop(NAME), ["lacks tensor model.norm.weight"]),
    (lambda i: i.pop("weight_map"), ["has no weight_map"]),
    (lambda i: i.update(weight_map={}), ["has no weight_map"])])
def test_a_wrong_index_is_refused(shards, change, words):
    """Oracle: the file or the tensor is named, in one line."""
    change_index(shards, change)
    assert_refused(shards, words)


def test_an_index_that_is_no_json_is_refused(shards):
    """Oracle: its path."""
    (shards / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match="index.json is not JSON"):
        hf.load(shards)


def test_a_missing_shard_and_a_cut_one_are_named(shards, tmp_path):
    """Oracle: the file's name."""
    broken = shutil.copytree(shards, tmp_path / "broken")
    victim = sorted(broken.glob("*.safetensors"))[1]
    data = victim.read_bytes()
    victim.write_bytes(data[:-5])
    with pytest.raises(ValueError, match=f"{victim.name} cannot be read as safetensors"):
        hf.load(broken)
    victim.unlink()
    with pytest.raises(FileNotFoundError, match=f"{victim.name} is missing"):
        hf.load(broken)


def test_stacked_experts_are_read_too(folder):
    """Oracle: the same model from the per-expert names."""
    expected = hf.load(folder).state_dict()

    rewrite(folder, stack_experts)
    again = hf.load(folder).state_dict()
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    rewrite(folder, lambda t: t.update({"model.layers.1.mlp.experts.0.up_proj.weight":
                                        torch.ones(9, 24)}))
    with pytest.raises(ValueError, match="has tensor model.layers.1.mlp.experts.0.up_proj.weight"):
        hf.load(folder)


def test_tensors_that_everybody_can_compute_are_ignored(folder):
    """Oracle: it loads; older checkpoints hold rotary frequencies."""
    rewrite(folder, lambda t: t.update(
        {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))
    hf.load(folder)


def test_part_of_an_mtp_layer_is_an_error(folder):
    """Oracle: a tensor of it is named; copies of embedding and head alone are no module."""
    rewrite(folder, lambda t: [t.pop(name) for name in list(t)
                               if "layers.3." in name and "enorm" not in name])
    with pytest.raises(ValueError, match=r"lacks tensor model.layers.3"):
        hf.load(folder)
