"""Reading and writing config.json: its keys are ModelConfig's fields, and a few that others add.

Keys that change no result are ignored. A key that would change the mathematics is refused by name.
"""

import json
from pathlib import Path

from ..command import UserError, notice
from ..config import ModelConfig, RopeScaling
from ..files import first_line
from ..fp8 import BLOCK

ARCHITECTURE = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
    "rope_interleave": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
}
BOOKKEEPING = ("architectures", "model_type", "attention_dropout")  # change no result
FAMILY = ("deepseek_v3", "kimi_k2")                    # model types with exactly this architecture
QUANTIZATION = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                "weight_block_size": list(BLOCK)}
# Keys that other programs write as null. These then have their only value, or one of their own.
NULL_IS_DEFAULT = ("num_key_value_heads", "scoring_func", "topk_method", "moe_layer_freq",
                   "attention_bias", "partial_rotary_factor", "initializer_range")
NULL_IS_NONE = {"n_shared_experts": 0, "num_nextn_predict_layers": 0, "norm_topk_prob": False,
                "tie_word_embeddings": False}
# Keys that may stand beside YaRN's fields under rope_scaling or rope_parameters.
ROPE_BOOKKEEPING = ("rope_theta", "rope_type", "finetuned")
ROPE_OR_DEFAULT = ("beta_fast", "beta_slow")           # 0 means the default, as null does
ROPE_FIXED = {"truncate": True, "partial_rotary_factor": 1.0, "attention_factor": None}


def released_config(config, dtype, fp8=False):
    """A ModelConfig as the dict of a released config.json; dtype is text, as in "bfloat16"."""
    values = {**ARCHITECTURE, **config.to_dict(), "num_key_value_heads": config.num_attention_heads}
    if config.rope_scaling is not None:
        values["rope_scaling"] = {k: v for k, v in values["rope_scaling"].items()
                                  if v is not None}
    if fp8:
        values["quantization_config"] = QUANTIZATION
    return {**values, "torch_dtype": dtype}


def read_json(path):
    """The content of a JSON file that holds an object. Raises UserError if it does not."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({first_line(error)}); copy it again.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, not an object; copy it again.")
    return values


def read_config(folder):
    """config.json of a checkpoint as a ModelConfig; generation_config.json may add end tokens.

    A notice names the keys that are missing, for which DeepSeek-V3's values are taken. Raises
    FileNotFoundError if it is missing, UserError if it describes another architecture.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; name a folder that train_tiny.py wrote, or a "
                                "released checkpoint.")
    values = read_json(path)
    try:
        chosen = our_fields(values)
        ends = listed(chosen.get("eos_token_id"))
        if (generation := path.with_name("generation_config.json")).is_file():
            ends += listed(read_json(generation).get("eos_token_id"))
        if ends:
            chosen["eos_token_id"] = ends
        config = ModelConfig.from_dict(chosen)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if missing := [f"{name}={getattr(config, name)}" for name in ModelConfig.__dataclass_fields__
                   if name not in chosen]:
        notice(f"{path} lacks keys; DeepSeek-V3's values are taken: {', '.join(missing)}.")
    return config


def listed(ids):
    """Token ids as config.json gives them, one, a list or null -> a list."""
    return list(ids) if isinstance(ids, list) else [] if ids is None else [ids]


def our_fields(values):
    """The fields of ModelConfig in a config.json.

    Raises UserError with the name of a key that would change the mathematics.
    """
    if values.get("model_type") not in FAMILY:
        raise UserError(f"model_type={values.get('model_type')!r} is another architecture; "
                        f"need {FAMILY[0]!r}.")
    fixed = {key: value for key, value in ARCHITECTURE.items() if key not in BOOKKEEPING}
    fixed["partial_rotary_factor"] = 1.0
    if isinstance(values.get("num_attention_heads"), int):  # latent attention has no head groups
        fixed["num_key_value_heads"] = values["num_attention_heads"]
    for key, needed in fixed.items():
        value = values.get(key, needed)
        if value != needed and not (value is None and key in NULL_IS_DEFAULT):
            raise UserError(f"{key}={value!r} would change the mathematics; need {needed!r}.")
    check_quantization(values.get("quantization_config"))
    chosen = {key: NULL_IS_NONE.get(key) if value is None else value
              for key, value in values.items()
              if key in ModelConfig.__dataclass_fields__ and not key.startswith("rope_")
              and not (value is None and key in NULL_IS_DEFAULT)}
    return chosen | rope_fields(values)


