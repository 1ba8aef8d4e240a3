"""The released checkpoint format, read and written: names and layouts change only in this room.

A folder holds `config.json` and the weights under the names of the DeepSeek-V3 release. So
`transformers.AutoModelForCausalLM.from_pretrained` loads what was trained here, and `load` reads
released checkpoints: DeepSeek-V3, Moonlight, Kimi-K2, in bfloat16 or in FP8 blocks, in one file or
in shards. Nothing is ever unpickled.

    python -m minidsv3.hf info DIR
    python -m minidsv3.hf convert DIR OUT --fp8 --max-shard-size 5GB
"""

import json
from pathlib import Path

import torch

from ..command import UserError, notice
from ..device import loading_dtype
from ..files import write_text
from ..model.transformer import DeepSeekV3
from .config import read_config, read_json, released_config
from .hub import find, locate
from .names import check_number, copies, each_released, places, problems, released_tensors
from .reader import Checkpoint
from .writer import MAX_SHARD_SIZE, to_fp8, write_tensors, write_weights

__all__ = ["Checkpoint", "compare_copies", "each_released", "find", "load", "locate", "read_config",
           "read_json", "released_config", "released_tensors", "save", "skeleton", "stored_config",
           "write_tensors"]


def save(model, folder, fp8=False, max_shard_size=MAX_SHARD_SIZE):
    """Write config.json and the weights into `folder`, which is created if it is missing.

    fp8 stores the matrices of attention and FFN in FP8, as the released model does. Weights of more
    than max_shard_size bytes are written into several files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = "bfloat16" if fp8 else str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    config = json.dumps(released_config(model.config, dtype, fp8), indent=2)
    write_text(folder / "config.json", config + "\n")
    tensors = each_released(model)
    write_weights(folder, to_fp8(tensors) if fp8 else tensors, max_shard_size)


def load(folder_or_hub_name, dtype=None, device="cpu"):
    """The model in a folder, or the one of that name on the hub.

    dtype=None keeps the dtype of the file, except that bfloat16 becomes float32 on a device that
    would only emulate it. FP8 weights are dequantised to the embedding's dtype, bfloat16. Tensors
    are read one by one, so that there is never a second copy of the model in memory. Raises
    FileNotFoundError or UserError with one line that names what does not fit.
    """
    folder = locate(folder_or_hub_name)
    config, checkpoint = read_config(folder), Checkpoint(folder)
    model, complaints = skeleton(folder, config, checkpoint)
    if complaints:
        raise UserError(f"{folder}: {complaints[0]}")
    stored = checkpoint.raw("model.embed_tokens.weight").dtype
    stored = torch.bfloat16 if stored.itemsize == 1 else stored
    dtype = dtype or loading_dtype(stored, torch.device(device))
    model = model.to(dtype).to_empty(device=device)
    model.reset()                                # what `to_empty` lost and no checkpoint holds
    wanted = places(model, checkpoint.shapes)
    compare_copies(checkpoint, model.config)
    with torch.no_grad():
        for name in checkpoint.in_file_order(wanted):
            wanted[name].copy_(checkpoint.read(name))
    return model.eval()


def compare_copies(checkpoint, config):
    """Raise UserError if a stored copy of embedding or head differs: the model keeps one of them.

    A copy may be stored in another dtype; both are then compared in the shorter one.
    """
    for copy, name in copies(config).items():
        if copy in checkpoint.shapes:
            tensors = checkpoint.read(copy), checkpoint.read(name)
            dtype = min((tensor.dtype for tensor in tensors), key=lambda dtype: dtype.itemsize)
            a, b = (tensor.to(dtype) for tensor in tensors)
            if not torch.allclose(a, b, rtol=0, atol=0, equal_nan=True):
                raise UserError(f"{checkpoint.folder}: tensor {copy} differs from {name}, but in "
                                "this architecture they are one; correct tie_word_embeddings in "
                                "config.json, or remove one of them from the checkpoint.")


def stored_config(folder_or_hub_name):
    """The ModelConfig of the model that `load` returns, from headers alone.

    Its num_nextn_predict_layers is 0 if the checkpoint has no MTP layer.
    """
    folder = locate(folder_or_hub_name)
    model, _ = skeleton(folder, read_config(folder), Checkpoint(folder))
    return model.config


def skeleton(folder, config, checkpoint):
    """The model on the meta device, and what does not fit: -> model, [one line per problem].

    A checkpoint without any tensor of the MTP layer gives a model without MTP, and a notice. Raises
    UserError if it has far too few tensors.
    """
    check_number(checkpoint.shapes, config)
    mtp_layer = f"model.layers.{config.num_hidden_layers}."
    if config.num_nextn_predict_layers and not any(
            name.startswith(mtp_layer) for name in checkpoint.shapes):
        notice(f"{folder}: no MTP layer in this checkpoint; loading the main model alone.")
        config = config.replace(num_nextn_predict_layers=0)
    with torch.device("meta"):
        model = DeepSeekV3(config)
    wanted = places(model, checkpoint.shapes)
    return model, list(problems(wanted, checkpoint.shapes, checkpoint.dtypes, config))
