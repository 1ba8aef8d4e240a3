"""config.json as other programs write it: lists, nulls, absent keys, two spellings of one thing."""

import json

import pytest
import torch

from minidsv3 import hf
from minidsv3.config import ModelConfig, RopeScaling
from tests.hf.example import YARN, assert_refused, edit, random_model


def set_keys(folder, **changes):
    """Change keys of config.json; unlike `edit`, None is written as null."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))


@pytest.mark.parametrize("config, generation, ends", [
    (5, None, (5,)), ([5], None, (5,)), ([9, 4, 9], None, (9, 4)), (9, {"eos_token_id": 3}, (9, 3)),
    ([9, 4], {"eos_token_id": [4, 2]}, (9, 4, 2)), (None, {"eos_token_id": [6]}, (6,)),
    (None, None, ()), ([], {"eos_token_id": None}, ()), (9, {}, (9,))])
def test_every_end_token_of_both_files_is_read(folder, config, generation, ends):
    """Oracle: the ids, by hand; they survive writing and reading again."""
    set_keys(folder, eos_token_id=config)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    read = hf.read_config(folder)
    assert read.end_ids == ends
    assert ModelConfig.from_dict(json.loads(json.dumps(read.to_dict()))) == read
    model = hf.load(folder)
    hf.save(model, folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert hf.read_config(folder).end_ids == ends


@pytest.mark.parametrize("ids, words", [
    ([3, 64], "eos_token_id=64 is no token id"), (["<end>"], "eos_token_id='<end>' is "),
    ([True, 3], "eos_token_id=True is no"), ([[3]], r"eos_token_id=\[3\] is "),
    ({"id": 3}, "eos_token_id={'id': 3} is ")])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_end_token_that_is_none_is_named(folder, file, ids, words):
    """Oracle: the value; the vocabulary has 64 tokens."""
    path = folder / file
    set_keys(folder, eos_token_id=5)
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | {"eos_token_id": ids}))
    with pytest.raises(ValueError, match=words):
        hf.read_config(folder)


def test_null_is_null_and_an_absent_key_is_named(folder, capsys):
    """Oracle: None; one line with the three keys taken out and DeepSeek-V3's values."""
    set_keys(folder, bos_token_id=None, eos_token_id=None)
    config = hf.read_config(folder)
    assert config.bos_token_id is None and config.eos_token_id is None
    assert capsys.readouterr().err == ""
    edit(folder, bos_token_id=None, routed_scaling_factor=None, rope_theta=None)   # taken out
    set_keys(folder, rope_parameters={"rope_type": "default"})
    config = hf.read_config(folder)
    assert (config.bos_token_id, config.routed_scaling_factor, config.rope_theta) == (0, 2.5, 1e4)
    line, = capsys.readouterr().err.splitlines()
    for words in ("config.json lacks keys; DeepSeek-V3's values", "routed_scaling_factor=2.5",
                  "rope_theta=10000.0", "bos_token_id=0", "eos_token_id=1"):
        assert words in line, words


@pytest.mark.parametrize("yarn", [
    {"beta_fast": None}, {"beta_slow": None, "truncate": True}, {"beta_fast": 0, "factor": 3.0},
    {"original_max_position_embeddings": None, "factor": 3.0},
    {"attention_factor": None, "mscale": None}])
def test_null_and_absent_keys_are_read_as_transformers_reads_them(tmp_path, yarn):
    """Oracle: the logits of transformers from the same files; 120 positions, window 128."""
    from transformers import AutoModelForCausalLM
    model = random_model(rope_scaling=YARN, num_nextn_predict_layers=0, initializer_range=0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)
    hf.save(model, tmp_path)
    rope = json.loads((tmp_path / "config.json").read_text())["rope_scaling"] | yarn
    if rope["original_max_position_embeddings"] is None:
        del rope["original_max_position_embeddings"]
    set_keys(tmp_path, rope_scaling=rope, num_key_value_heads=None, topk_method=None)
    ours, tokens = hf.load(tmp_path), torch.arange(120)[None] % 64
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32,
                                                  experts_implementation="eager")
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


