"""The released format: out and in again, under the names of others, refusing what does not fit."""

import pickle

import pytest
import safetensors.torch
import torch

from minidsv3 import hf
from tests.hf.example import YARN, assert_refused, edit, random_model, rewrite

VARIANTS = {
    "tied": {}, "untied": {"tie_word_embeddings": False}, "no query latent": {"q_lora_rank": None},
    "no mtp": {"num_nextn_predict_layers": 0}, "mtp 2": {"num_nextn_predict_layers": 2},
    "yarn": {"rope_scaling": YARN}, "no shared": {"n_shared_experts": 0},
    "shared 2": {"n_shared_experts": 2}, "all dense": {"first_k_dense_replace": 9},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_what_is_saved_is_loaded(tmp_path, changes):
    """Oracle: every tensor bit for bit, the config field by field; a folder may be a str."""
    model = random_model(**changes)
    hf.save(model, str(tmp_path / "new"))
    again = hf.load(str(tmp_path / "new"))
    assert again.config == model.config and not again.training
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]) and tensor.dtype == theirs[name].dtype, name
    tied = again.lm_head.weight.data_ptr() == again.embed_tokens.weight.data_ptr()
    assert tied == model.config.tie_word_embeddings
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "config.json", "model.safetensors"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_dtype_keeps_the_bias_in_float32(folder, dtype):
    """Oracle: the saved tensors cast by hand; the router bias is never cast."""
    model, saved = hf.load(folder, dtype=dtype), safetensors.torch.load_file(
        folder / "model.safetensors")
    assert torch.equal(model.norm.weight, saved["model.norm.weight"].to(dtype))
    bias = model.layers[1].mlp.gate.e_score_correction_bias
    assert bias.dtype == torch.float32
    assert torch.equal(bias, saved["model.layers.1.mlp.gate.e_score_correction_bias"])


@pytest.mark.parametrize("changes", [
    {"num_nextn_predict_layers": 0, "tie_word_embeddings": False},
    {"num_nextn_predict_layers": 0, "q_lora_rank": None, "rope_scaling": YARN}])
def test_names_and_shapes_are_those_that_transformers_writes(tmp_path, changes):
    """Oracle: transformers loads ours, writes it out again; same names, same numbers, read back."""
    from transformers import AutoModelForCausalLM
    model = random_model(**changes)
    hf.save(model, tmp_path / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, written = (safetensors.torch.load_file(tmp_path / name / "model.safetensors")
                     for name in ("ours", "theirs"))
    absent = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert ours.keys() - absent == written.keys()
    assert all(torch.equal(ours[name], written[name]) for name in written)
    again = hf.load(tmp_path / "theirs")
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(),
                                                 again.state_dict().values()))


def test_mtp_modules_follow_the_layers_with_copies_of_what_they_share(tmp_path):
    """Oracle: the released names of layer L, written out."""
    model = random_model(tie_word_embeddings=False)
    hf.save(model, tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for released, tensor in {
        "embed_tokens.weight": model.embed_tokens.weight, "enorm.weight": model.mtp[0].enorm.weight,
        "hnorm.weight": model.mtp[0].hnorm.weight, "eh_proj.weight": model.mtp[0].eh_proj.weight,
        "shared_head.norm.weight": model.mtp[0].shared_head["norm"].weight,
        "shared_head.head.weight": model.lm_head.weight,
        "mlp.experts.4.up_proj.weight": model.mtp[0].mlp.experts.gate_up_proj[4, 9:],
        "mlp.experts.4.gate_proj.weight": model.mtp[0].mlp.experts.gate_up_proj[4, :9],
    }.items():
        assert torch.equal(tensors[f"model.layers.3.{released}"], tensor), released


def test_the_main_model_alone_can_be_loaded(folder, capsys):
    """Oracle: the same logits; the note goes to stderr, where no text is read."""
    tokens = torch.arange(20)[None]
    full = hf.load(folder)
    rewrite(folder, lambda t: [t.pop(name) for name in list(t) if "layers.3." in name])
    main = hf.load(folder)
    assert len(full.mtp) == 1 and len(main.mtp) == 0
    with torch.no_grad():
        assert torch.equal(full(tokens), main(tokens))
    captured = capsys.readouterr()
    assert "no MTP layer" in captured.err and captured.out == ""


@pytest.mark.parametrize("spelling", [
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
                      "mscale": 1.0, "mscale_all_dim": 0.7}, "rope_theta": 5000.0},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32,
                      "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.7},
     "rope_theta": 5000},
    {"rope_scaling": None, "rope_theta": None, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "mscale": 1.0,
        "mscale_all_dim": 0.7, "original_max_position_embeddings": 32, "truncate": True}}])
def test_both_spellings_of_rope_are_one(folder, spelling):
    """Oracle: the config written by hand."""
    edit(folder, **spelling)
    config = hf.read_config(folder)
    assert config.rope_scaling == YARN and config.rope_theta == 5000.0


