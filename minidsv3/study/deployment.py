"""When do separate GPUs for prefill and decode pay? The report's section 3.4, simulated.

    python -m minidsv3.study.deployment               all of it, about 20 minutes
    python -m minidsv3.study.deployment --reduced     fewer loads and shorter runs, 1 minute

Simulates the deployments of `serve/disaggregate.py` at equal numbers of GPUs, and answers:

    load        TTFT and TPOT at many loads, separated and together
    mixes       the highest load at which nine of ten requests are in time, by lengths of prompt
                and output; each deployment with the best division or chunk of those tried
    handover    what it costs with MLA, and with keys and values of every head, as in MHA
    drafts      what one token drafted by MTP changes
    failure     what one failed GPU of the decode unit costs
    day         speed, nodes and dollars beside the published day

Nothing is fitted: all assumptions are constants of `serve/step_cost.py`. Writes results.json and
the pictures load.png, mixes.png and decode_step.png to OUT.
"""

import json
import sys
from pathlib import Path

from tqdm import tqdm

from ..command import Parser, UserError, answer
from ..config import ModelConfig
from ..files import make_folder, write_text
from ..measure import cost
from ..serve.disaggregate import DAY, calibrate, deploy, largest_batch
from ..serve.pools import simulate
from ..serve.requests import TARGET, poisson, summarise
from ..serve.step_cost import ASSUMED, Work
from ..serve.units import Failure
from .deployment_pictures import as_markdown, draw

LOADS = (1, 2, 4, 6, 8, 10, 12, 14)              # requests per second and node
LADDER = tuple(round(2 ** (step / 4), 3) for step in range(25))     # 1 to 64, by 19 %
MIXES = {"the day's": (DAY.prompt, DAY.output, DAY.cached), "long answer": (500, 2000, 0.0),
         "chat": (1000, 1000, 0.0),              # prompt, output [tokens], cached share
         "short answer": (4000, 250, 0.0)}
DIVISIONS = ("service:1", "service:3", "service:8")
CHUNKS = (32, 64, 96, 128)
SHARE = 0.9                                      # of the requests that must be in time
ACCEPTANCE = 0.85                                # of drafts; the report: 85 to 90 %
DOWN = {"restart": 60.0, "replace": 5.0}         # seconds; round numbers of ours


def measure(deployed, rate, seconds, mix=MIXES["the day's"], acceptance=None, failures=(), seed=0):
    """Serve Poisson requests of `rate` per second and node for so many seconds -> figures."""
    prompt, output, cached = mix
    rate = rate * deployed.gpus / ASSUMED.gpus_per_node
    requests = poisson(max(200, round(rate * seconds)), rate, prompt, output, cached=cached,
                       seed=seed)
    served = simulate(requests, deployed.units, deployed.handover, acceptance, seed, failures)
    figures = summarise(requests, served, deployed.gpus)
    return figures | {"read": served.read, "asked": int((requests.prompt - requests.cached).sum())}


def at_loads(loads, seconds, seed):
    """{deployment: {load: figures}} of the day's mix."""
    found = {}
    for name, chunk in (("service", None), ("chunked", 64), ("chunked", 128), ("whole", None)):
        label = f"{name} {chunk}" if chunk else name
        found[label] = {}
        for load in tqdm(loads, desc=label, leave=False):
            found[label][load] = measure(deploy(name, chunk=chunk), load, seconds, seed=seed)
            if found[label][load]["ttft"]["50"] > 10:    # the queue grows without end
                break
    return found


def highest_load(deployed, mix, seconds, seed):
    """The highest load of LADDER with SHARE in time, by bisection; 0 if there is none."""
    low, high = -1, len(LADDER) - 1
    while low < high:
        middle = (low + high + 1) // 2
        good = measure(deployed, LADDER[middle], seconds, mix, seed=seed)["good"] >= SHARE
        low, high = (middle, high) if good else (low, middle - 1)
    return LADDER[low] if low >= 0 else 0.0


def by_mix(mixes, divisions, chunks, seconds, seed):
    """{mix: {deployment: highest load}}, each with the best of its variants, and all variants."""
    found = {}
    for name in tqdm(mixes, desc="mixes", leave=False):
        tried = {"separated": {each: highest_load(deploy(each), MIXES[name], seconds, seed)
                               for each in divisions},
                 "together": {str(chunk): highest_load(deploy("chunked", chunk=chunk), MIXES[name],
                                                       seconds, seed) for chunk in chunks}}
        best = {form: max(each, key=each.get) for form, each in tried.items()}
        found[name] = {"lengths": MIXES[name], "tried": tried, "best": best,
                       "load": {form: tried[form][best[form]] for form in tried}}
    return found


