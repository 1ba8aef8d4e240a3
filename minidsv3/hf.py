"""The released checkpoint format, in and out: the one boundary where names and layouts change.

A folder holds `config.json` and `model.safetensors` under the names of the DeepSeek-V3 release, so
that `transformers.AutoModelForCausalLM.from_pretrained` loads what was trained here. Three things
differ inside this package and are translated here and nowhere else:

    released                                    here
    model.layers.3.mlp.experts.7.gate_proj ...  layers.3.mlp.experts.gate_up_proj[7], stacked
    model.layers.{L+k}.eh_proj ...              mtp.k.eh_proj: MTP modules follow the L blocks
    model.layers.{L+k}.embed_tokens, shared_head.head   no copies: embedding and head are shared
"""

import json
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import safetensors.torch
import torch

from .config import ModelConfig, RopeScaling
from .model.transformer import DeepSeekV3

ARCHITECTURE = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
    "rope_interleave": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
}
BOOKKEEPING = ("architectures", "model_type", "attention_dropout")  # change no result
FAMILY = ("deepseek_v3", "kimi_k2")                    # model types of this very architecture


def save(model, folder):
    """Write config.json and model.safetensors into `folder`, which is made if it is missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    config = json.dumps(released_config(model.config, dtype), indent=2)
    write_text(folder / "config.json", config + "\n")
    write_tensors(folder / "model.safetensors", released_tensors(model))


def load(folder, dtype=None, device="cpu"):
    """The model in `folder`; dtype None keeps the file's.

    Raises FileNotFoundError or ValueError with one line that names what does not fit.
    """
    folder = Path(folder)
    config = read_config(folder)
    path = weights_file(folder)
    try:
        tensors = safetensors.torch.load_file(path)
    except Exception as error:                         # safetensors raises its own kinds
        raise ValueError(f"{path} cannot be read as safetensors ({first_line(error)}); "
                         "copy it again.") from None
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None or not embedding.is_floating_point():
        raise ValueError(f"{path} lacks tensor model.embed_tokens.weight in floating point; "
                         "it is incomplete, or no language model.")
    if config.tie_word_embeddings:
        tensors.setdefault("lm_head.weight", embedding)
    if not any(name.startswith(f"model.layers.{config.num_hidden_layers}.") for name in tensors):
        if config.num_nextn_predict_layers:
            print(f"{folder}: no MTP layer in this checkpoint; loading the main model alone.",
                  file=sys.stderr)
        config = config.replace(num_nextn_predict_layers=0)
    with torch.device("meta"):
        model = DeepSeekV3(config)
    model = model.to(dtype or embedding.dtype).to_empty(device=device)
    if config.tie_word_embeddings:                     # to_empty made two of the one
        model.lm_head.weight = model.embed_tokens.weight
    copy_released(model, tensors)
    return model.eval()


def weights_file(folder):
    """The safetensors file of a checkpoint; pickled weights are refused, never opened."""
    path = folder / "model.safetensors"
    if path.is_file():
        return path
    pickled = [file for file in sorted(folder.glob("*")) if file.name != "state.pt"
               and file.suffix in (".bin", ".pth", ".pt", ".ckpt")]
    if pickled:
        raise ValueError(f"{pickled[0]} is pickled, and unpickling can run any code; "
                         "convert it to model.safetensors first.")
    raise FileNotFoundError(f"{path} is missing; a checkpoint holds config.json and "
                            "model.safetensors.")


# ---- configuration ----


def released_config(config, dtype):
    """A ModelConfig as the dict of a released config.json."""
    values = {**ARCHITECTURE, **config.to_dict(), "num_key_value_heads": config.num_attention_heads}
    if config.rope_scaling is not None:
        values["rope_scaling"] = {k: v for k, v in values["rope_scaling"].items()
                                  if v is not None}
    return {**values, "torch_dtype": dtype}


def read_config(folder):
    """config.json of a checkpoint as a ModelConfig; ValueError for another architecture."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; name a folder that train_tiny.py wrote.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({first_line(error)}); copy it again.") from None
    if not isinstance(values, dict) or values.get("model_type") not in FAMILY:
        kind = values.get("model_type") if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{path}: model_type={kind!r} is another architecture; "
                         f"need {FAMILY[0]!r}.")
    for key, needed in ARCHITECTURE.items():
        if key not in BOOKKEEPING and values.get(key, needed) != needed:
            raise ValueError(f"{path}: {key}={values[key]!r} would change the mathematics; "
                             f"need {needed!r}.")
    fields = set(ModelConfig.__dataclass_fields__)
    chosen = {key: value for key, value in values.items() if key in fields}
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{path}: rope_scaling={rope!r} is no object; copy the file again.")
    chosen["rope_scaling"] = read_rope_scaling(rope)
    if "rope_theta" in rope:
        chosen.setdefault("rope_theta", rope["rope_theta"])
    try:
        return ModelConfig.from_dict(chosen)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_rope_scaling(rope):
    """YaRN settings under either spelling, rope_scaling{type} or rope_parameters{rope_type}."""
    kind = rope.get("type", rope.get("rope_type", "default"))
    if kind in (None, "default"):
        return None
    known = set(RopeScaling.__dataclass_fields__)
    return {key: value for key, value in rope.items() if key in known} | {"type": kind}