@pytest.mark.parametrize("spelling", [
    {"rope_scaling": None}, {"rope_scaling": None, "rope_parameters": {"rope_type": "default"}}])
def test_no_scaling_in_both_spellings(folder, spelling):
    """Oracle: None."""
    edit(folder, **spelling)
    assert hf.read_config(folder).rope_scaling is None


@pytest.mark.parametrize("changes, words", [
    ({"model_type": "llama"}, ["model_type='llama'", "another architecture", "deepseek_v3"]),
    ({"model_type": None}, ["model_type=None", "another architecture"]),
    ({"rope_interleave": False}, ["rope_interleave=False", "mathematics", "need True"]),
    ({"attention_bias": True}, ["attention_bias=True", "need False"]),
    ({"scoring_func": "softmax"}, ["scoring_func='softmax'", "need 'sigmoid'"]),
    ({"topk_method": "greedy"}, ["topk_method='greedy'", "need 'noaux_tc'"]),
    ({"hidden_act": "gelu"}, ["hidden_act='gelu'", "need 'silu'"]),
    ({"moe_layer_freq": 2}, ["moe_layer_freq=2", "need 1"]),
    ({"hidden_size": "wide"}, ["config.json", "hidden_size='wide'", "give int"]),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_scaling.type='linear'", "yarn"]),
    ({"rope_parameters": {"rope_type": "dynamic", "alpha": 3.0}},
     ["rope_parameters.type='dynamic'", "yarn"]),
    ({"rope_scaling": {"type": "yarn"}}, ["rope_scaling.factor", "add it"]),
    ({"rope_scaling": [4.0]}, ["rope_scaling=[4.0]", "not an object"])])
def test_what_would_change_the_mathematics_is_refused(folder, changes, words):
    """Oracle: the key, its value and what is needed, in one line."""
    edit(folder, **changes)
    assert_refused(folder, words)


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, tensor):
    return lambda tensors: tensors.__setitem__(name, tensor)


@pytest.mark.parametrize("change, words", [
    (drop("model.layers.2.mlp.experts.3.up_proj.weight"),
     ["lacks tensor model.layers.2.mlp.experts.3.up_proj.weight (9, 24)", "incomplete"]),
    (drop("model.layers.1.mlp.gate.e_score_correction_bias"), ["lacks", "correction_bias (6,)"]),
    (drop("lm_head.weight"), ["lacks tensor lm_head.weight (64, 24)"]),
    (drop("model.embed_tokens.weight"), ["lacks tensor model.embed_tokens.weight"]),
    (put("model.norm.weight", torch.ones(7)),
     ["model.norm.weight has shape (7,)", "asks for (24,)", "different models"]),
    (put("model.layers.0.self_attn.q_a_proj.bias", torch.ones(12)),
     ["has tensor model.layers.0.self_attn.q_a_proj.bias", "no place"]),
    (put("model.layers.4.enorm.weight", torch.ones(24)), ["model.layers.4.enorm.weight"]),
    (put("model.embed_tokens.weight", torch.ones(64, 24, dtype=torch.int8)),
     ["embed_tokens", "floating point"])])
def test_tensors_that_do_not_fit_are_named(folder, change, words):
    """Oracle: the tensor's name, both shapes."""
    rewrite(folder, change)
    assert_refused(folder, words)


@pytest.mark.parametrize("length", [0, 7, 500, -1])
def test_a_cut_file_is_refused(folder, length):
    """Oracle: its path and a remedy."""
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:length])
    with pytest.raises(ValueError, match="model.safetensors cannot be read as safetensors"):
        hf.load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_never_opened(folder, name, monkeypatch):
    """Oracle: the name and the remedy; unpickling is an error here."""
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps({}))
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(pickle, "loads", None)
    with pytest.raises(ValueError, match=f"{name} is pickled.*convert it"):
        hf.load(folder)


def test_a_state_alone_is_no_pickled_model(folder):
    """Oracle: the file that is missing is named, not the state.pt that is ours."""
    (folder / "model.safetensors").rename(folder / "state.pt")
    with pytest.raises(FileNotFoundError, match="model.safetensors is missing"):
        hf.load(folder)


def test_missing_files_are_named(tmp_path):
    """Oracle: the path."""
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        hf.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        hf.load(tmp_path)


@pytest.mark.parametrize("changes, words", [
    ({"num_nextn_predict_layers": 0}, ["has tensor model.layers.3.", "num_nextn_predict_layers=0"]),
    ({"num_nextn_predict_layers": 2}, ["lacks", "model.layers.4.", "num_nextn_predict_layers=2"])])
def test_another_number_of_mtp_modules_names_its_key(folder, changes, words):
    """Oracle: the key of config.json."""
    edit(folder, **changes)
    assert_refused(folder, words)
