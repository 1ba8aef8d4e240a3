"""Let a trained model write: `python generate.py --prompt "def "`.

The model is a run folder of train_tiny.py or any checkpoint in the same format; without --model it
is runs/tiny, or else the small trained model in checkpoints/tiny.
"""

import json
import sys
import time
from pathlib import Path

import torch

from minidsv3 import hf
from minidsv3.command import Parser, answer
from minidsv3.data.foreign import read_tokenizer
from minidsv3.device import choose_device, has_fast_bf16
from minidsv3.infer.text import complete

HERE = Path(__file__).resolve().parent


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    what = parser.add_argument_group("what")
    what.add_argument("--model", metavar="DIR",
                      help="checkpoint folder, or owner/name on the Hugging Face hub "
                           "[runs/tiny, else checkpoints/tiny]")
    what.add_argument("--prompt", default="", help="text to continue; empty starts a new document")
    long = parser.add_argument_group("how long")
    long.add_argument("--max-new-tokens", type=int, default=200, metavar="N",
                      help="tokens to write at most [200]")
    where = parser.add_argument_group("where")
    where.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    how = parser.add_argument_group("how")
    how.add_argument("--temperature", type=float, default=0.7, metavar="T",
                     help="0 always takes the likeliest token, 1 samples as trained [0.7]")
    how.add_argument("--top-k", type=int, metavar="K",
                     help="sample among the K likeliest tokens [all]")
    how.add_argument("--top-p", type=float, default=0.95, metavar="P",
                     help="sample among the likeliest tokens that together reach P [0.95]")
    how.add_argument("--seed", type=int, default=0, help="of the sampling [0]")
    how.add_argument("--stats", action="store_true",
                     help="end with one line of JSON: tokens, seconds, ...")
    return parser.parse_args(arguments)


def find_model(name):
    """The folder that --model names, or the best there is. FileNotFoundError if there is none."""
    if name:
        return hf.locate(name)
    for folder in (Path("runs/tiny"), HERE / "checkpoints/tiny"):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    raise FileNotFoundError("no model in runs/tiny yet; make one with: python train_tiny.py")


def run(arguments):
    """Stream the continuation to the terminal -> exit code."""
    device = choose_device(arguments.device)
    folder = find_model(arguments.model)
    dtype = None if has_fast_bf16(device) else torch.float32           # elsewhere bf16 is slow
    model = hf.load(folder, dtype, device)
    tokenizer = read_tokenizer(folder, model.config)
    begin, moments, new = time.perf_counter(), [], 0
    for token, text in complete(
            model, tokenizer, arguments.prompt, arguments.max_new_tokens, seed=arguments.seed,
            temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p):
        if not moments:
            print(arguments.prompt, end="")      # only now: the settings are checked
        if token is not None:
            moments.append(time.perf_counter() - begin)
            new += token != model.config.eos_token_id
        print(text, end="", flush=True)
    print()
    if arguments.stats:
        length = len(tokenizer.encode_prompt(arguments.prompt)) + len(moments)
        print(json.dumps({"new_tokens": new, "seconds": round(moments[-1], 4),
                          "tokens_per_s": round(new / moments[-1], 1),
                          "prefill_s": round(moments[0], 4),
                          "cache_bytes": model.new_cache(1, length).nbytes,
                          "passes": len(moments), "acceptance": []}))
    return 0


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
