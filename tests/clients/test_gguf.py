"""A checkpoint as a GGUF file, read back by llama.cpp's own library. llama.cpp itself is not run.

Needs tests/clients/requirements.txt; run it with: pytest -m clients tests/clients
"""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoTokenizer

from minidsv3 import hf
from minidsv3.config import RopeScaling
from minidsv3.data.tokenizer import BOS, SPECIAL_TOKENS, Tokenizer
from minidsv3.hf.__main__ import main
from tests.data.test_foreign import TEXTS
from tests.hf.example import YARN, random_model

BLOCK = {"attn_norm.weight", "attn_q_a.weight", "attn_q_a_norm.weight", "attn_q_b.weight",
         "attn_kv_a_mqa.weight", "attn_kv_a_norm.weight", "attn_k_b.weight", "attn_v_b.weight",
         "attn_output.weight", "ffn_norm.weight"}
DENSE = {"ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"}
SPARSE = {"ffn_gate_inp.weight", "exp_probs_b.bias"} | {
    f"ffn_{part}_{kind}.weight" for part in ("gate", "up", "down") for kind in ("exps", "shexp")}


def made(folder, splits="released", dtype=torch.float32, **changes):
    """A model of three blocks, the first of them dense, and its tokenizer -> the model."""
    model = random_model(vocab_size=330, **changes).to(dtype)
    hf.save(model, folder)
    Tokenizer.train(TEXTS, 330, splits).save(folder, 128)
    return model


def values(tensor):
    """The numbers of a tensor that the library has read; bfloat16 is the upper half of float32."""
    import gguf
    if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
        whole = tensor.data.view(np.uint16).astype(np.uint32) << 16
        return torch.from_numpy(whole.view(np.float32))
    return torch.from_numpy(np.array(tensor.data))


@pytest.mark.clients
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_names_shapes_and_numbers(tmp_path, dtype, tied):
    """Oracle: llama.cpp's names, written out; slices of our tensors, made with loops."""
    gguf = pytest.importorskip("gguf", reason="pip install -r tests/clients/requirements.txt")
    model = made(tmp_path / "model", dtype=dtype, tie_word_embeddings=tied)
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "new/m.gguf")]) == 0
    found = {each.name: each for each in gguf.GGUFReader(tmp_path / "new/m.gguf").tensors}
    names = {"token_embd.weight", "output_norm.weight"} | (set() if tied else {"output.weight"})
    for block in range(3):
        names |= {f"blk.{block}.{name}" for name in BLOCK | (SPARSE if block else DENSE)}
    assert found.keys() == names
    config, layer = model.config, model.layers[2]
    kv_b = layer.self_attn.kv_b_proj.weight.float()
    for head in range(2):                        # Dn = 6 rows of keys, then Dv = 5 of values
        rows = kv_b[11 * head:11 * head + 11]
        assert torch.equal(values(found["blk.2.attn_k_b.weight"])[head], rows[:6].T)
        assert torch.equal(values(found["blk.2.attn_v_b.weight"])[head], rows[6:])
    for expert in range(6):
        both = layer.mlp.experts.gate_up_proj[expert].float()
        assert torch.equal(values(found["blk.2.ffn_gate_exps.weight"])[expert], both[:9])
        assert torch.equal(values(found["blk.2.ffn_up_exps.weight"])[expert], both[9:])
    assert torch.equal(values(found["blk.2.ffn_down_exps.weight"]),
                       layer.mlp.experts.down_proj.float())
    assert torch.equal(values(found["blk.2.exp_probs_b.bias"]),
                       layer.mlp.gate.e_score_correction_bias)
    assert torch.equal(values(found["token_embd.weight"]), model.embed_tokens.weight.float())
    assert torch.equal(values(found["blk.0.attn_kv_a_mqa.weight"]),
                       model.layers[0].self_attn.kv_a_proj_with_mqa.weight.float())
    assert list(found["blk.1.attn_q_b.weight"].shape) == [12, 2 * (6 + 4)]       # innermost first
    for name, each in found.items():
        short = dtype == torch.bfloat16 and len(each.shape) > 1 and "gate_inp" not in name
        assert each.tensor_type.name == ("BF16" if short else "F32"), name
    assert config.num_nextn_predict_layers == 1


