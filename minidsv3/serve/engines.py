"""Prefill and decode in one process or in two: `python -m minidsv3.serve.engines --requests 64`.

Serves the same requests twice. The colocated form is one process that takes turns. The separated
form is a prefill process and a decode process; the first hands its latents to the second. The
command compares their times, counts the bytes handed over, and checks every text against the one
that `generate` makes of the same prompt alone.

In the separated form no sequence that is being decoded waits for another one's prompt. This costs a
second copy of the weights and the bytes handed over; and if both processes share one machine, each
has half of its cores. Compare on an idle machine: the threads of a process wait for each other, so
any other load slows the colocated form more. `handover.py` defines the engines, `serving.py` runs
them and says where requests wait.
"""

import json
import random
import sys
from functools import partial

import torch
from tqdm import tqdm

from .. import hf
from ..command import Parser, UserError, answer
from ..data import corpus
from ..data.foreign import read_tokenizer
from ..device import choose_device
from ..infer.decoder import Sequence
from ..infer.generation import MOST_DRAFTS, generate
from .serving import serve_colocated, serve_separated

SHORTEST, LONGEST = 16, 200                      # prompts [tokens]
ROWS = {"time to first token [ms]": "first_token_ms", "time per further token [ms]": "per_token_ms"}


def synthetic_prompts(tokenizer, config, arguments):
    """The first tokens of sources of the standard library: a list of tokens for each request.

    The seed decides which sources and how many tokens. Prompts stay within the window if it has
    room for SHORTEST tokens. Raises UserError if the new tokens go far beyond it.
    """
    room = config.max_position_embeddings - arguments.max_new_tokens
    longest = min(LONGEST, max(SHORTEST, room))
    config.check_length(longest + arguments.max_new_tokens)
    generator, documents = random.Random(arguments.seed), corpus.split(corpus.load().documents)[1]
    prompts = []
    while len(prompts) < arguments.requests:
        length = generator.randint(SHORTEST, longest)
        text = generator.choice(documents).text[:16 * length]
        prompts.append(tokenizer.encode_prompt(text)[:length])
    return prompts


def parse_arguments(arguments=None):
    """Parse the command line; UserError for a value out of range."""
    parser = Parser(prog="python -m minidsv3.serve.engines", description=__doc__)
    what = parser.add_argument_group("what")
    what.add_argument("--model", metavar="DIR", help="checkpoint folder, or owner/name on the "
                      "Hugging Face hub [runs/tiny, else checkpoints/tiny]")
    what.add_argument("--requests", type=int, default=64, metavar="N",
                      help="how many requests to serve [64]")
    what.add_argument("--max-new-tokens", type=int, default=32, metavar="N",
                      help="tokens to write for each [32]")
    what.add_argument("--rate", type=float, metavar="PER_SECOND",
                      help="requests per second, which arrive at random times [all at once]")
    what.add_argument("--seed", type=int, default=0, help="for prompts and arrival times [0]")
    how = parser.add_argument_group("how")
    how.add_argument("--budget", type=int, default=256, metavar="TOKENS",
                     help="prompt tokens per prefill pass; lower it if long prompts hold up "
                     "others [256]")
    how.add_argument("--places", type=int, default=16, metavar="N",
                     help="sequences to decode together; halve it if memory runs out [16]")
    how.add_argument("--speculative", type=int, default=0, metavar="N",
                     help="tokens that the MTP module drafts per step [0]")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    how.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parsed = parser.parse_args(arguments)
    for name, least in (("requests", 1), ("max_new_tokens", 1), ("budget", 1), ("places", 1),
                        ("speculative", 0), ("seed", 0)):
        if getattr(parsed, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(parsed, name)} must be at "
                            f"least {least}.")
    if parsed.speculative > MOST_DRAFTS:
        raise UserError(f"--speculative {parsed.speculative} must be at most {MOST_DRAFTS}.")
    if parsed.rate is not None and not 0.001 <= parsed.rate < float("inf"):
        raise UserError(f"--rate {parsed.rate} must be 0.001 or more requests per second; leave it "
                        "out for all at once.")
    return parsed


def arrival_times(arguments):
    """When each request arrives [s], as in a Poisson process; None: all at once."""
    if arguments.rate is None:
        return None
    generator, times = random.Random(arguments.seed), [0.0]
    while len(times) < arguments.requests:
        times.append(times[-1] + generator.expovariate(arguments.rate))
    return times


def measure(arguments, folder, device):
    """Serve the requests in both forms and compare the texts -> {form: figures}."""
    # float32: in bfloat16, rounding depends on the size of the batch and changes too many texts.
    model = hf.load(folder, torch.float32, device)
    tokenizer = read_tokenizer(folder, model.config)
    how = {"places": arguments.places, "budget": arguments.budget,
           "speculative": arguments.speculative, "arrivals": arrival_times(arguments)}
    prompts = synthetic_prompts(tokenizer, model.config, arguments)
    forms = {"colocated": partial(serve_colocated, model),
             "separated": partial(serve_separated, folder, dtype=torch.float32,
                                  device=str(device))}
    alone, figures = [], {}
    with tqdm(total=3 * len(prompts), unit="request", leave=False) as bar:
        bar.set_description("alone")
        for prompt in prompts:
            result = generate(model, [torch.tensor(prompt)], arguments.max_new_tokens,
                              speculative=arguments.speculative)
            alone.append(result.tokens[0].tolist())
            bar.update()
        for form, serve in forms.items():
            bar.set_description(form)
            requests = [Sequence(prompt, arguments.max_new_tokens, model.config.end_ids)
                        for prompt in prompts]
            served = serve(requests, progress=bar.update, **how)
            equal = sum(served.new[number] == text for number, text in enumerate(alone))
            figures[form] = served.figures() | {"equal_texts": equal}
    return figures


def run(arguments):
    """Serve, and print the table or the JSON object -> exit code."""
    device, folder = choose_device(arguments.device), hf.find(arguments.model)
    figures = measure(arguments, folder, device)
    if arguments.json:
        print(json.dumps(figures))
        return 0
    both = list(figures.values())
    threads = torch.get_num_threads()
    print(f"{folder} on {device}, float32: {arguments.requests} requests, "
          f"{arguments.max_new_tokens} new tokens each, "
          + ("all at once" if arguments.rate is None else f"{arguments.rate:g} per second"))
    print(f"threads: colocated {threads}, separated 2 processes of {max(1, threads // 2)}\n")
    print(f"{'':36}{'colocated':>12}{'separated':>12}")
    for label, name in ROWS.items():
        for share in ("median", "95"):
            values = "".join(f"{each[f'{name}_{share}']:12,.1f}" for each in both)
            print(f"{label + ', ' + share.replace('95', '95 %'):36}{values}")
    print(f"{'tokens per second':36}" + "".join(f"{each['tokens_per_s']:12,.0f}" for each in both))
    sent, expanded = both[1]["handed_over_bytes"], both[1]["expanded_bytes"]
    print(f"\nhanded over: {sent / 1e6:,.2f} MB of latents; expanded keys and values would be "
          f"{expanded / 1e6:,.2f} MB, {expanded / sent:.1f} times as much")
    for form, each in figures.items():
        print(f"{form}: {each['equal_texts']} of {arguments.requests} texts equal those made "
              "alone")
    return 0


def main(arguments=None):
    """The command; bad input ends in one line and exit code 2."""
    return answer(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
