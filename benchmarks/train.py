"""Training speed, and learning for a given time: our model beside a dense GPT of equal work.

    python benchmarks/train.py                     both parts; 27 minutes of training
    python benchmarks/train.py --speed-only        the first part; two minutes
    python benchmarks/train.py --minutes 1 3 5:3 8 15:3 --jobs 2        three seeds for 5 and for 15

Speed: whole optimiser steps on real batches (loss, backward, clipping, optimisers, router bias;
making the batch is not timed). The models take turns, round after round, so that a machine that
slows down slows all of them. Ratios are taken within a round, and the median over rounds is shown.
A model's tokens per second are its ratio times the median of the dense GPT, so that a machine that
is slow in some rounds favours no model. Let no other program run beside this part: the second part
is planned with its figures.

Learning, ours with MTP, ours without, and the dense GPT: each number of minutes is a separate run,
from new weights and through the whole learning-rate schedule. It has as many steps as fill these
minutes at the speed just measured, so its result does not depend on how long it really takes. With
--jobs runs are made at once, each on one thread. All models see the same tokens in the same order;
a slower one sees fewer. Bits per byte are those of the whole validation text.

Each finished run is stored. The same command started again keeps the speeds and makes only the runs
that are not there; more minutes and more seeds may be added.

The dense GPT has as many matrix FLOPs per token as ours *without* MTP; with MTP ours has more.
"""

import os
import platform
import re
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from contender import DENSE, MODELS, WITH_MTP, WITHOUT_MTP, Contender, make_model
from dense_gpt import matched_to
from learning import plan, read_minutes, read_stored, run_missing, store
from learning_results import figure, tables
from tqdm import tqdm

from minidsv3 import ModelConfig
from minidsv3.command import Parser, UserError, answer
from minidsv3.data import corpus
from minidsv3.data.dataset import Dataset
from minidsv3.device import choose_device, choose_precision, has_fast_bf16
from minidsv3.files import make_folder, refuse_files
from minidsv3.measure import plots
from minidsv3.train.recipe import TrainConfig

# The best settings found for the dense model; ours are in minidsv3/train/recipe.py. Everything else
# is the same for both.
DENSE_OPTIMIZER = "muon"
DENSE_MUON_LR = 1e-2
DENSE_ADAMW_LR = 3e-3

WARM_UP = 2                                      # rounds of the speed part that are not measured


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    what = parser.add_argument_group("what")
    what.add_argument("--preset", default="tiny", help="tiny, or small on a GPU [tiny]")
    what.add_argument("--speed-only", action="store_true", help="leave out the second part")
    long = parser.add_argument_group("how long")
    long.add_argument("--minutes", nargs="+", default=["1", "3", "5"], metavar="M",
                      help="minutes of training, one run per model, or minutes:seeds, as many "
                           "runs per model as seeds, for instance 5:3 [1 3 5]")
    long.add_argument("--jobs", type=int, default=1,
                      help="runs of the second part at once, one thread each [1]")
    long.add_argument("--rounds", type=int, default=7,
                      help="measured rounds of the speed part [7]")
    long.add_argument("--steps", type=int, default=20,
                      help="optimiser steps per model and round [20]; fewer on a slow machine")
    where = parser.add_argument_group("where")
    where.add_argument("--out", type=Path, default="benchmarks/results/learning", metavar="DIR",
                       help="folder for train.json and train.png [benchmarks/results/learning]")
    where.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    how = parser.add_argument_group("how (two values each: our models, dense GPT)")
    pair = {"nargs": 2, "metavar": ("OURS", "DENSE")}
    how.add_argument("--optimizers", help="muon (adamw for all but matrices) or adamw", **pair)
    how.add_argument("--learning-rates", type=float, help="highest rate of Muon", **pair)
    how.add_argument("--adamw-learning-rates", type=float, help="highest rate of AdamW", **pair)
    how.add_argument("--seed", type=int, default=0, help="first seed of weights and batches [0]")
    arguments = parser.parse_args(arguments)
    for name in ("rounds", "steps", "jobs"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(arguments, name)}.")
    arguments.minutes = read_minutes(arguments.minutes)
    refuse_files(arguments.out)
    return arguments


def make_recipes(arguments):
    """{model: its recipe}; only optimiser and learning rates of the dense one differ."""
    ours = TrainConfig.preset(arguments.preset)
    ours = ours.replace(seed=arguments.seed, batch_start=ours.batch_size)  # all steps of equal size
    dense = ours.replace(optimizer=DENSE_OPTIMIZER, muon_learning_rate=DENSE_MUON_LR,
                         learning_rate=DENSE_ADAMW_LR)
    for field, values in (("optimizer", arguments.optimizers),
                          ("muon_learning_rate", arguments.learning_rates),
                          ("learning_rate", arguments.adamw_learning_rates)):
        if values:
            ours, dense = ours.replace(**{field: values[0]}), dense.replace(**{field: values[1]})
    return {WITH_MTP: ours, WITHOUT_MTP: ours, DENSE: dense}


