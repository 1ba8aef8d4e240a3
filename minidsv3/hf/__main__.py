"""Show what a checkpoint holds, or write it in another form.

    python -m minidsv3.hf info DIR                   architecture, parameters, dtypes, files
    python -m minidsv3.hf convert DIR OUT --fp8      the released FP8 form; without --fp8: no FP8
    python -m minidsv3.hf convert DIR OUT.gguf       one file for llama.cpp
"""

import json
import re
import shutil
import sys
from collections import Counter
from functools import partial
from math import prod
from pathlib import Path

from ..command import Parser, UserError, answer, for_terminal
from ..files import check_name, write_text
from ..fp8 import BLOCK
from . import Checkpoint, compare_copies, locate, read_config, skeleton
from .config import QUANTIZATION, read_json
from .hub import SMALL, HubHeaders
from .names import FP8, SCALE, copies, is_fp8, unstack
from .reader import INDEX
from .splits import PAD
from .to_gguf import write_gguf
from .writer import to_fp8, write_weights

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
NO_LIMIT = int(1e30)                             # how transformers writes: no longest text
SHOWN = 10                                       # problems that `info` prints


def headers(name):
    """The folder of a checkpoint and the table of its tensors; no weights are downloaded for it."""
    folder = locate(name, SMALL)
    if Path(name).is_dir():
        return folder, Checkpoint(folder)
    try:
        return folder, Checkpoint(folder)        # downloaded earlier
    except FileNotFoundError:
        return folder, HubHeaders(name)


def info(folder, checkpoint):
    """Print what a checkpoint holds, from headers alone -> exit code, 2 if it would not load."""
    config = read_config(folder)
    model, complaints = skeleton(folder, config, checkpoint)
    total, active = model.count_parameters()
    dense = min(config.first_k_dense_replace, config.num_hidden_layers)
    numbers, tensors = Counter(), Counter()
    for name, dtype in checkpoint.dtypes.items():
        numbers[dtype] += prod(checkpoint.shapes[name])
        tensors[dtype] += 1
    scaling = config.rope_scaling
    repeated = len(copies(model.config).keys() & checkpoint.shapes.keys())
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
        "files": f"{len(set(checkpoint.file_of.values())):,}, {checkpoint.nbytes:,} bytes",
        "loads": "no" if complaints else "yes" + (
            f"; copies of embedding and head are compared on loading ({repeated})"
            if repeated else ""),
    }
    for name, text in rows.items():
        print(for_terminal(f"{name:14}{text}"))
    if ragged := [name for name, dtype in checkpoint.dtypes.items() if dtype == FP8
                  and any(side > step and side % step
                          for side, step in zip(checkpoint.shapes[name], BLOCK))]:
        print(for_terminal(
              f"  {len(ragged):,} FP8 matrices have sides above {BLOCK[0]} that are no multiples "
              f"of it, as {ragged[0]} {checkpoint.shapes[ragged[0]]}; other programs may "
              "cut their blocks elsewhere and compute wrong numbers: read them with minidsv3, or "
              "convert the checkpoint to bfloat16 first."))
    for complaint in complaints[:SHOWN]:
        print(for_terminal(f"  {complaint}"))
    if len(complaints) > SHOWN:
        print(f"  and {len(complaints) - SHOWN:,} more")
    return 2 if complaints else 0


def convert(folder, out, fp8, max_shard_size, mtp=True):
    """Write the checkpoint in `folder` to `out`, tensor by tensor, with its tokenizer.

    mtp=False leaves the MTP layers out. -> exit code 0. Raises UserError if the checkpoint would
    not load, or `out` is not empty.
    """
    config, checkpoint = read_config(folder), Checkpoint(folder)
    model, complaints = skeleton(folder, config, checkpoint)
    if complaints:
        raise UserError(f"{folder}: {complaints[0]}")
    compare_copies(checkpoint, model.config)
    values = read_json(folder / "config.json")
    quantization = QUANTIZATION | (values.get("quantization_config") or {})
    chosen = partial(quantized, left_out=quantization.get("modules_to_not_convert"))
    check_name(out)
    if out.is_symlink():
        raise UserError(f"{out} is a link, and it is not clear what to write to; name a new "
                        "folder.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; name a new folder.")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        tensors = released(checkpoint, chosen if fp8 else None)
        if not (mtp and model.mtp):              # config.json may name layers that are not there
            tensors = without_mtp(tensors, config.num_hidden_layers)
            values["num_nextn_predict_layers"] = 0
        if config.tie_word_embeddings and "lm_head.weight" not in checkpoint.shapes:
            tensors = with_head(tensors)
        if fp8:
            tensors = to_fp8(tensors, chosen, quantization.get("scale_fmt") == "ue8m0")
        write_weights(out, tensors, max_shard_size)
        if values.pop("quantization_config", None) or fp8 or FP8 in checkpoint.dtypes.values():
            values |= dict.fromkeys({"torch_dtype", "dtype"} & {"torch_dtype", *values}, "bfloat16")
            values |= {"quantization_config": quantization} if fp8 else {}
        write_companions(folder, out, values, config.max_position_embeddings)
    except BaseException:                        # Ctrl-C too: leave no incomplete folder
        shutil.rmtree(out, ignore_errors=True)
        if not made:
            out.mkdir()
        raise
    print(f"wrote {out}: {sum(file.stat().st_size for file in out.glob('*.safetensors')):,} bytes "
          "of weights")
    return 0


