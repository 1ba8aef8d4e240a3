"""Prefill and decode on separate GPUs, or together: a simulated service of DeepSeek-V3.

    python -m minidsv3.serve.disaggregate
    python -m minidsv3.serve.disaggregate --rate 12 --acceptance 0.85 --deployment service

Serves the same random requests by each deployment, at equal load per node, and prints the times
that users wait and the tokens per GPU. Then it compares the speed of the units with the published
day of the real service. Draws one decoding step. Nothing was fitted to that day: all assumptions
are constants of `Assumptions` in `step_cost.py`. `study/deployment.py` answers questions with it.

    service    the real service's units: prefill on 4 nodes (EP32), decode on 18 nodes (EP144)
    report     the report's units (section 3.4): prefill on 32 GPUs, decode on 320
    chunked    the GPUs of `service` as units of 6 nodes that do both; prompts in chunks
    whole      the same; prompts as a whole, while the decoding waits
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

from ..command import Parser, UserError, answer, check_out
from ..config import ModelConfig
from ..measure import cost
from .pools import simulate
from .requests import TARGET, poisson, read_trace, summarise
from .step_cost import ASSUMED, Layout, StepCost, Work
from .units import Unit

DEPLOYMENTS = ("service", "report", "chunked", "whole")
PREFILL_CHUNK = 2048                   # prompt tokens per GPU and step of a unit for prefill
MIXED_CHUNK = 64                       # the same beside decoding; the study tries others


class Day(NamedTuple):
    """One day of the real service, February 2025, as published (open-infra index, day 6)."""

    input_tokens: float = 608e9
    cached: float = 342 / 608          # of them, found in a cache on disk
    output_tokens: float = 168e9
    tokens_per_user: float = 21        # per second; published as 20 to 22
    context: float = 4989              # mean cached tokens per output token
    prefill_per_node: float = 73.7e3   # input tokens/s, cached ones included
    decode_per_node: float = 14.8e3    # output tokens/s
    nodes: float = 226.75              # mean; at most 278
    dollars: float = 87_072

    @property
    def output(self):
        """Mean output length O [tokens]: log-normal lengths as broad as their mean have the mean
        context P + O, and P / O is known."""
        return self.context / (1 + self.input_tokens / self.output_tokens)

    @property
    def prompt(self):
        """Mean prompt length P [tokens]."""
        return self.context - self.output

    @property
    def rate(self):
        """Requests per second and node."""
        return self.output_tokens / self.output / 86_400 / self.nodes


DAY = Day()


class Deployment(NamedTuple):
    """Units that serve together, and the seconds in which a GPU hands over so many tokens."""

    units: list
    handover: object

    @property
    def gpus(self):
        """Of all units."""
        return sum(unit.gpus for unit in self.units)


def deploy(name, drafts=0, chunk=None, cache="mla", assume=ASSUMED):
    """A deployment by its name; "service:4" has 4 units for prefill instead of its usual number.

    drafts: 0, or 1 for MTP; chunk: prompt tokens per GPU and step; cache: what is handed over, a
    key of `cost.cache_bytes`.
    """
    config = ModelConfig.preset("v3-671b")
    name, _, readers = name.partition(":")
    bytes_per_token = cost.cache_bytes(config)[cache]

    def handover(tokens):
        return assume.latency + tokens * bytes_per_token / assume.infiniband

    def units(number, role, layout, chunk=0, whole=False):
        seconds = StepCost(config, layout._replace(drafts=drafts), assume)
        # All tokens of a prompt's chunk are on the GPUs that share its heads.
        longest = float("inf") if whole else chunk * layout.tensor
        return number * [Unit(role, layout.gpus, seconds, chunk * layout.gpus, longest,
                              room=seconds.room)]

    reading, mixed = chunk or PREFILL_CHUNK, chunk or MIXED_CHUNK
    match name:
        case "service":
            parts = [units(int(readers or 3), "prefill", Layout(32, 9), reading),
                     units(1, "decode", Layout(144, 2, two_hops=False))]
        case "report":
            parts = [units(int(readers or 7), "prefill", Layout(32, 9, tensor=4), reading),
                     units(1, "decode", Layout(320, 1, tensor=4, shared_as_routed=True,
                                               two_hops=False))]
        case "chunked":
            parts = [units(5, "both", Layout(48, 6), mixed)]
        case "whole":
            parts = [units(5, "both", Layout(48, 6), reading, whole=True)]
    return Deployment(sum(parts, []), handover)


# ---- beside the published day ----

def largest_batch(seconds, per_token, context):
    """Sequences of a unit, the most whose steps take at most per_token seconds, and that fit."""
    low, high = 0, int(seconds.room / context)
    while low < high:
        middle = (low + high + 1) // 2
        fast = seconds(Work(sequences=middle, context=middle * context)) <= per_token
        low, high = (middle, high) if fast else (low, middle - 1)
    return low


def calibrate(day=DAY, assume=ASSUMED, requests=30_000, seed=0):
    """The service's units under more load than they can bear, beside the published figures.

    Prefill reads as fast as it can. Decode holds as many sequences as leave each user the
    published speed. -> {figure: (ours, published)}
    """
    prefill, *_, decode = deploy("service", assume=assume).units
    nodes = {unit.role: unit.gpus / assume.gpus_per_node for unit in (prefill, decode)}
    decode = decode._replace(places=largest_batch(decode.seconds, 1 / day.tokens_per_user,
                                                  day.context))
    full = decode.seconds(Work(sequences=decode.places, context=decode.places * day.context))
    instant = Unit("prefill", 8, lambda work: 0.0, budget=10**9)
    endless = Unit("decode", 8, lambda work: 1e-3)

    def full_load(units, count, rate):
        asked = poisson(count, rate, day.prompt, day.output, cached=day.cached, seed=seed)
        return summarise(asked, simulate(asked, units), 1)

    # Three times the published speed, and 1.3 times that of the batch.
    reading = full_load([prefill, endless], requests, 3 * day.prefill_per_node * nodes["prefill"]
                        / day.prompt)["input_tokens_per_s"] / nodes["prefill"]
    writing = full_load([instant, decode], 3 * requests, 1.3 * decode.places / full
                        / day.output)["output_tokens_per_s"] / nodes["decode"]
    needed = (day.input_tokens / reading + day.output_tokens / writing) / 86_400
    return {
        "prefill_tokens_per_s_and_node": (reading, day.prefill_per_node),
        "decode_tokens_per_s_and_node": (writing, day.decode_per_node),
        "nodes": (needed, day.nodes),
        "dollars": (needed * assume.gpus_per_node * 24 * assume.dollars_per_hour, day.dollars),
        "sequences_per_decode_gpu": (decode.places / decode.gpus, None)}


# ---- the command ----

def parse_arguments(arguments=None):
    """Parse the command line; UserError for a value out of range."""
    day = DAY
    parser = Parser(prog="python -m minidsv3.serve.disaggregate", description=__doc__)
    what = parser.add_argument_group("what")
    what.add_argument("--deployment", choices=DEPLOYMENTS, help="one of them [all]")
    what.add_argument("--acceptance", type=float, metavar="SHARE", help="draft one token per step "
                      "with MTP; this share of drafts is accepted, for instance 0.85 [no drafts]")
    what.add_argument("--chunk", type=int, metavar="TOKENS", help="prompt tokens per GPU and step "
                      f"[{PREFILL_CHUNK}; {MIXED_CHUNK} for chunked]")
    load = parser.add_argument_group("load")
    load.add_argument("--requests", type=int, default=50_000, metavar="N", help="how many; they "
                      "should last for minutes [50,000]")
    load.add_argument("--rate", type=float, default=day.rate, metavar="PER_SECOND", help="requests "
                      f"per second and node of 8 GPUs [{day.rate:.2f}, the published day's]")
    load.add_argument("--prompt", type=float, default=day.prompt, metavar="TOKENS",
                      help=f"mean length [{day.prompt:,.0f}, the day's]")
    load.add_argument("--output", type=float, default=day.output, metavar="TOKENS",
                      help=f"mean length [{day.output:,.0f}, the day's]")
    load.add_argument("--spread", type=float, default=1.0, metavar="RATIO",
                      help="standard deviation / mean of both; 0: equal lengths [1]")
    load.add_argument("--cached", type=float, default=day.cached, metavar="SHARE",
                      help=f"of each prompt, found in a cache [{day.cached:.3f}, the day's]")
    load.add_argument("--trace", metavar="FILE", help="requests from a file instead: per line "
                      '{"arrival": s, "prompt": tokens, "output": tokens, "cached": tokens}')
    load.add_argument("--seed", type=int, default=0, help="of times, lengths and drafts [0]")
    how = parser.add_argument_group("output")
    how.add_argument("--out", type=Path, default=Path("runs/decode_step.png"), metavar="PNG",
                     help="the picture; an existing one is replaced [runs/decode_step.png]")
    how.add_argument("--json", action="store_true", help="print JSON, in seconds and tokens")
    options = parser.parse_args(arguments)
    for name, least, most in (
            ("requests", 100, 10**7), ("rate", 1e-3, 1e4), ("prompt", 1, 1e5), ("output", 1, 1e5),
            ("spread", 0, 3), ("cached", 0, 0.999), ("acceptance", 0, 1), ("chunk", 1, 10**6),
            ("seed", 0, 2**32)):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} {value} must be from {least:g} to {most:g}.")
    check_out(options.out, ".png")
    return options


def serve(options, name):
    """Simulate one deployment as the options say -> its figures."""
    deployed = deploy(name, drafts=options.acceptance is not None, chunk=options.chunk)
    if options.trace:
        requests = read_trace(options.trace)
    else:
        rate = options.rate * deployed.gpus / ASSUMED.gpus_per_node
        requests = poisson(options.requests, rate, options.prompt, options.output, options.spread,
                           options.cached, options.seed)
    try:
        served = simulate(requests, deployed.units, deployed.handover, options.acceptance,
                          options.seed)
    except ValueError as error:                  # a request that is too long for a unit
        raise UserError(f"{name}: {error}") from None
    return {"gpus": deployed.gpus} | summarise(requests, served, deployed.gpus)


def run(arguments):
    """Simulate, calibrate, draw and print -> exit code."""
    options = parse_arguments(arguments)
    names = [options.deployment] if options.deployment else DEPLOYMENTS
    found = {name: serve(options, name) for name in names}
    beside = calibrate(seed=options.seed)
    decode = deploy("service").units[-1]
    batch = round(beside["sequences_per_decode_gpu"][0] * decode.gpus)
    from ..measure.plots import save
    from .step_picture import draw
    save(draw(decode.seconds, Work(sequences=batch, context=batch * DAY.context)), options.out)
    if options.json:
        print(json.dumps({"assumptions": ASSUMED._asdict(), "target": TARGET._asdict(),
                          "deployments": found, "published_day": beside,
                          "picture": str(options.out)}, indent=1))
    else:
        print(as_text(options, found, beside))


def as_text(options, found, beside):
    """Both tables."""
    source = options.trace or (f"{options.rate:.3g} requests per second and node, prompts of "
                               f"{options.prompt:,.0f} and outputs of {options.output:,.0f} tokens")
    target = TARGET
    lines = [source, "deployment   GPUs    TTFT, median, 95 %, 99 % [s]    TPOT, the same [ms]   "
             "output tokens/s per GPU   in time"]
    for name, each in found.items():
        shares = ("50", "95", "99")
        first = "".join(f"{each['ttft'].get(share, float('nan')):10.2f}" for share in shares)
        per_token = "".join(f"{1e3 * each['tpot'].get(share, float('nan')):8.1f}"
                            for share in shares)
        lines.append(f"{name:12}{each['gpus']:5}{first}{per_token}"
                     f"{each['output_tokens_per_s_and_gpu']:26,.0f}{each['good']:10.1%}")
    lines += [f"in time: TTFT up to {target.first:g} s and TPOT up to "
              f"{1e3 * target.per_token:g} ms", "",
              "the service's units under full load, beside the published day (nothing is fitted)",
              f"{'':34}{'ours':>12}{'published':>12}{'ratio':>8}"]
    for name, (ours, published) in beside.items():
        other = f"{published:12,.2f}{ours / published:8.2f}" if published else ""
        lines.append(f"{name.replace('_', ' '):34}{ours:12,.2f}{other}")
    return "\n".join([*lines, f"wrote {options.out}"])


def main(arguments=None):
    """The command; bad input ends in one line and exit code 2."""
    return answer(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
