"""Continue a text with a trained model: `python generate.py --prompt "def "`.

The model is a run folder of train_tiny.py or any checkpoint in the same format. Without --model it
is runs/tiny if that exists, or else the shipped checkpoint, checkpoints/tiny. Without --prompt the
text comes from a pipe; at a terminal you can type several prompts, one per line.
"""

import json
import sys
import time

from minidsv3 import hf
from minidsv3.command import Parser, UserError, answer, for_terminal
from minidsv3.data.foreign import read_tokenizer
from minidsv3.device import choose_device, choose_threads
from minidsv3.infer.generation import statistics
from minidsv3.infer.text import complete

GREEN, PLAIN = "\033[32m", "\033[0m"             # colour codes of a terminal


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    what = parser.add_argument_group("what")
    what.add_argument("--model", metavar="DIR",
                      help="checkpoint folder, or owner/name on the Hugging Face hub "
                           "[runs/tiny, else checkpoints/tiny]")
    what.add_argument("--prompt", help="text to continue; an empty one starts a new document "
                                       "[read from a pipe or from the terminal]")
    what.add_argument("--fim-prefix", metavar="TEXT",
                      help="text before a gap to fill; with --fim-suffix")
    what.add_argument("--fim-suffix", metavar="TEXT",
                      help="text after the gap; with --fim-prefix")
    long = parser.add_argument_group("how long")
    long.add_argument("--max-new-tokens", type=int, default=200, metavar="N",
                      help="largest number of new tokens [200]")
    long.add_argument("--stop", action="append", default=[], metavar="TEXT",
                      help="end before this text; can be given several times [none]")
    where = parser.add_argument_group("where")
    where.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    where.add_argument("--threads", type=int, metavar="N", help="CPU threads [one per core]")
    how = parser.add_argument_group("how")
    how.add_argument("--temperature", type=float, default=0.7, metavar="T",
                     help="0 always takes the most likely token, 1 samples from the model's "
                          "probabilities as they are [0.7]")
    how.add_argument("--top-k", type=int, metavar="K",
                     help="sample among the K most likely tokens [all]")
    how.add_argument("--top-p", type=float, default=0.95, metavar="P",
                     help="sample among the most likely tokens that together have probability P "
                          "[0.95]")
    how.add_argument("--min-p", type=float, default=0.0, metavar="P",
                     help="sample among tokens with at least P times the probability of the most "
                          "likely one [0]")
    how.add_argument("--seed", type=int, default=0, help="seed of the sampling [0]")
    how.add_argument("--speculative", type=int, default=0, metavar="K",
                     help="tokens that the MTP module drafts and the main model verifies in one "
                          "pass; 1 or 2 speed up most [0]")
    how.add_argument("--show-drafts", action="store_true",
                     help="print accepted drafts in green; with --speculative")
    how.add_argument("--stats", action="store_true",
                     help="end with one line of JSON: tokens, seconds, ...")
    return parser.parse_args(arguments)


def prompts(arguments):
    """Yield every text to continue as (prompt, suffix or None)."""
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
        print("Type the beginning of a text; an empty line ends the program.")
        while line := sys.stdin.readline().rstrip("\r\n"):             # also "" at the end of file
            yield line, None


def piped_in():
    """The text on stdin: None at a terminal, an empty text if nothing can be read."""
    try:
        if sys.stdin.isatty():
            return None
        return sys.stdin.buffer.read().decode("utf-8-sig", "replace")  # without a byte order mark
    except (AttributeError, OSError, ValueError):
        return ""


def run(arguments):
    """Stream the continuations to the terminal -> exit code."""
    if arguments.show_drafts and not arguments.speculative:
        raise UserError("--show-drafts needs drafts, and there are none; add --speculative 2.")
    device = choose_device(arguments.device)
    choose_threads(arguments.threads)
    folder = hf.find(arguments.model)
    model = hf.load(folder, device=device)
    tokenizer = read_tokenizer(folder, model.config)
    settings = {name: getattr(arguments, name) for name in (
        "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "speculative", "seed", "stop")}
    # A bad setting is refused before a prompt is read; the length is judged with each prompt.
    first = settings | {"max_new_tokens": min(1, arguments.max_new_tokens)}
    complete(model, tokenizer, "a", **first)
    for prompt, suffix in prompts(arguments):
        pieces = complete(model, tokenizer, prompt, suffix=suffix, **settings)
        write(pieces, prompt, suffix, arguments)
    return 0


def write(pieces, prompt, suffix, arguments):
    """Print one continuation piece by piece as it is generated, and its figures with --stats."""
    begin, moments = time.perf_counter(), []
    print(prompt, end="", flush=True)
    for piece in pieces:
        if piece.token is not None:
            moments.append(time.perf_counter() - begin)
        green = arguments.show_drafts and piece.drafted
        text = for_terminal(piece.text)
        print(f"{GREEN}{text}{PLAIN}" if green else text, end="", flush=True)
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