def write_companions(folder, out, values, window):
    """Write config.json with these values; copy the tokenizer, summary and other small files.

    window: the trained one [tokens], for a tokenizer_config.json that lacks it.
    """
    for file in folder.iterdir():
        if file.suffix in (".json", ".model", ".jinja") and file.name not in (INDEX, "config.json"):
            shutil.copyfile(file, out / file.name)
    complete_tokenizer_settings(folder, out, window)
    write_text(out / "config.json", json.dumps(values, indent=2) + "\n")


def complete_tokenizer_settings(folder, out, window):
    """Add to an older tokenizer_config.json of ours what others need for batches and long texts.

    Ours are known by a setting that other checkpoints do not have. The ids stay: a folder without
    a token for padding pads with its end token, as it did.
    """
    path, tokenizer = folder / "tokenizer_config.json", folder / "tokenizer.json"
    settings = read_json(path) if path.is_file() else {}
    if settings.get("split_special_tokens") is not True or not tokenizer.is_file():
        return
    try:
        padding = PAD if PAD in read_json(tokenizer)["model"]["vocab"] else settings["eos_token"]
    except (LookupError, TypeError):
        raise UserError(f"{path} names no eos_token, or {tokenizer} holds no vocabulary; copy "
                        "both again.") from None
    added = {"padding_side": "left", "pad_token": padding, "model_max_length": window}
    if settings.get("model_max_length") == NO_LIMIT:
        del settings["model_max_length"]
    if added.keys() - settings.keys():
        write_text(out / path.name, json.dumps(added | settings, ensure_ascii=False, indent=2)
                   + "\n")


def quantized(name, left_out):
    """Whether this matrix is in FP8: chosen by the release, and by no module name in left_out.

    left_out (a list, or None) is read as `transformers` reads modules_to_not_convert: a name is
    the beginning or the end of a module's name, and may be a regular expression.
    """
    module = name.removesuffix(".weight")
    try:
        return is_fp8(name) and not any(
            re.match(rf"(?:{part})(?:(?<=\.)|(?=\.|$))", module) or module.endswith(part)
            for part in left_out or [])
    except (TypeError, re.error):
        raise UserError(f"quantization_config.modules_to_not_convert={left_out!r} is no list of "
                        "module names; correct it in config.json.") from None


def released(checkpoint, kept):
    """(name, tensor) of each tensor: stacked experts one by one, FP8 kept or dequantised.

    kept(name): whether a matrix that is stored in FP8 stays so; None dequantises all of them.
    """
    for name in checkpoint.in_file_order(checkpoint.file_of):
        owner = name.removesuffix(SCALE)
        if kept and kept(owner) and checkpoint.dtypes.get(owner) == FP8:
            yield name, checkpoint.raw(name)     # unchanged: rounding again would change it
        elif name.endswith((".gate_up_proj", ".down_proj")):
            yield from unstack(name, checkpoint.read(name)).items()
        elif not name.endswith(SCALE):
            tensor = checkpoint.read(name)
            yield name, tensor.bfloat16() if checkpoint.dtypes[name] == FP8 else tensor


def with_head(tensors):
    """The same pairs and a tied head, which older folders of ours lack and other programs need."""
    for name, tensor in tensors:
        yield name, tensor
        if name == "model.embed_tokens.weight":
            yield "lm_head.weight", tensor.clone()


def without_mtp(tensors, num_layers):
    """The pairs of the main model alone: layers are numbered from 0, and MTP follows the last."""
    for name, tensor in tensors:
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if not layer or int(layer.group(1)) < num_layers:
            yield name, tensor


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
    show = commands.add_parser("info", help="what a checkpoint holds, from its headers alone; "
                                            "no weights are downloaded")
    change = commands.add_parser("convert", help="write a checkpoint in another form")
    for command in (show, change):
        command.add_argument("folder", metavar="DIR", help="a checkpoint, or its name on the hub")
    change.add_argument("out", metavar="OUT", type=Path,
                        help="a new folder, or a file whose name ends in .gguf, for llama.cpp")
    change.add_argument("--fp8", action="store_true",
                        help="matrices of attention and FFN in FP8 with one scale per block; "
                             "without it FP8 becomes bfloat16 and the rest is unchanged")
    change.add_argument("--no-mtp", action="store_true",
                        help="leave the MTP layers out, which some programs refuse")
    change.add_argument("--max-shard-size", default="5GB", metavar="N",
                        help="largest size of one file, for instance 500MB or 5GB [5GB]")
    return parser.parse_args(arguments)


def run(arguments):
    """The command that was asked for -> exit code."""
    if arguments.command == "info":
        return info(*headers(arguments.folder))
    if arguments.out.suffix == ".gguf":
        if arguments.fp8:
            raise UserError("--fp8: a GGUF file has no FP8; leave it out.")
        return write_gguf(locate(arguments.folder), arguments.out)
    return convert(locate(arguments.folder), arguments.out, arguments.fp8,
                   parse_size(arguments.max_shard_size), not arguments.no_mtp)


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
