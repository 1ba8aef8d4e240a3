"""Reading and writing config.json: its keys are ModelConfig's fields, and a few that others add.

Keys that change no result are ignored. A key that would change the mathematics is refused by name.
"""

import json
from pathlib import Path

from ..command import UserError
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
# Keys that may stand beside YaRN's fields under rope_scaling or rope_parameters.
ROPE_BOOKKEEPING = ("rope_theta", "rope_type", "finetuned")
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
    """config.json of a checkpoint as a ModelConfig.

    Raises FileNotFoundError if it is missing, UserError if it describes another architecture.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; name a folder that train_tiny.py wrote, or a "
                                "released checkpoint.")
    values = read_json(path)
    try:
        return ModelConfig.from_dict(our_fields(values))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def our_fields(values):
    """The fields of ModelConfig in a config.json.

    Raises UserError with the name of a key that would change the mathematics.
    """
    if values.get("model_type") not in FAMILY:
        raise UserError(f"model_type={values.get('model_type')!r} is another architecture; "
                        f"need {FAMILY[0]!r}.")
    fixed = {key: value for key, value in ARCHITECTURE.items() if key not in BOOKKEEPING}
    if isinstance(values.get("num_attention_heads"), int):  # latent attention has no head groups
        fixed["num_key_value_heads"] = values["num_attention_heads"]
    for key, needed in fixed.items():
        if values.get(key, needed) != needed:
            raise UserError(f"{key}={values[key]!r} would change the mathematics; "
                            f"need {needed!r}.")
    check_quantization(values.get("quantization_config"))
    chosen = {key: value for key, value in values.items()
              if key in ModelConfig.__dataclass_fields__}
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"rope_scaling={rope!r} is not an object; copy the file again.")
    chosen["rope_scaling"] = read_rope_scaling(rope)
    if "rope_theta" in rope:
        if chosen.setdefault("rope_theta", rope["rope_theta"]) != rope["rope_theta"]:
            raise UserError(f"rope_theta={chosen['rope_theta']!r}, but its rope settings say "
                            f"{rope['rope_theta']!r}; leave one of them out.")
    for key in ("bos_token_id", "eos_token_id"):
        if chosen.get(key, 0) is None:
            del chosen[key]
        elif isinstance(chosen.get(key), list) and chosen[key]:
            chosen[key] = chosen[key][0]               # several ids may end a text: use the first
    return chosen


def read_rope_scaling(rope):
    """YaRN settings under either spelling, rope_scaling{type} or rope_parameters{rope_type}."""
    kind = rope.get("type", rope.get("rope_type", "default"))
    if kind in (None, "default"):
        return None
    fields = set(RopeScaling.__dataclass_fields__)
    for key, value in rope.items():
        if key not in fields and key not in ROPE_BOOKKEEPING and value != ROPE_FIXED.get(key):
            raise UserError(f"rope_scaling.{key}={value!r} would change the mathematics; "
                            "leave it out.")
    return {key: value for key, value in rope.items() if key in fields} | {"type": kind}


def check_quantization(quantization):
    """Raise UserError unless FP8 is in the released form: E4M3, one scale per 128 x 128 block."""
    if quantization is None:
        return
    if not isinstance(quantization, dict):
        raise UserError(f"quantization_config={quantization!r} is not an object; "
                        "copy the file again.")
    for key in ("quant_method", "fmt", "weight_block_size"):
        if quantization.get(key, QUANTIZATION[key]) != QUANTIZATION[key]:
            raise UserError(f"quantization_config.{key}={quantization[key]!r} is not supported; "
                            f"need {QUANTIZATION[key]!r}, or weights that are not quantised.")
