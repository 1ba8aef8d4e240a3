"""Write tensors into a checkpoint folder: one file, or shards and their index."""

import json
from pathlib import Path

import safetensors.torch
import torch

from ..files import replacing, write_text
from ..fp8 import BLOCK, quantize
from .names import SCALE, is_fp8
from .reader import INDEX, WHOLE

MAX_SHARD_SIZE = 5_000_000_000                   # bytes


def to_fp8(tensors, quantized=is_fp8, power_of_two=False):
    """(name, tensor) pairs -> the same in the released FP8 form.

    Matrices that quantized(name) chooses, those of attention and FFN, become codes and scales,
    unless they are already. The router's bias is float32; everything else becomes bfloat16.
    """
    for name, tensor in tensors:
        if quantized(name) and tensor.dtype != torch.float8_e4m3fn:
            codes, scale = quantize(tensor, BLOCK, power_of_two=power_of_two)
            yield name, codes
            yield name + SCALE, scale
        elif name.endswith("e_score_correction_bias"):
            yield name, tensor.float()
        elif quantized(name) or name.endswith(SCALE):
            yield name, tensor
        else:
            yield name, tensor.bfloat16()


def write_weights(folder, tensors, max_shard_size=MAX_SHARD_SIZE):
    """Write (name, tensor) pairs, in their order, into files of at most max_shard_size bytes.

    A larger tensor gets a file of its own. Files of an older checkpoint are removed after the new
    ones are complete.
    """
    folder, parts, shard, size = Path(folder), [], {}, 0
    try:
        for name, tensor in tensors:
            more = tensor.numel() * tensor.element_size()
            if shard and size + more > max_shard_size:
                parts.append(write_part(folder, len(parts), shard))
                shard, size = {}, 0
            shard[name] = tensor
            size += more
        if parts:
            parts.append(write_part(folder, len(parts), shard))
            name_shards(folder, parts)
        else:
            write_tensors(folder / WHOLE, shard)
            remove_others(folder, {WHOLE})
    finally:
        for number in range(len(parts)):         # after an error: remove incomplete files
            part(folder, number).unlink(missing_ok=True)


def part(folder, number):
    """The temporary name of a shard, until the number of shards is known."""
    return folder / f"{WHOLE}.part{number}"


def write_tensors(path, tensors):
    """Write a safetensors file completely or not at all."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        # Not save_file: it writes under a random name, which a kill would leave behind.
        temporary.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))


def write_part(folder, number, shard):
    """Write one shard -> {name: bytes}."""
    write_tensors(part(folder, number), shard)
    return {name: tensor.numel() * tensor.element_size() for name, tensor in shard.items()}


def name_shards(folder, parts):
    """Give the shards their final names, then write the index."""
    files = [f"model-{n:05}-of-{len(parts):05}.safetensors" for n in range(1, len(parts) + 1)]
    for number, file in enumerate(files):
        part(folder, number).replace(folder / file)
    weight_map = {name: file for file, shard in zip(files, parts, strict=True) for name in shard}
    total = sum(sum(shard.values()) for shard in parts)
    write_text(folder / INDEX, json.dumps(
        {"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
    remove_others(folder, {INDEX, *files})


def remove_others(folder, files):
    """Remove weight files of an older checkpoint, which would be read instead of the new ones."""
    for path in (folder / WHOLE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
        if path.name not in files:
            path.unlink(missing_ok=True)
