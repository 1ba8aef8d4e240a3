"""The requests that a simulation serves, and what is measured of them.

    requests = poisson(100_000, rate=100, prompt=3909, output=1080)
    requests = read_trace("trace.jsonl")          {"arrival": 0.2, "prompt": 900, "output": 80} ...

`summarise` computes TTFT and TPOT: the time to the first token, from the arrival on, and the time
per output token after it, (end - first) / (output - 1). The second includes the handover. Only
requests of the middle half of arrivals count, so that neither the empty start nor the end does.
"""

import json
import math
import sys
from typing import NamedTuple

import numpy as np

from ..command import UserError

PERCENTILES = (50, 90, 95, 99)
LONGEST = 10**9                        # tokens of a prompt or an output in a file


class Requests(NamedTuple):
    """N requests, as arrays (N,) in the order of their arrival; lengths in tokens."""

    arrival: np.ndarray                # [s]
    prompt: np.ndarray                 # at least 1
    cached: np.ndarray                 # of the prompt, latents that are there already; below prompt
    output: np.ndarray                 # at least 1


class Served(NamedTuple):
    """What happened; arrays (N,). A window's tokens are those of the middle half of arrivals."""

    first: np.ndarray                  # when the first token came [s]
    end: np.ndarray                    # when the last one came [s]
    read: float                        # prompt tokens computed; more if a failure lost latents
    written: float                     # output tokens, counted step by step
    steps: int
    window: tuple                      # (begin, end) [s]
    window_read: float                 # prompt tokens in the window, cached ones included
    window_written: float              # output tokens in the window
    batch: float                       # sequences per decoding step of a unit, mean over steps


class Target(NamedTuple):
    """What a request must keep to be counted as good (its SLO, service level objective)."""

    first: float = 2.0                 # TTFT [s]; our choice
    per_token: float = 0.05            # TPOT [s]; 20 tokens/s, as the real service gives its users


TARGET = Target()


def poisson(count, rate, prompt, output, spread=1.0, cached=0.0, seed=0):
    """Requests at random times, `rate` per second -> Requests.

    prompt, output: mean lengths; spread: standard deviation / mean of these log-normal lengths (0:
    all are equal); cached: share of every prompt whose latents are there already.
    """
    if not (count >= 1 and rate > 0):
        raise ValueError(f"count={count} and rate={rate} must both be above 0.")
    generator = np.random.default_rng(seed)
    arrival = np.cumsum(generator.exponential(1 / rate, count))
    sigma = math.sqrt(math.log(1 + spread**2))

    def lengths(mean):
        drawn = mean * np.exp(sigma * generator.standard_normal(count) - sigma**2 / 2)
        return np.maximum(1, np.rint(drawn)).astype(np.int64)

    prompts = lengths(prompt)
    return Requests(arrival, prompts, np.minimum((cached * prompts).astype(np.int64), prompts - 1),
                    lengths(output))


def read_trace(path):
    """Requests of a file with one JSON object per line: arrival [s], prompt, output, cached [0].

    Raises UserError, with the number of the line, for what cannot be.
    """
    rows = []
    with open(path, encoding="utf-8-sig", errors="replace") as file:       # such a line is no JSON
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                arrival, prompt, output = (row[name] for name in ("arrival", "prompt", "output"))
                cached = row.get("cached", 0)
                lengths = prompt, cached, output
                possible = (0 <= arrival <= sys.float_info.max
                            and all(type(each) is int for each in lengths)
                            and 0 <= cached < prompt <= LONGEST and 1 <= output <= LONGEST)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                possible = False
            if not possible:
                raise UserError(
                    f"{path}, line {number}: {line.strip()[:60]!r} is no request; write "
                    '{"arrival": 0.5, "prompt": 900, "output": 80}, in seconds and tokens.')
            rows.append((arrival, prompt, cached, output))
    if not rows:
        raise UserError(f"{path} has no requests; write one JSON object per line.")
    arrival, *lengths = zip(*sorted(rows))
    return Requests(np.array(arrival, float), *(np.array(each, np.int64) for each in lengths))


def check(requests):
    """ValueError for Requests that cannot be."""
    arrival, prompt, cached, output = requests
    if not len(arrival):
        raise ValueError("there are 0 requests; give at least 1.")
    if not np.isfinite(arrival).all() or (np.diff(arrival) < 0).any():
        raise ValueError("the arrivals are not ascending and finite; sort them.")
    wrong = np.flatnonzero((cached < 0) | (cached >= prompt) | (output < 1))
    if len(wrong):
        first = wrong[0]
        raise ValueError(f"request {first} has prompt={prompt[first]}, cached={cached[first]} and "
                         f"output={output[first]}; give 0 <= cached < prompt, and output >= 1.")


def decode_steps(output, acceptance, seed):
    """Decoding steps after the first token, (N,) -> (N,).

    acceptance: probability that the draft of a step is accepted, which gives two tokens; None: no
    drafts.
    """
    left = output - 1
    if acceptance is None:
        return left
    generator, steps = np.random.default_rng(seed), []
    for tokens in left.tolist():
        made = np.cumsum(1 + (generator.random(tokens) < acceptance))
        steps.append(int(np.searchsorted(made, tokens)) + 1 if tokens else 0)
    return np.array(steps)


def summarise(requests, served, gpus, target=TARGET):
    """Figures of a simulation: percentiles of TTFT and TPOT [s], throughput, goodput.

    good is the share of requests within the target, goodput those per second and GPU. Raises
    UserError if the middle half of arrivals lasts no time.
    """
    begin, end = served.window
    seconds = end - begin
    if not seconds > 0:
        raise UserError(f"the middle half of the {len(requests.arrival)} requests arrives at "
                        f"{begin:g} s, so there is no time to measure; give more requests, at "
                        "different times.")
    counted = (requests.arrival >= begin) & (requests.arrival < end)
    first = (served.first - requests.arrival)[counted]
    further = np.maximum(1, requests.output[counted] - 1)
    per_token = (served.end - served.first)[counted] / further
    many = requests.output[counted] > 1
    good = (first <= target.first) & (per_token <= target.per_token)
    return {
        "requests": len(requests.arrival), "rate": counted.sum() / seconds,
        "ttft": percentiles(first), "tpot": percentiles(per_token[many]),
        "input_tokens_per_s": served.window_read / seconds,
        "output_tokens_per_s": served.window_written / seconds,
        "output_tokens_per_s_and_gpu": served.window_written / seconds / gpus,
        "good": good.mean(), "goodput_per_s_and_gpu": good.sum() / seconds / gpus,
        "batch": served.batch, "steps": served.steps}


def percentiles(values):
    """{percentile: value}; empty if there are none."""
    if not len(values):
        return {}
    return dict(zip(map(str, PERCENTILES), np.percentile(values, PERCENTILES).tolist()))