def settings(arguments, config, recipes, device):
    """{name: value} of all that figures depend on; one file holds runs of the same settings."""
    here = machine(device)
    chosen = {name: here[name] for name in ("cpu", "gpu", "device", "torch") if name in here}
    chosen |= {name: getattr(arguments, name) for name in ("preset", "seed", "rounds", "steps")}
    chosen["activations"] = str(choose_precision(recipes[DENSE].precision, device))
    chosen["corpus_sha256"] = corpus.load(recipes[DENSE].data).sha256
    chosen |= {f"model: {name}": value for name, value in config.to_dict().items()}
    for name in (WITH_MTP, DENSE):
        chosen |= {f"recipe of {name}: {field}": value
                   for field, value in recipes[name].to_dict().items()}
    return chosen


# ---- speed ----

def alternate(names, rounds, measure):
    """Call measure(name) in turns, A B C A B C ... -> {name: its results in order}."""
    results = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            results[name].append(measure(name))
    return results


def measure_speed(config, recipes, data, device, rounds, steps):
    """Tokens per second of each model in each measured round -> {name: figures}."""
    running = {name: Contender(partial(make_model, name, config), recipes[name], device)
               for name in MODELS}
    total = (WARM_UP + rounds) * steps
    with tqdm(total=total * len(running), unit="step", desc="speed", dynamic_ncols=True) as bar:
        def one_round(name):
            contender = running[name]
            before = contender.seconds
            for _ in range(steps):
                contender.step(data.batches, (contender.taken + 1) / total)
                bar.update()
            tokens = steps * contender.recipe.batch_size * contender.recipe.window
            return tokens / (contender.seconds - before)

        speeds = alternate(running, WARM_UP + rounds, one_round)
    counted = {name: speed[WARM_UP:] for name, speed in speeds.items()}
    return {name: {"parameters": sum(p.numel() for p in running[name].model.parameters()),
                   "at_work": running[name].at_work(), **figures,
                   "rounds": [round(value, 1) for value in counted[name]]}
            for name, figures in to_dense(counted).items()}


def to_dense(speeds):
    """{model: tokens/s of each round} -> {model: its ratio to the dense GPT, its tokens/s}.

    Tokens per second are the ratio times the median of the dense GPT, which takes part in every
    round: rounds in which the machine is slow then favour no model.
    """
    dense = statistics.median(speeds[DENSE])
    ratios = {name: paired_ratio(speed, speeds[DENSE]) for name, speed in speeds.items()}
    return {name: {"tokens_per_s": round(ratio * dense, 1), "ratio": round(ratio, 4)}
            for name, ratio in ratios.items()}


def paired_ratio(speeds, reference):
    """Median over rounds of one model's speed divided by another's in the same round."""
    return statistics.median(a / b for a, b in zip(speeds, reference, strict=True))


# ---- reporting the results ----

def machine(device):
    """The machine and the versions that figures were measured with."""
    name = platform.processor() or platform.machine()
    linux = Path("/proc/cpuinfo")
    if linux.exists():
        found = re.search(r"model name\s*:\s*(.+)", linux.read_text(encoding="utf-8"))
        name = found[1] if found else name
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), **gpu,
            "device": str(device), "bfloat16_instructions": has_fast_bf16(device),
            "torch": torch.__version__, "python": platform.python_version()}


def speed_table(speed):
    """The results of the first part as a Markdown table."""
    lines = ["| model | parameters | activated per token in training | tokens/s | to dense GPT |",
             "|---|---|---|---|---|"]
    for name, row in speed.items():
        lines.append(f"| {name} | {row['parameters'] / 1e6:.2f}M | {row['at_work'] / 1e6:.2f}M "
                     f"| {row['tokens_per_s']:,.0f} | {row['ratio']:.2f} |")
    return "\n".join(lines)


def run(arguments):
    """Measure both parts, print and write them -> exit code."""
    device, config = choose_device(arguments.device), ModelConfig.preset(arguments.preset)
    recipes, path = make_recipes(arguments), arguments.out / "train.json"
    matched_to(config)                           # raises for a model without a dense partner
    wanted = settings(arguments, config, recipes, device)
    results, ours = read_stored(path, wanted), recipes[WITH_MTP]
    instructions = "with" if has_fast_bf16(device) else "without"
    print(f"{wanted.get('gpu', wanted['cpu'])}, {instructions} bfloat16 instructions; device "
          f"{device}, {wanted['activations']}, {ours.batch_size * ours.window:,} tokens per step, "
          f"results in {arguments.out}", flush=True)
    if results:
        print(f"the speeds are those in {path}; to measure them anew, name another --out",
              flush=True)
    else:
        make_folder(arguments.out)
        data = Dataset(ours.data, config.vocab_size, ours.window, ours.fim_rate, ours.seed)
        speed = measure_speed(config, recipes, data, device, arguments.rounds, arguments.steps)
        results = {"machine": machine(device), "settings": wanted, "speed": speed, "learning": []}
    results["command"] = " ".join(sys.argv)      # the last one, which may have added minutes
    store(path, results)
    if not arguments.speed_only:
        planned = plan(arguments.minutes, results["speed"], recipes)
        run_missing(planned, results, path, config, recipes, device, arguments.jobs)
    print(f"\n{speed_table(results['speed'])}")
    written = [path]
    if results["learning"]:
        print(f"\n{tables(results['learning'])}")
        written.append(arguments.out / "train.png")
        plots.save(figure(results["learning"]), written[-1])
    print(f"\nwrote {' and '.join(map(str, written))}")
    return 0


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    try:
        return answer(lambda: run(parse_arguments(arguments)))
    except FloatingPointError as error:
        print(f"error: {error}; try a lower learning rate.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