def test_null_means_none_where_the_release_reads_it_so(folder):
    """Oracle: by hand, as the code that came with the release reads null."""
    set_keys(folder, num_nextn_predict_layers=None, n_shared_experts=None, norm_topk_prob=None,
             scoring_func=None, moe_layer_freq=None)
    config = hf.read_config(folder)
    assert config.num_nextn_predict_layers == config.n_shared_experts == 0
    assert config.norm_topk_prob is False


YARN_KEYS = {"factor": 4.0, "original_max_position_embeddings": 32, "mscale": 1.0,
             "mscale_all_dim": 0.7}


@pytest.mark.parametrize("changes, words", [
    ({"rope_scaling": YARN_KEYS | {"type": "yarn", "rope_type": "default"}},
     ["rope_scaling.rope_type='default'", "rope_scaling.type is 'yarn'"]),
    ({"rope_scaling": YARN_KEYS | {"type": "default", "rope_type": "yarn"}},
     ["rope_scaling.rope_type='yarn'", "rope_scaling.type is 'default'"]),
    ({"rope_scaling": YARN_KEYS | {"type": "yarn"},
      "rope_parameters": YARN_KEYS | {"rope_type": "yarn", "factor": 5.0}},
     ["rope_scaling={", "rope_parameters is {", "'factor': 5.0"]),
    ({"rope_scaling": YARN_KEYS | {"type": "yarn"}, "rope_parameters": {"rope_type": "default"}},
     ["rope_scaling={", "rope_parameters is None"]),
    ({"rope_theta": 700.0, "rope_parameters": {"rope_theta": 800.0}},
     ["rope_theta=700.0", "rope_parameters.rope_theta is 800.0"]),
    ({"original_max_position_embeddings": 48, "rope_scaling": YARN_KEYS | {"type": "yarn"}},
     ["original_max_position_embeddings=48", "is 32"]),
    ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor=0.5", "need 1.0"]),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}},
     ["rope_scaling.type='longrope'", "'yarn'"])])
def test_two_spellings_that_disagree_are_refused(folder, changes, words):
    """Oracle: both names and both values, in one line."""
    set_keys(folder, **changes)
    assert_refused(folder, words)


@pytest.mark.parametrize("rope", [
    {"type": None, "rope_type": "yarn"}, {"type": "yarn", "rope_type": None},
    {"type": "yarn", "rope_type": "yarn"}])
def test_two_spellings_that_agree_are_one(folder, rope):
    """Oracle: the settings by hand."""
    set_keys(folder, rope_scaling=YARN_KEYS | rope, rope_theta=None,
             rope_parameters=YARN_KEYS | {"rope_type": "yarn", "rope_theta": 77.0})
    config = hf.read_config(folder)
    assert config.rope_scaling == RopeScaling(4.0, 32, mscale=1.0, mscale_all_dim=0.7)
    assert config.rope_theta == 77.0


@pytest.mark.parametrize("rope, unused", [
    ({"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32}},
     "rope_scaling in config.json names no type, so its factor, original_max_position_embeddings"),
    ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}}},
     "rope_parameters in config.json names no type, so its full_attention do nothing")])
def test_rope_settings_without_a_type_are_told(folder, capsys, rope, unused):
    """Transformers, the oracle, takes them for plain rotary positions; one line says it."""
    from transformers import DeepseekV3Config
    set_keys(folder, **{"rope_scaling": None} | rope)
    assert hf.read_config(folder).rope_scaling is None
    assert unused in capsys.readouterr().err
    assert DeepseekV3Config.from_pretrained(folder).rope_parameters["rope_type"] == "default"


def test_how_weights_were_initialised_may_be_null(folder):
    """It changes no result. Oracle: the tensors of the same folder before."""
    before = hf.load(folder).state_dict()
    set_keys(folder, initializer_range=None)
    after = hf.load(folder).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