# ---- tensors ----


def released_tensors(model):
    """Every weight and bias of a model under its released name, MTP copies included."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensors.update(to_released(name, tensor, model.config.num_hidden_layers))
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    for k in range(len(model.mtp)):
        prefix = f"model.layers.{model.config.num_hidden_layers + k}."
        tensors[prefix + "embed_tokens.weight"] = model.embed_tokens.weight.detach().clone()
        tensors[prefix + "shared_head.head.weight"] = model.lm_head.weight.detach().clone()
    return tensors


def to_released(name, tensor, num_layers):
    """One tensor of ours -> the released names and tensors that hold it."""
    parts = name.split(".")
    if parts[0] == "mtp":
        parts = ["layers", str(num_layers + int(parts[1])), *parts[2:]]
    if parts[0] != "lm_head":
        parts = ["model", *parts]
    stem = ".".join(parts[:-1])
    if parts[-1] == "gate_up_proj":
        gates, ups = tensor.chunk(2, dim=1)                            # (E, F, C) each
        return {f"{stem}.{e}.{half}_proj.weight": half_tensor[e]
                for half, half_tensor in (("gate", gates), ("up", ups)) for e in range(len(tensor))}
    if parts[-1] == "down_proj":
        return {f"{stem}.{e}.down_proj.weight": tensor[e] for e in range(len(tensor))}
    return {".".join(parts): tensor}


@torch.no_grad()
def copy_released(model, tensors):
    """Fill a model from released names. ValueError names a missing, extra or mis-shaped one."""
    L = model.config.num_hidden_layers
    left = set(tensors)
    for router in model.routers():
        router.load.zero_()                            # in no checkpoint, and to_empty leaves noise
    for name, ours in model.state_dict().items():
        for released, view in to_released(name, ours, L).items():
            if released not in tensors:
                raise ValueError(f"the checkpoint lacks tensor {released} {tuple(view.shape)}; "
                                 "it is incomplete, or config.json belongs to another model.")
            if tensors[released].shape != view.shape:
                raise ValueError(f"tensor {released} has shape {tuple(tensors[released].shape)}, "
                                 f"but config.json asks for {tuple(view.shape)}; "
                                 "they belong to different models.")
            view.copy_(tensors[released])
            left.discard(released)
    # The MTP modules' copies of embedding and head: shared here.
    left -= {f"model.layers.{L + k}.{copy}" for k in range(len(model.mtp))
             for copy in ("embed_tokens.weight", "shared_head.head.weight")}
    if left:
        raise ValueError(f"the checkpoint has tensor {min(left)}, for which config.json has no "
                         "place; they belong to different models.")


# ---- files ----


@contextmanager
def replacing(path):
    """A temporary path to write: it takes the place of `path` in one move, or after an error goes.

    Raises OSError with one line, whatever the writer said when the disk was full.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError | RuntimeError):  # the latter is torch's word for a full disk
            raise OSError(f"cannot write {path} ({first_line(error)}); what was there is kept: "
                          "make room, or choose a folder that may be written.") from error
        raise


def write_text(path, text):
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_tensors(path, tensors):
    """Write a safetensors file whole or not at all."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        # Not save_file: it writes under a random name, which a kill would leave behind.
        temporary.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))


def first_line(error):
    """An error's text without what follows its first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
