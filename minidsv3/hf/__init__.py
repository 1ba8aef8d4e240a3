"""The released checkpoint format, in and out: the one boundary where names and layouts change.

A folder holds `config.json` and its weights under the names of the DeepSeek-V3 release, so that
`transformers.AutoModelForCausalLM.from_pretrained` loads what was trained here, and `load` reads
what others release: DeepSeek-V3, Moonlight, Kimi-K2, in bfloat16 or in FP8 blocks, in one file or
in shards. Nothing is ever unpickled.

    python -m minidsv3.hf info DIR
    python -m minidsv3.hf convert DIR OUT --fp8 --max-shard-size 5GB
"""

import json
import sys
from pathlib import Path

import torch

from ..command import UserError
from ..device import loading_dtype
from ..files import write_text
from ..model.transformer import DeepSeekV3
from .config import read_config, read_json, released_config
from .hub import find, locate
from .names import places, problems, released_tensors
from .reader import Checkpoint
from .writer import MAX_SHARD_SIZE, to_fp8, write_tensors, write_weights

__all__ = ["Checkpoint", "find", "load", "locate", "read_config", "read_json", "released_config",
           "released_tensors", "save", "skeleton", "stored_config", "write_tensors"]


def save(model, folder, fp8=False, max_shard_size=MAX_SHARD_SIZE):
    """Write config.json and the weights into `folder`, which is made if it is missing.

    fp8 stores the matrices of attention and FFN as the released model does. Weights of more than
    max_shard_size bytes go into several files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = "bfloat16" if fp8 else str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    config = json.dumps(released_config(model.config, dtype, fp8), indent=2)
    write_text(folder / "config.json", config + "\n")
    tensors = released_tensors(model).items()
    write_weights(folder, to_fp8(tensors) if fp8 else tensors, max_shard_size)


def load(folder_or_hub_name, dtype=None, device="cpu"):
    """The model in a folder, or of that name on the hub.

    dtype None keeps the file's, but bfloat16 becomes float32 where the device would only emulate
    it. FP8 becomes what the embedding has, bfloat16. Read tensor by tensor, so that no second copy
    of the model is ever in memory. Raises FileNotFoundError or UserError with one line that names
    what does not fit.
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
    with torch.no_grad():
        for name in checkpoint.in_file_order(wanted):
            wanted[name].copy_(checkpoint.read(name))
    return model.eval()


def stored_config(folder_or_hub_name):
    """The ModelConfig of what `load` returns, from headers alone; D = 0 where MTP is missing."""
    folder = locate(folder_or_hub_name)
    model, _ = skeleton(folder, read_config(folder), Checkpoint(folder))
    return model.config


def skeleton(folder, config, checkpoint):
    """The model on the meta device -> model, [what of the checkpoint does not fit it].

    A checkpoint without any tensor of the MTP layer gives D = 0, with a notice.
    """
    mtp_layer = f"model.layers.{config.num_hidden_layers}."
    if config.num_nextn_predict_layers and not any(
            name.startswith(mtp_layer) for name in checkpoint.shapes):
        print(f"{folder}: no MTP layer in this checkpoint; loading the main model alone.",
              file=sys.stderr)
        config = config.replace(num_nextn_predict_layers=0)
    with torch.device("meta"):
        model = DeepSeekV3(config)
    wanted = places(model, checkpoint.shapes)
    return model, list(problems(wanted, checkpoint.shapes, checkpoint.dtypes, config))
