"""Let a trained model write: `python generate.py --prompt "def "`.

The model is a run folder of train_tiny.py or any checkpoint in the same format; without --model it
is runs/tiny, or else the small trained model in checkpoints/tiny.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from minidsv3 import hf
from minidsv3.data.tokenizer import Tokenizer
from minidsv3.device import choose_device
from minidsv3.infer.sampling import TextStream, stream

HERE = Path(__file__).resolve().parent


def parse_arguments(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="DIR", help="checkpoint folder [runs/tiny, else checkpoints/tiny]")
    parser.add_argument("--prompt", default="", help="text to continue; empty starts a new document")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="tokens to write at most [200]")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T",
                        help="0 always takes the likeliest token, 1 samples as trained [0.7]")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest tokens [all]")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="P",
                        help="sample among the likeliest tokens that together reach P [0.95]")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling [0]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    parser.add_argument("--stats", action="store_true", help="end with one line of JSON: tokens, seconds, ...")
    return parser.parse_args(arguments)


def find_model(name):
    """The folder that --model names, or the best one there is. FileNotFoundError if there is none."""
    candidates = [Path(name)] if name else [Path("runs/tiny"), HERE / "checkpoints/tiny"]
    for folder in candidates:
        if (folder / "config.json").is_file() and (name or (folder / "model.safetensors").is_file()):
            return folder
    if name:
        raise FileNotFoundError(f"no model in {name}: it needs config.json and model.safetensors; "
                                "train one with: python train_tiny.py --out DIR")
    raise FileNotFoundError("no model yet; train one with: python train_tiny.py")


def run(arguments):
    """Stream the continuation to the terminal -> exit code."""
    device = choose_device(arguments.device)
    folder = find_model(arguments.model)
    model, tokenizer = hf.load(folder, device=device), Tokenizer.load(folder)
    prompt = tokenizer.encode(arguments.prompt) or [model.config.eos_token_id]
    tokens = torch.tensor([prompt], device=device)                     # (1, T)
    text = TextStream()
    begin = time.perf_counter()
    moments = []
    steps = stream(model, tokens, arguments.max_new_tokens, arguments.temperature, arguments.top_k,
                   arguments.top_p, arguments.seed)
    for step in steps:
        if not moments:
            print(arguments.prompt, end="", flush=True)                # only now: settings are checked
        moments.append(time.perf_counter() - begin)
        if step.item() != model.config.eos_token_id:
            print(text.feed(tokenizer.decode_bytes([step.item()])), end="", flush=True)
    print(text.feed(b"", final=True))
    if arguments.stats:
        print(json.dumps({"new_tokens": len(moments), "seconds": round(moments[-1], 4),
                          "tokens_per_s": round(len(moments) / moments[-1], 1),
                          "prefill_s": round(moments[0], 4), "passes": len(moments),
                          "cache_bytes": model.new_cache(1, len(prompt) + len(moments)).nbytes}))
    return 0


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")     # a console that lacks a letter
    try:
        return run(parse_arguments(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 130


if __name__ == "__main__":
    sys.exit(main())