def rope_fields(values):
    """rope_scaling, and rope_theta if config.json has it, from either of two spellings.

    They are rope_scaling{type} beside rope_theta, and rope_parameters{rope_type, rope_theta}.
    Raises UserError if both are there and disagree.
    """
    scalings, thetas = {}, {"rope_theta": values.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key) or {}
        if not isinstance(rope, dict):
            raise UserError(f"{key}={rope!r} is not an object; copy the file again.")
        thetas[f"{key}.rope_theta"] = rope.get("rope_theta")
        if rope_type(rope, key):
            scalings[key] = read_rope_scaling(rope, key, values)
        elif unused := sorted(rope.keys() - {*ROPE_BOOKKEEPING, "type"}):
            notice(f"{key} in config.json names no type, so its {', '.join(unused)} do nothing, as "
                   'in transformers; if this is YaRN, add "type": "yarn".')
    thetas = {key: theta for key, theta in thetas.items() if theta is not None}
    agree(thetas)
    agree(scalings)
    theta = {"rope_theta": next(iter(thetas.values()))} if thetas else {}
    return theta | {"rope_scaling": next(iter(scalings.values()), None)}


def agree(stated):
    """Raise UserError unless {key: value} has one value, stated once or several times."""
    first = next(iter(stated), None)
    for key, value in stated.items():
        if value is not stated[first] and value != stated[first]:      # NaN is not equal to itself
            raise UserError(f"{first}={stated[first]!r}, but {key} is {value!r}; correct one of "
                            "them, or leave it out.")


def rope_type(rope, name):
    """The type of rope settings under either spelling, None if there is none."""
    kinds = {f"{name}.{key}": rope[key] for key in ("rope_type", "type")
             if rope.get(key) is not None}
    agree(kinds)
    return next(iter(kinds.values()), None)


def read_rope_scaling(rope, name, values):
    """The fields of RopeScaling in a dict of rope settings, None for the type "default".

    name: the key of config.json, for errors. An original window that is absent is the whole window,
    as in transformers.
    """
    kind, fields = rope_type(rope, name), set(RopeScaling.__dataclass_fields__)
    if kind == "default":
        return None
    if kind != "yarn":
        raise UserError(f"{name}.type={kind!r} would change the mathematics and is not supported; "
                        "only 'yarn' is, or null.")
    for key, value in rope.items():
        if key not in fields and key not in ROPE_BOOKKEEPING and value != ROPE_FIXED.get(key):
            raise UserError(f"{name}.{key}={value!r} would change the mathematics; leave it out.")
    chosen = {key: value for key, value in rope.items() if key in fields and value is not None
              and (value or key not in ROPE_OR_DEFAULT)}
    window, original = values.get("max_position_embeddings"), "original_max_position_embeddings"
    stated = {key: value for key, value in ((original, values.get(original)),
                                            (f"{name}.{original}", rope.get(original)))
              if value is not None}
    agree(stated)
    chosen[original] = next(iter(stated.values()), window)
    return chosen | {"type": kind}


def check_quantization(quantization):
    """Raise UserError unless FP8 is in the released form: E4M3, one scale per 128 x 128 block."""
    if quantization is None:
        return
    if not isinstance(quantization, dict):
        raise UserError(f"quantization_config={quantization!r} is not an object; "
                        "copy the file again.")
    for key in ("quant_method", "fmt", "weight_block_size"):
        value = quantization.get(key, QUANTIZATION[key])
        if value != QUANTIZATION[key] and not (key == "fmt" and value is None):
            raise UserError(f"quantization_config.{key}={value!r} is not supported; "
                            f"need {QUANTIZATION[key]!r}, or weights that are not quantised.")
