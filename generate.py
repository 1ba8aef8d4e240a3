"""Let a trained model write: `python generate.py --prompt "def "`.

The model is a run folder of train_tiny.py or any checkpoint in the same format; without --model it
is runs/tiny, or else the small trained model in checkpoints/tiny. Without --prompt a text that is
piped in is continued; at a terminal you are asked for one line after the other.
"""

import json
import sys
import time

from minidsv3 import hf
from minidsv3.command import Parser, UserError, answer
from minidsv3.data.foreign import read_tokenizer
from minidsv3.device import choose_device, choose_threads
from minidsv3.infer.generation import statistics
from minidsv3.infer.text import complete

GREEN, PLAIN = "\033[32m", "\033[0m"             # of a terminal


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    what = parser.add_argument_group("what")
    what.add_argument("--model", metavar="DIR",
                      help="checkpoint folder, or owner/name on the Hugging Face hub "
                           "[runs/tiny, else checkpoints/tiny]")
    what.add_argument("--prompt", help="text to continue; empty starts a new document "
                                       "[what is piped in, or asked for]")
    what.add_argument("--fim-prefix", metavar="TEXT",
                      help="with --fim-suffix: fill the gap between the two")
    what.add_argument("--fim-suffix", metavar="TEXT", help="what shall follow the new text")
    long = parser.add_argument_group("how long")
    long.add_argument("--max-new-tokens", type=int, default=200, metavar="N",
                      help="tokens to write at most [200]")
    long.add_argument("--stop", action="append", default=[], metavar="TEXT",
                      help="end before this text; may be given several times [none]")
    where = parser.add_argument_group("where")
    where.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    where.add_argument("--threads", type=int, metavar="N", help="CPU threads [one per core]")
    how = parser.add_argument_group("how")
    how.add_argument("--temperature", type=float, default=0.7, metavar="T",
                     help="0 always takes the likeliest token, 1 samples as trained [0.7]")
    how.add_argument("--top-k", type=int, metavar="K",
                     help="sample among the K likeliest tokens [all]")
    how.add_argument("--top-p", type=float, default=0.95, metavar="P",
                     help="sample among the likeliest tokens that together reach P [0.95]")
    how.add_argument("--min-p", type=float, default=0.0, metavar="P",
                     help="sample among tokens of at least P times the likeliest's probability [0]")
    how.add_argument("--seed", type=int, default=0, help="of the sampling [0]")
    how.add_argument("--speculative", type=int, default=0, metavar="K",
                     help="tokens that the MTP module drafts for the main model to verify, so that "
                          "several come of one pass; 1 or 2 pay most [0]")
    how.add_argument("--show-drafts", action="store_true",
                     help="accepted drafts in green; with --speculative")
    how.add_argument("--stats", action="store_true",
                     help="end with one line of JSON: tokens, seconds, ...")
    return parser.parse_args(arguments)


def prompts(arguments):
    """What shall be continued, (prompt, suffix or None), one after the other."""
    gap = (arguments.fim_prefix, arguments.fim_suffix)
    if gap != (None, None):
        if None in gap or arguments.prompt is not None:
            raise UserError("--fim-prefix and --fim-suffix belong together, without --prompt; "
                            "give both, one of them may be empty.")
        yield gap
    elif arguments.prompt is not None:
        yield arguments.prompt, None
    elif (text := piped_in()) is not None:
        yield text, None
    else:
        print("Type the beginning of a text; an empty line ends.")
        while line := sys.stdin.readline().rstrip("\r\n"):             # also "" at the end of file
            yield line, None


def piped_in():
    """The text on stdin: None at a terminal, an empty one where nothing can be read."""
    try:
        return None if sys.stdin.isatty() else sys.stdin.buffer.read().decode("utf-8", "replace")
    except (AttributeError, OSError, ValueError):
        return ""


def run(arguments):
    """Stream the continuations to the terminal -> exit code."""
    if arguments.show_drafts and not arguments.speculative:
        raise UserError("--show-drafts shows drafts, and there are none; add --speculative 2.")
    device = choose_device(arguments.device)
    choose_threads(arguments.threads)
    folder = hf.find(arguments.model)
    model = hf.load(folder, device=device)
    tokenizer = read_tokenizer(folder, model.config)
    settings = {name: getattr(arguments, name) for name in (
        "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "speculative", "seed", "stop")}
    complete(model, tokenizer, "", **settings)   # refuses a bad one, before any prompt is read
    for prompt, suffix in prompts(arguments):
        pieces = complete(model, tokenizer, prompt, suffix=suffix, **settings)
        write(pieces, prompt, suffix, arguments)
    return 0


def write(pieces, prompt, suffix, arguments):
    """One continuation, piece by piece as it comes, and its figures if asked for."""
    begin, moments = time.perf_counter(), []
    print(prompt, end="", flush=True)
    for piece in pieces:
        if piece.token is not None:
            moments.append(time.perf_counter() - begin)
        green = arguments.show_drafts and piece.drafted
        print(f"{GREEN}{piece.text}{PLAIN}" if green else piece.text, end="", flush=True)
    print(suffix or "")
    if arguments.stats:
        new = sum(token not in pieces.sequence.stop for token in pieces.sequence.new)
        figures = statistics(pieces.decoder, new, moments[-1]) | {"prefill_s": moments[0]}
        print(json.dumps({name: round(value, 4) if isinstance(value, float) else value
                          for name, value in figures.items()}))


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
