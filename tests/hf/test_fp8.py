"""The released FP8 form: which matrices, which scales, and the way back."""

import json
import re

import pytest
import safetensors.torch
import torch

from minidsv3 import hf
from minidsv3.fp8 import BLOCK, dequantize, quantize
from minidsv3.hf.__main__ import main
from minidsv3.hf.writer import to_fp8
from tests.hf.example import assert_refused, random_model, rewrite

# Wide enough for several blocks, ragged ones among them.
WIDE = dict(hidden_size=192, intermediate_size=320, moe_intermediate_size=130, q_lora_rank=136,
            kv_lora_rank=150, qk_nope_head_dim=64, v_head_dim=70, tie_word_embeddings=False)
Q_A = "model.layers.0.self_attn.q_a_proj.weight"


@pytest.fixture(scope="module")
def model():
    """Weights of the usual size."""
    model = random_model(**WIDE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.02)
    return model


@pytest.fixture
def fp8_folder(model, tmp_path):
    hf.save(model, tmp_path / "fp8", fp8=True)
    return tmp_path / "fp8"


def test_dtypes_are_those_of_the_release(fp8_folder):
    """Oracle: the release's table, by the last parts of the names."""
    tensors = safetensors.torch.load_file(fp8_folder / "model.safetensors")
    table = {
        torch.float8_e4m3fn: r"self_attn\.(q_a|q_b|kv_b|o)_proj\.weight|"
                             r"self_attn\.kv_a_proj_with_mqa\.weight|"
                             r"mlp\.(experts\.\d\.|shared_experts\.|)(gate|up|down)_proj\.weight",
        torch.float32: r"e_score_correction_bias|\w+_proj(_with_mqa)?\.weight_scale_inv",
        torch.bfloat16: r"(embed_tokens|lm_head|shared_head\.head|eh_proj|mlp\.gate|.*norm)"
                        r"\.weight",
    }
    for name, tensor in tensors.items():
        expected = [dtype for dtype, pattern in table.items()
                    if re.search(rf"(^|\.)({pattern})$", name)]
        assert expected == [tensor.dtype], name
        if tensor.dtype == torch.float8_e4m3fn:
            rows, columns = tensor.shape
            scale = tensors[name + "_scale_inv"]
            assert tuple(scale.shape) == (-(-rows // 128), -(-columns // 128)), name
    config = json.loads((fp8_folder / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16" and config["quantization_config"] == {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [128, 128]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_loading_multiplies_codes_by_scales(model, fp8_folder, dtype):
    """Oracle: each matrix through quantize and dequantize, all else rounded to bfloat16."""
    again, expected = hf.load(fp8_folder, dtype).state_dict(), model.state_dict()
    for name, tensor in expected.items():
        if "load" in name:
            continue
        if "e_score" in name:
            assert again[name].dtype == torch.float32 and torch.equal(again[name], tensor)
            continue
        wide = tensor.bfloat16()
        if "_proj" in name and "eh_proj" not in name:
            # A stack's gate and up rows are separate matrices in the release, each with its blocks.
            flat = tensor.chunk(2, dim=1) if "gate_up" in name else [tensor]
            parts = [torch.stack([dequantize(*quantize(m, BLOCK), BLOCK) for m in part])
                     if part.dim() == 3 else dequantize(*quantize(part, BLOCK), BLOCK)
                     for part in flat]
            wide = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        assert torch.equal(again[name], wide.to(dtype)), name


def test_transformers_reads_the_same_numbers(tmp_path):
    """Oracle: transformers' own dequantisation to bfloat16, matrix by matrix.

    It divides a matrix evenly by the scales' grid, which is the release's rule only where sizes are
    multiples of 128.
    """
    from transformers import AutoModelForCausalLM
    even = dict(hidden_size=256, intermediate_size=384, moe_intermediate_size=128, q_lora_rank=128,
                kv_lora_rank=124, qk_nope_head_dim=4, v_head_dim=4, num_attention_heads=32,
                tie_word_embeddings=False, num_nextn_predict_layers=0)
    hf.save(random_model(**even), tmp_path, fp8=True)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict()
    ours = hf.load(tmp_path, torch.bfloat16).state_dict()
    shared = {name: name if name == "lm_head.weight" else f"model.{name}" for name in ours}
    assert theirs.keys() == set(shared.values()) - {n for n in shared.values() if "load" in n}
    for name, tensor in ours.items():
        if not name.endswith(".load"):
            assert torch.equal(tensor.float(), theirs[shared[name]].float()), name


def test_the_error_of_fp8_is_a_few_percent(model, fp8_folder):
    """Oracle: logits of the unquantised model; E4M3 keeps four significant bits."""
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        exact, ours = model(tokens), hf.load(fp8_folder, torch.float32)(tokens)
    error = ((ours - exact).norm() / exact.norm()).item()
    assert 0.001 < error < 0.1, error


@pytest.mark.parametrize("sides, told", [
    ({}, True), (dict(hidden_size=256, intermediate_size=384, moe_intermediate_size=128,
                    q_lora_rank=128, kv_lora_rank=124, qk_nope_head_dim=4, v_head_dim=4,
                    num_attention_heads=32), False)])
def test_info_warns_of_blocks_that_others_cut_elsewhere(model, tmp_path, capsys, sides, told):
    """Oracle: sides that divide by 128 or do not, counted here; bfloat16 needs no warning.

    A side below 128 is one block for everybody, as the test of `transformers` above shows.
    """
    model = random_model(tie_word_embeddings=False, **sides) if sides else model
    hf.save(model, tmp_path / "fp8", fp8=True)
    assert main(["info", str(tmp_path / "fp8")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "no multiples" in line]
    shapes = [tensor.shape for tensor in safetensors.torch.load_file(
        tmp_path / "fp8/model.safetensors").values() if tensor.dtype == torch.float8_e4m3fn]
    ragged = sum(any(side > 128 and side % 128 for side in shape) for shape in shapes)
    assert len(lines) == told and bool(ragged) == told
    for line in lines:
        assert f"{ragged:,} FP8 matrices have sides above 128 that are no multiples of it" in line
        assert "convert the checkpoint to bfloat16 first" in line
    hf.save(model, tmp_path / "plain")
    assert main(["info", str(tmp_path / "plain")]) == 0
    assert "no multiples" not in capsys.readouterr().out


def put(name, tensor):
    return lambda tensors: tensors.__setitem__(name, tensor)


@pytest.mark.parametrize("change, words", [
    (lambda t: t.pop(Q_A + "_scale_inv"), [Q_A, "needs", "of shape (2, 2)", "none"]),
    (put(Q_A + "_scale_inv", torch.ones(2, 3)), [Q_A + "_scale_inv", "(2, 2)", "(2, 3)"]),
    (put("model.norm.weight_scale_inv", torch.ones(2)),
     ["has tensor model.norm.weight_scale_inv", "no place"]),
    (put(Q_A, torch.ones(136, 192, dtype=torch.int8)), [Q_A, "is I8"]),
    (put(Q_A + "_scale_inv", torch.ones(2, 2, dtype=torch.int64)), ["scale_inv is I64"]),
    (put("model.norm.weight", torch.ones(192).to(torch.float8_e4m3fn)),
     ["model.norm.weight", "only matrices"])])
def test_what_does_not_fit_is_named(fp8_folder, change, words):
    """Oracle: the tensor's name and what it needs."""
    rewrite(fp8_folder, change)
    assert_refused(fp8_folder, words)


def test_a_bias_in_bfloat16_becomes_float32(model):
    """Oracle: the release's dtype of router biases."""
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert dict(to_fp8([(name, torch.ones(6).bfloat16())]))[name].dtype == torch.float32


def test_scales_may_be_powers_of_two():
    """Oracle: the mantissa of each scale; V3.1 has such scales, V3 has not."""
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    for power in (True, False):
        found = dict(to_fp8([(Q_A, weight)], power_of_two=power))
        scale = found[Q_A + "_scale_inv"]
        assert bool((scale.frexp().mantissa == 0.5).all()) == power
        given = dequantize(found[Q_A], scale, BLOCK)
        assert (given - weight).abs().max() < 2**-4 * weight.abs().max()


@pytest.mark.parametrize("fast, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_an_embedding_in_fp8_gives_a_bfloat16_model(fp8_folder, monkeypatch, fast, dtype):
    """Oracle: codes times scales by hand; nothing can be computed in FP8 itself.

    A processor that would emulate bfloat16 gets float32.
    """
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    codes, scale = quantize(torch.randn(64, 192), BLOCK)
    name = "model.embed_tokens.weight"
    rewrite(fp8_folder, lambda t: t.update({
        name: codes, name + "_scale_inv": scale,
        "model.layers.3.embed_tokens.weight": codes.clone(),
        "model.layers.3.embed_tokens.weight_scale_inv": scale.clone()}))
    weight = hf.load(fp8_folder).embed_tokens.weight
    assert weight.dtype == dtype
    assert torch.equal(weight, dequantize(codes, scale, BLOCK).to(dtype))
