"""The models that were really released: their config.json as published, their names and numbers."""

import json
import re
from collections import Counter
from math import prod

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig, hf
from minidsv3.config import RopeScaling
from minidsv3.hf.names import is_fp8
from minidsv3.measure.accounting import released_parameters

# What all three files say, keys that change nothing included.
COMMON = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "ep_size": 1,
    "hidden_act": "silu", "aux_loss_alpha": 0.001, "seq_aux": True, "initializer_range": 0.02,
    "kv_lora_rank": 512, "model_type": "deepseek_v3", "moe_layer_freq": 1, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_hidden_layers": 61, "hidden_size": 7168, "pretraining_tp": 1,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_experts_per_tok": 8,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "rms_norm_eps": 1e-6, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "use_cache": True,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.48.3"}
FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
       "weight_block_size": [128, 128]}
V3 = COMMON | {
    "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4,
    "n_routed_experts": 256, "num_attention_heads": 128, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "max_position_embeddings": 163840, "rope_theta": 10000,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                     "type": "yarn"},
    "routed_scaling_factor": 2.5, "vocab_size": 129280, "quantization_config": FP8}
MOONLIGHT = COMMON | {
    "bos_token_id": 163584, "eos_token_id": 163585, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1, "hidden_size": 2048, "intermediate_size": 11264, "num_hidden_layers": 27,
    "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "num_attention_heads": 16, "num_key_value_heads": 16,
    "num_nextn_predict_layers": 0, "q_lora_rank": None, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "routed_scaling_factor": 2.446,
    "vocab_size": 163840}
KIMI_K2 = COMMON | {
    "model_type": "kimi_k2", "bos_token_id": 163584, "eos_token_id": 163585,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_routed_experts": 384,
    "num_attention_heads": 64, "num_key_value_heads": 64, "num_nextn_predict_layers": 0,
    "max_position_embeddings": 131072, "rope_theta": 50000.0,
    "rope_scaling": {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                     "type": "yarn"},
    "routed_scaling_factor": 2.827, "vocab_size": 163840, "quantization_config": FP8}


def read(values, folder):
    """A config.json through the reader."""
    (folder / "config.json").write_text(json.dumps(values))
    return hf.read_config(folder)


def on_meta(config):
    """A model without memory."""
    with torch.device("meta"):
        return DeepSeekV3(config)


@pytest.mark.parametrize("values, preset", [(V3, "v3-671b"), (MOONLIGHT, "moonlight-16b")])
def test_published_files_are_the_presets(tmp_path, values, preset):
    """Oracle: the preset, field by field, and back again."""
    config = read(values, tmp_path)
    assert config == ModelConfig.preset(preset)
    assert read(hf.released_config(config, "bfloat16", fp8=True), tmp_path) == config


@pytest.mark.parametrize("values, total, active", [
    (V3, 671_026_404_352, 37_552_282_624), (MOONLIGHT, 15_960_108_544, 2_914_774_528),
    (KIMI_K2, 1_026_408_209_408, 32_861_477_888)], ids=["V3", "Moonlight", "Kimi-K2"])
def test_parameters_of_published_files(tmp_path, values, total, active):
    """Oracle: counts made elsewhere from the published shapes."""
    assert on_meta(read(values, tmp_path)).count_parameters() == (total, active)


def test_kimi_s_yarn_is_a_step(tmp_path):
    """Oracle: the settings, written by hand."""
    config = read(KIMI_K2, tmp_path)
    assert config.rope_scaling == RopeScaling(32.0, 4096, 1.0, 1.0, 1.0, 1.0)


def test_names_and_dtypes_reproduce_the_hub_s_totals():
    """Oracle: 684,531,386,000 numbers in all, and the share of each dtype, as the hub counts."""
    numbers = Counter()
    for name, tensor in hf.released_tensors(on_meta(ModelConfig.preset("v3-671b"))).items():
        shape = tuple(tensor.shape)
        if is_fp8(name):
            numbers["F8_E4M3"] += prod(shape)
            numbers["F32"] += prod(-(-size // 128) for size in shape)
        else:
            numbers["F32" if "e_score" in name else "BF16"] += prod(shape)
    assert numbers == {"F8_E4M3": 680_571_043_840, "BF16": 3_918_786_560, "F32": 41_555_600}
    assert sum(numbers.values()) == 684_531_386_000
    counted = released_parameters(ModelConfig.preset("v3-671b"))       # by formulas
    assert numbers == {dtype: counted[dtype] for dtype in numbers}


@pytest.mark.parametrize("changes, words", [
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.quant_method='awq'"),
    ({"quantization_config": FP8 | {"weight_block_size": [64, 64]}}, r"weight_block_size=\[64, 64"),
    ({"quantization_config": FP8 | {"fmt": "e5m2"}}, "fmt='e5m2' is not supported; need 'e4m3'"),
    ({"quantization_config": "fp8"}, "quantization_config='fp8' is not an object"),
    ({"num_key_value_heads": 8}, "num_key_value_heads=8 would change the mathematics; need 128"),
    ({"rope_scaling": V3["rope_scaling"] | {"attention_factor": 2.0}}, "attention_factor=2.0"),
    ({"rope_scaling": V3["rope_scaling"] | {"truncate": False}}, "rope_scaling.truncate=False"),
    ({"rope_scaling": V3["rope_scaling"] | {"new_idea": 3}}, "rope_scaling.new_idea=3 would")])
def test_what_would_change_the_mathematics_is_refused_by_name(tmp_path, changes, words):
    """Oracle: the key, its value and what is needed."""
    with pytest.raises(ValueError, match=words) as caught:
        read(V3 | changes, tmp_path)
    assert "\n" not in str(caught.value) and re.search("config.json", str(caught.value))


@pytest.mark.parametrize("changes, words", [
    ({"rope_theta": float("nan")}, "rope_theta=nan must be a number above 0"),
    ({"rope_scaling": V3["rope_scaling"] | {"factor": float("inf")}}, "factor=inf must be finite"),
    ({"rope_scaling": V3["rope_scaling"] | {"mscale": -1.0}}, "mscale=-1.0 must be finite"),
    ({"rope_scaling": V3["rope_scaling"] | {"rope_theta": 50.0}}, "rope_theta=10000, but .* 50.0"),
    ({"rope_theta": 1.0}, "rope_theta=1.0 must be above 1"),
    ({"n_routed_experts": 2**40}, "n_routed_experts=.* more than any model"),
    ({"hidden_size": 10**30}, "hidden_size=.* more than any model"),
    ({"num_attention_heads": None}, "num_attention_heads=None is a NoneType")])
def test_numbers_that_no_model_has_are_refused(tmp_path, changes, words):
    """Oracle: the key and its value, before anything is made."""
    with pytest.raises(ValueError, match=words):
        read(V3 | changes, tmp_path)


def test_json_that_is_nested_without_end_is_refused(tmp_path):
    """Oracle: the path."""
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="config.json is not JSON"):
        hf.read_config(tmp_path)
