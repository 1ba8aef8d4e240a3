"""Show what a checkpoint holds, or write it in another form.

    python -m minidsv3.hf info DIR                   architecture, parameters, dtypes, files
    python -m minidsv3.hf convert DIR OUT --fp8      the released FP8 form; without --fp8: no FP8
"""

import json
import re
import shutil
import sys
from collections import Counter
from math import prod
from pathlib import Path

from ..command import Parser, UserError, answer
from ..files import write_text
from . import Checkpoint, locate, read_config, skeleton
from .config import QUANTIZATION, read_json
from .names import FP8, SCALE, unstack
from .reader import INDEX
from .writer import to_fp8, write_weights

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
SHOWN = 10                                       # problems that `info` prints


def info(folder):
    """Print what a checkpoint holds, from headers alone -> exit code, 2 if it would not load."""
    config, checkpoint = read_config(folder), Checkpoint(folder)
    model, complaints = skeleton(folder, config, checkpoint)
    total, active = model.count_parameters()
    dense = min(config.first_k_dense_replace, config.num_hidden_layers)
    numbers, tensors = Counter(), Counter()
    for name, dtype in checkpoint.dtypes.items():
        numbers[dtype] += prod(checkpoint.shapes[name])
        tensors[dtype] += 1
    scaling = config.rope_scaling
    files = sorted(set(checkpoint.file_of.values()))
    rows = {
        "architecture": f"DeepSeek-V3: {config.num_hidden_layers} blocks ({dense} dense), width "
                        f"{config.hidden_size}, {config.num_attention_heads} heads, latents "
                        f"{config.q_lora_rank or 'none'} and {config.kv_lora_rank}",
        "experts": f"{config.n_routed_experts} routed, {config.num_experts_per_tok} per token, "
                   f"{config.n_shared_experts} shared; {config.topk_group} of {config.n_group} "
                   "groups",
        "parameters": f"{total:,} in the main model, {active:,} activated per token; "
                      f"{sum(p.numel() for p in model.mtp.parameters()):,} in {len(model.mtp)} MTP "
                      "modules",
        "window": f"{config.max_position_embeddings:,} tokens" + (
            f", YaRN x{scaling.factor:g} of {scaling.original_max_position_embeddings:,}"
            if scaling else ""),
        "stored": "; ".join(f"{dtype} {numbers[dtype]:,} numbers in {tensors[dtype]:,} tensors"
                            for dtype in sorted(numbers)),
        "files": f"{len(files):,}, {sum(file.stat().st_size for file in files):,} bytes",
        "loads": "no" if complaints else "yes",
    }
    for name, text in rows.items():
        print(f"{name:14}{text}")
    for complaint in complaints[:SHOWN]:
        print(f"  {complaint}")
    if len(complaints) > SHOWN:
        print(f"  and {len(complaints) - SHOWN:,} more")
    return 2 if complaints else 0


def convert(folder, out, fp8, max_shard_size):
    """Write the checkpoint in `folder` to `out`, tensor by tensor, with its tokenizer.

    -> exit code 0. Raises UserError if the checkpoint would not load, or `out` is not empty.
    """
    config, checkpoint = read_config(folder), Checkpoint(folder)
    _, complaints = skeleton(folder, config, checkpoint)
    if complaints:
        raise UserError(f"{folder}: {complaints[0]}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; name a new folder.")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        tensors = released(checkpoint, fp8)
        write_weights(out, to_fp8(tensors) if fp8 else tensors, max_shard_size)
        write_companions(folder, out, fp8)
    except BaseException:                        # Ctrl-C too: leave no incomplete folder
        shutil.rmtree(out, ignore_errors=True)
        if not made:
            out.mkdir()
        raise
    print(f"wrote {out}: {sum(file.stat().st_size for file in out.glob('*.safetensors')):,} bytes "
          "of weights")
    return 0


def write_companions(folder, out, fp8):
    """Write config.json in its new form, and copy the tokenizer, summary and other small files."""
    values = read_json(folder / "config.json")
    quantized = values.pop("quantization_config", None)
    if fp8:
        values["quantization_config"] = QUANTIZATION
    if fp8 or quantized:
        values["torch_dtype"] = "bfloat16"
    for file in folder.iterdir():
        if file.suffix in (".json", ".model", ".jinja") and file.name not in (INDEX, "config.json"):
            shutil.copyfile(file, out / file.name)
    write_text(out / "config.json", json.dumps(values, indent=2) + "\n")


def released(checkpoint, fp8):
    """(name, tensor) of each tensor: stacked experts one by one, FP8 kept or dequantised."""
    for name in checkpoint.in_file_order(checkpoint.file_of):
        if fp8 and checkpoint.dtypes.get(name.removesuffix(SCALE)) == FP8:
            yield name, checkpoint.raw(name)     # unchanged: rounding again would change it
        elif name.endswith((".gate_up_proj", ".down_proj")):
            yield from unstack(name, checkpoint.read(name)).items()
        elif not name.endswith(SCALE):
            tensor = checkpoint.read(name)
            yield name, tensor.bfloat16() if checkpoint.dtypes[name] == FP8 else tensor


def parse_size(text):
    """"500MB" -> bytes. Raises UserError if the text is not a size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(|KB|MB|GB)", text.strip().upper())
    if not match or not 0 < float(match.group(1)) < 1e15:
        raise UserError(f"--max-shard-size {text} is not a size; write for instance 5GB or 500MB.")
    return int(float(match.group(1)) * UNITS[match.group(2)])


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(prog="python -m minidsv3.hf", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("info", help="what a checkpoint holds, from its headers alone")
    change = commands.add_parser("convert", help="write a checkpoint in another form")
    for command in (show, change):
        command.add_argument("folder", metavar="DIR", help="a checkpoint, or its name on the hub")
    change.add_argument("out", metavar="OUT", type=Path, help="a new folder")
    change.add_argument("--fp8", action="store_true",
                        help="matrices of attention and FFN in FP8 with one scale per block; "
                             "without it FP8 becomes bfloat16 and the rest is unchanged")
    change.add_argument("--max-shard-size", default="5GB", metavar="N",
                        help="largest size of one file, for instance 500MB or 5GB [5GB]")
    return parser.parse_args(arguments)


def run(arguments):
    """The command that was asked for -> exit code."""
    folder = locate(arguments.folder)
    if arguments.command == "info":
        return info(folder)
    return convert(folder, arguments.out, arguments.fp8, parse_size(arguments.max_shard_size))


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