@pytest.mark.clients
@pytest.mark.parametrize("yarn", [None, RopeScaling(4.0, 32, 16.0, 2.0, 0.7, 0.7)])
def test_settings_and_tokens(tmp_path, yarn):
    """Oracle: by hand, from the sizes of the small model; the tokens are those of our tokenizer."""
    gguf = pytest.importorskip("gguf", reason="pip install -r tests/clients/requirements.txt")
    made(tmp_path / "model", rope_scaling=yarn, norm_topk_prob=True)
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "m.gguf")]) == 0
    fields = {name: field.contents()
              for name, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    expected = {
        "vocab_size": 330, "context_length": 128, "embedding_length": 24, "block_count": 3,
        "leading_dense_block_count": 1, "feed_forward_length": 40, "attention.head_count": 2,
        "attention.head_count_kv": 1, "attention.q_lora_rank": 12, "attention.kv_lora_rank": 10,
        "attention.key_length": 14, "attention.value_length": 10, "attention.key_length_mla": 10,
        "attention.value_length_mla": 5, "expert_feed_forward_length": 9, "expert_count": 6,
        "expert_used_count": 2, "expert_shared_count": 1, "expert_group_count": 3,
        "expert_group_used_count": 2, "expert_weights_scale": 2.5, "expert_weights_norm": True,
        "expert_gating_func": 2, "rope.dimension_count": 4, "rope.freq_base": 10000.0}
    if yarn:
        expected |= {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                     "rope.scaling.original_context_length": 32,
                     "rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 2.0,
                     "rope.scaling.yarn_log_multiplier": pytest.approx(0.07)}
    told = {name.removeprefix("deepseek2."): value for name, value in fields.items()
            if name.startswith("deepseek2.") and "rms_epsilon" not in name}
    assert told == expected and fields["general.architecture"] == "deepseek2"
    tokens = {name.removeprefix("tokenizer.ggml."): value for name, value in fields.items()
              if name.startswith("tokenizer.")}
    assert (tokens["model"], tokens["pre"]) == ("gpt2", "deepseek-v3")
    assert tokens["tokens"][:6] == list(SPECIAL_TOKENS) and len(tokens["tokens"]) == 330
    ours = Tokenizer.load(tmp_path / "model")
    empty = sum(not data for data in ours.token_bytes[6:])
    assert tokens["token_type"] == [3] * 6 + [1] * (324 - empty) + [5] * empty
    assert len(tokens["merges"]) == len(ours.merges()) > 20
    assert tokens["merges"][9] == " ".join(ours.merges()[9])
    assert [tokens[f"{name}_token_id"] for name in ("bos", "eos", "padding")] == [0, 1, 2]
    assert tokens["add_bos_token"] is False


@pytest.mark.clients
@pytest.mark.parametrize("change, words", [
    (dict(splits="wide"), "--set splits=released"),
    (dict(rope_scaling=YARN), "mscale=1.0 and mscale_all_dim=0.7"),
    (dict(rope_scaling=RopeScaling(4.0, 32)), "mscale=None and mscale_all_dim=None"),
    (dict(q_lora_rank=None, num_hidden_layers=2), "q_lora_rank=None with num_hidden_layers=2"),
    (dict(num_hidden_layers=26), "q_lora_rank=12 with num_hidden_layers=26"),
    (dict(n_shared_experts=0), "n_shared_experts=0")])
def test_what_llama_cpp_would_read_otherwise_is_refused(tmp_path, capsys, change, words):
    """Oracle: one line with the value; no file, no folder."""
    pytest.importorskip("gguf", reason="pip install -r tests/clients/requirements.txt")
    made(tmp_path / "model", **change)
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "new/m.gguf")]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert words in line and not (tmp_path / "new").exists()


def changed(folder, change):
    """Change the contents of a tokenizer.json."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def with_bos(content):
    content["post_processor"] = json.loads(processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]).__getstate__())


@pytest.mark.clients
@pytest.mark.parametrize("bos", [False, True])
def test_a_tokenizer_that_transformers_wrote_again_gives_the_same_file(tmp_path, bos):
    """Oracle: all settings and tokens of the file of before; BOS in front if texts have it."""
    gguf = pytest.importorskip("gguf", reason="pip install -r tests/clients/requirements.txt")
    made(tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "again")
    AutoTokenizer.from_pretrained(tmp_path / "again").save_pretrained(tmp_path / "again")
    if bos:
        changed(tmp_path / "again", with_bos)
    fields = []
    for name in ("model", "again"):
        assert main(["convert", str(tmp_path / name), str(tmp_path / f"{name}.gguf")]) == 0
        fields.append({key: field.contents() for key, field in
                       gguf.GGUFReader(tmp_path / f"{name}.gguf").fields.items()})
    wanted = fields[0] | {"tokenizer.ggml.add_bos_token": bos}
    assert {key for key in wanted if fields[1].get(key) != wanted[key]} == set()
    assert fields[1].keys() == wanted.keys() and len(wanted) >= 40


@pytest.mark.clients
@pytest.mark.parametrize("change, words", [
    (lambda content: content.update(normalizer={"type": "NFKC"}), "changes texts"),
    (lambda content: content["model"]["vocab"].update(more=330), "token 330, but .*=330"),
    (lambda content: content["added_tokens"].append({"id": 345, "content": "<|x|>"}), "token 345")])
def test_a_tokenizer_that_the_file_cannot_hold_is_refused(tmp_path, capsys, change, words):
    """Oracle: one line with the value; no file."""
    pytest.importorskip("gguf", reason="pip install -r tests/clients/requirements.txt")
    made(tmp_path / "model")
    changed(tmp_path / "model", change)
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "m.gguf")]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert re.search(words, line) and not (tmp_path / "m.gguf").exists()


@pytest.mark.clients
def test_a_file_that_was_there_stays(tmp_path, capsys):
    """Oracle: its bytes."""
    pytest.importorskip("gguf", reason="pip install -r tests/clients/requirements.txt")
    made(tmp_path / "model")
    (tmp_path / "m.gguf").write_text("precious")
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "m.gguf")]) == 2
    assert "m.gguf exists already" in capsys.readouterr().err
    assert (tmp_path / "m.gguf").read_text() == "precious"


def test_without_the_library_one_line_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    """Oracle: the words; None in sys.modules is what Python takes for a package that is absent."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    hf.save(random_model(), tmp_path / "model")
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "m.gguf")]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert "pip install gguf" in line and not (tmp_path / "m.gguf").exists()
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "m.gguf"), "--fp8"]) == 2
    assert "--fp8" in capsys.readouterr().err