def handover(loads, seconds, seed):
    """Bytes and seconds of a handover, and what users notice, by kind of cache."""
    sizes = cost.cache_bytes(ModelConfig.preset("v3-671b"))
    found = {"ratio": sizes["expanded"] / sizes["mla"]}
    for cache in ("mla", "expanded"):
        deployed = deploy("service", cache=cache)
        senders = sum(unit.gpus for unit in deployed.units if unit.role == "prefill")
        tokens = DAY.rate * deployed.gpus / ASSUMED.gpus_per_node * DAY.prompt / senders
        found[cache] = {
            "bytes_per_token": sizes[cache],
            "seconds_of_mean_prompt": deployed.handover(DAY.prompt),
            "share_of_network": tokens * sizes[cache] / ASSUMED.infiniband,
            "loads": {load: measure(deployed, load, seconds, seed=seed)["tpot"] for load in loads}}
    return found


def drafts(loads, seconds, seed):
    """TPOT at each load without and with drafts; tokens per second of a full decode GPU."""
    found = {"acceptance": ACCEPTANCE}
    for name, acceptance in (("without", None), ("with", ACCEPTANCE)):
        deployed = deploy("service", drafts=acceptance is not None)
        decode = deployed.units[-1]
        made = 1 + (acceptance or 0)                       # tokens per sequence and step
        full = {}
        for label, limit in (("at the day's speed", 1 / DAY.tokens_per_user), ("memory full", 9.9)):
            batch = largest_batch(decode.seconds, limit * made, DAY.context)
            seconds_of_step = decode.seconds(Work(sequences=batch, context=batch * DAY.context))
            full[label] = {"sequences_per_gpu": batch / decode.gpus, "step": seconds_of_step,
                           "tokens_per_s_and_gpu": made * batch / decode.gpus / seconds_of_step}
        found[name] = {"full": full, "loads": {
            load: measure(deployed, load, seconds, acceptance=acceptance, seed=seed)["tpot"]
            for load in loads}}
    return found


def failures(seconds, seed):
    """What one failed GPU of the only decode unit costs, in the middle of the day's mean load.

    restart: the unit starts again, and all its latents are lost. replace: the other GPUs keep
    theirs, and experts are loaded elsewhere.
    """
    deployed = deploy("service")
    number, unit = len(deployed.units) - 1, deployed.units[-1]
    found = {"none": measure(deployed, DAY.rate, seconds, seed=seed)}
    for name, share in (("restart", 1.0), ("replace", 1 / unit.gpus)):
        failure = Failure(seconds / 2, number, DOWN[name], share)
        found[name] = measure(deployed, DAY.rate, seconds, failures=[failure], seed=seed)
    return {name: {"down": DOWN.get(name, 0.0), "good": each["good"], "tpot": each["tpot"],
                   "ttft": each["ttft"], "read_again": each["read"] - each["asked"]}
            for name, each in found.items()}


# ---- the command ----

def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(prog="python -m minidsv3.study.deployment", description=__doc__)
    parser.add_argument("--seconds", type=float, help="simulated per load [120; reduced: 30]")
    parser.add_argument("--reduced", action="store_true", help="three loads, two mixes, no choice "
                        "of divisions and chunks")
    parser.add_argument("--seed", type=int, default=0, help="of times and lengths [0]")
    parser.add_argument("--out", type=Path, default=Path("studies/deployment"),
                        help="results [studies/deployment]")
    options = parser.parse_args(arguments)
    if options.seconds is None:
        options.seconds = 30.0 if options.reduced else 120.0
    if not 1 <= options.seconds <= 1e5:
        raise UserError(f"--seconds {options.seconds:g} must be from 1 to 100,000.")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed} must be at least 0.")
    return options


def run(arguments):
    """Simulate, write results.json and the pictures, print the tables -> exit code."""
    options = parse_arguments(arguments)
    loads, mixes, divisions, chunks, few = LOADS, MIXES, DIVISIONS, CHUNKS, (1, 4, 8, 12)
    if options.reduced:
        loads, mixes, divisions, chunks, few = (1, 4, 8), ("the day's", "chat"), ("service",), (
            64,), (4,)
    make_folder(options.out)
    how = options.seconds, options.seed
    results = {"assumptions": ASSUMED._asdict(), "target": TARGET._asdict(), "share": SHARE,
               "seconds": options.seconds, "seed": options.seed,
               "load": at_loads(loads, *how), "mixes": by_mix(mixes, divisions, chunks, *how),
               "handover": handover(few, *how), "drafts": drafts(few, *how),
               "failure": failures(*how), "day": calibrate(seed=options.seed)}
    results = json.loads(json.dumps(results))              # keys as they are read again
    write_text(options.out / "results.json", json.dumps(rounded(results), indent=1) + "\n")
    draw(results, options.out)
    print(as_markdown(results))
    print(f"wrote {options.out}: results.json, load.png, mixes.png, decode_step.png")
    return 0


def rounded(value):
    """The same with five significant digits, so that the file can be read."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
