"""ModelConfig: presets equal the released files, errors name field, value and remedy."""

import pytest

from minidsv3 import ModelConfig
from minidsv3.command import UserError
from minidsv3.train.recipe import TrainConfig

RELEASED_V3 = {
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
    "n_shared_experts": 1, "n_routed_experts": 256, "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "qk_nope_head_dim": 128, "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3, "norm_topk_prob": True, "num_nextn_predict_layers": 1,
    "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "tie_word_embeddings": False, "initializer_range": 0.02, "bos_token_id": 0, "eos_token_id": 1,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
                     "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}}


def test_v3_preset_equals_the_released_file():
    """Oracle: the values of the released config.json, given above."""
    assert ModelConfig.preset("v3-671b").to_dict() == RELEASED_V3


def test_moonlight_preset_has_the_released_shape():
    """Oracle: values of the released config.json of Moonlight-16B."""
    config = ModelConfig.preset("moonlight-16b")
    assert (config.q_lora_rank, config.n_group, config.n_shared_experts) == (None, 1, 2)
    assert (config.routed_scaling_factor, config.rms_norm_eps) == (2.446, 1e-5)


@pytest.mark.parametrize("name", ["tiny", "short", "small"])
def test_the_window_of_a_preset_is_that_of_its_recipe(name):
    """Oracle: the recipe; a config that says more would let every client ask for too much."""
    assert ModelConfig.preset(name).max_position_embeddings == TrainConfig.preset(name).window


def test_beyond_the_window_there_is_a_notice_and_far_beyond_an_error(capsys):
    """Oracle: the lines, for a window of 256; 64 times as much is still allowed."""
    tiny = ModelConfig.preset("tiny")
    tiny.check_length(256)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        tiny.check_length(1200)
    assert capsys.readouterr().err == (
        "1,200 tokens are more than the 256 that this model was trained on "
        "(max_position_embeddings); what lies beyond may be predicted badly.\n")
    tiny.check_length(64 * 256)
    with pytest.raises(UserError) as caught:
        tiny.check_length(64 * 256 + 1)
    assert str(caught.value) == (
        "16,385 tokens are more than 64 times the 256 that this model was trained on "
        "(max_position_embeddings); choose up to 16,384.")


@pytest.mark.parametrize("name", ["tiny", "small", "moonlight-16b", "v3-671b"])
def test_json_round_trip(name, tmp_path):
    """Oracle: the preset itself, after it is written and read."""
    config = ModelConfig.preset(name)
    config.to_json(tmp_path / "config.json")
    assert ModelConfig.from_json(tmp_path / "config.json") == config


BAD = {
    "odd rope": ({"qk_rope_head_dim": 33}, "qk_rope_head_dim=33 is odd.*use 34"),
    "groups": ({"n_routed_experts": 10}, "n_routed_experts=10 .*n_group=4 .*for instance 8"),
    "group of one": ({"n_group": 16}, "n_group=16 leaves 1 expert.*up to 8"),
    "kept groups": ({"topk_group": 5}, "topk_group=5 .*choose 1 to 4"),
    "unreachable": ({"num_experts_per_tok": 9}, "num_experts_per_tok=9 .*choose 1 to 8"),
    "zero width": ({"hidden_size": 0}, "hidden_size=0 must be at least 1"),
    "negative depth": ({"num_nextn_predict_layers": -1},
                       "num_nextn_predict_layers=-1 is negative; 0 means"),
    "negative eps": ({"rms_norm_eps": -1.0}, "rms_norm_eps=-1.0 must be a number above 0"),
    "text": ({"hidden_size": "wide"}, "hidden_size='wide' is a str; give int"),
    "bool": ({"hidden_size": True}, "hidden_size=True is a bool; give int"),
    "fraction": ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5 is a float"),
    "misspelt": ({"hidden_sise": 8}, "no field hidden_sise; did you mean hidden_size"),
    "eos": ({"eos_token_id": 5000}, "eos_token_id=5000 .*0 to 2047"),
    "scaling key": ({"rope_scaling": {"type": "yarn", "facto": 4}},
                    "rope_scaling.facto; did you mean rope_scaling.factor"),
    "scaling kind": ({"rope_scaling": {"type": "linear", "factor": 4.0,
                                       "original_max_position_embeddings": 64}},
                     "rope_scaling.type='linear'"),
    "scaling missing": ({"rope_scaling": {"factor": 4}}, "needs rope_scaling.original_max"),
    "betas": ({"rope_scaling": {"factor": 4, "original_max_position_embeddings": 64,
                                "beta_fast": 0.5}}, "beta_fast=0.5 must not be below"),
}


@pytest.mark.parametrize("changes, message", BAD.values(), ids=BAD)
def test_a_bad_field_is_named_with_value_and_remedy(changes, message):
    """Oracle: the words of the error, given above, in one line."""
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig.preset("tiny").replace(**changes)
    assert "\n" not in str(caught.value)


def test_unknown_preset_lists_the_known():
    """The error names the unknown preset and lists those that exist."""
    with pytest.raises(ValueError, match="choose one of tiny, short, small, moonlight"):
        ModelConfig.preset("huge")
