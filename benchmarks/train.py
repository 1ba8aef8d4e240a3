"""Training speed, and learning for a given time: our model beside a dense GPT of equal work.

    python benchmarks/train.py                     both parts; about 25 minutes on a laptop
    python benchmarks/train.py --speed-only        the first part; two minutes

Speed: whole optimiser steps on real batches (loss, backward, clipping, optimisers, router bias;
making the batch is not timed). The models take turns, round after round, so that a machine that
slows down slows all of them. Figures are medians over rounds; ratios are taken within a round.

Learning, ours with MTP and the dense GPT: each number of minutes is a separate run, from new
weights and through the whole learning-rate schedule. Its number of steps is planned from the speed
just measured. Both models see the same tokens in the same order; the slower one sees fewer. Bits
per byte are those of the whole validation text; evaluation is not timed.

The dense GPT has as many matrix FLOPs per token as ours *without* MTP; with MTP ours has more.
"""

import json
import math
import os
import platform
import re
import statistics
import sys
from pathlib import Path

import torch
from contender import Contender
from dense_gpt import DenseGPT, matched_to
from tqdm import tqdm

from minidsv3 import ModelConfig
from minidsv3.command import Parser, UserError, answer
from minidsv3.data.dataset import Dataset
from minidsv3.device import choose_device, choose_precision
from minidsv3.files import write_text
from minidsv3.measure import plots
from minidsv3.model.transformer import DeepSeekV3
from minidsv3.train.recipe import TrainConfig

# The best settings found for the dense model; ours are in minidsv3/train/recipe.py. Everything else
# is the same for both.
DENSE_OPTIMIZER = "muon"
DENSE_MUON_LR = 2e-2
DENSE_ADAMW_LR = 3e-3

WITH_MTP, WITHOUT_MTP, DENSE = "ours", "ours without MTP", "dense GPT"
WARM_UP = 2                                      # rounds of the speed part that are not measured


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    what = parser.add_argument_group("what")
    what.add_argument("--preset", default="tiny", help="tiny, or small on a GPU [tiny]")
    what.add_argument("--speed-only", action="store_true", help="leave out the second part")
    long = parser.add_argument_group("how long")
    long.add_argument("--minutes", type=float, nargs="+", default=[1, 3, 5], metavar="M",
                      help="minutes of training; each number is one run per model [1 3 5]")
    long.add_argument("--rounds", type=int, default=7,
                      help="measured rounds of the speed part [7]")
    long.add_argument("--steps", type=int, default=20,
                      help="optimiser steps per model and round [20]; fewer on a slow machine")
    where = parser.add_argument_group("where")
    where.add_argument("--out", default="benchmarks/results", metavar="DIR",
                       help="folder for train.json and train.png [benchmarks/results]")
    where.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    how = parser.add_argument_group("how (two values each: our models, dense GPT)")
    pair = {"nargs": 2, "metavar": ("OURS", "DENSE")}
    how.add_argument("--optimizers", help="muon (adamw for all but matrices) or adamw", **pair)
    how.add_argument("--learning-rates", type=float, help="highest rate of Muon", **pair)
    how.add_argument("--adamw-learning-rates", type=float, help="highest rate of AdamW", **pair)
    how.add_argument("--seed", type=int, default=0, help="seed of weights and batches [0]")
    return parser.parse_args(arguments)


def check(arguments):
    """Raise UserError now for settings that would fail only after minutes."""
    for name in ("rounds", "steps"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(arguments, name)}.")
    for minutes in arguments.minutes:
        if not 0 < minutes < math.inf:
            raise UserError(f"--minutes must be above 0, got {minutes:g}; give for instance 5.")
    if Path(arguments.out).exists() and not Path(arguments.out).is_dir():
        raise UserError(f"--out {arguments.out} is a file; name a folder.")


def recipes(arguments):
    """The recipes of our models and of the dense one; only optimiser and learning rates differ."""
    ours = TrainConfig.preset(arguments.preset)
    ours = ours.replace(seed=arguments.seed, batch_start=ours.batch_size)  # all steps of equal size
    dense = ours.replace(optimizer=DENSE_OPTIMIZER, muon_learning_rate=DENSE_MUON_LR,
                         learning_rate=DENSE_ADAMW_LR)
    for field, values in (("optimizer", arguments.optimizers),
                          ("muon_learning_rate", arguments.learning_rates),
                          ("learning_rate", arguments.adamw_learning_rates)):
        if values:
            ours, dense = ours.replace(**{field: values[0]}), dense.replace(**{field: values[1]})
    return ours, dense


def contenders(config, ours, dense):
    """{name: (function that makes the model, its recipe)}, in the order in which they run."""
    plain = config.replace(num_nextn_predict_layers=0)
    peer = matched_to(config)
    return {WITH_MTP: (lambda: DeepSeekV3(config), ours),
            WITHOUT_MTP: (lambda: DeepSeekV3(plain), ours),
            DENSE: (lambda: DenseGPT(peer), dense)}


# ---- the two parts ----

def alternate(names, rounds, measure):
    """Call measure(name) in turns, A B C A B C ... -> {name: its results in order}."""
    results = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            results[name].append(measure(name))
    return results


def measure_speed(entries, data, device, rounds, steps):
    """Tokens per second of each model in each measured round -> {name: figures}."""
    running = {name: Contender(*entry, device) for name, entry in entries.items()}
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
                   "at_work": running[name].at_work(),
                   "tokens_per_s": round(statistics.median(speed), 1),
                   "ratio": round(paired_ratio(speed, counted[DENSE]), 4),
                   "rounds": [round(value, 1) for value in speed]}
            for name, speed in counted.items()}


def paired_ratio(speeds, reference):
    """Median over rounds of one model's speed divided by another's in the same round."""
    return statistics.median(a / b for a, b in zip(speeds, reference, strict=True))


def plan_steps(minutes, tokens_per_s, recipe):
    """The number of optimiser steps that take this many minutes at the measured speed."""
    return max(1, round(minutes * 60 * tokens_per_s / (recipe.batch_size * recipe.window)))


def learn(name, entry, data, device, minutes, tokens_per_s):
    """Train one model from new weights through the whole schedule -> its figures."""
    contender = Contender(*entry, device)
    steps = plan_steps(minutes, tokens_per_s, contender.recipe)
    with tqdm(total=steps, unit="step", desc=f"{name}, {minutes:g} min", dynamic_ncols=True) as bar:
        for step in range(steps):
            loss = contender.step(data.batches, (step + 1) / steps)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()
    recipe = contender.recipe
    return {"model": name, "minutes": minutes,
            "steps": steps, "seconds": round(contender.seconds, 1),
            "val_bits_per_byte": round(contender.bits_per_byte(data), 4),
            "optimizer": recipe.optimizer, "muon_learning_rate": recipe.muon_learning_rate,
            "learning_rate": recipe.learning_rate}


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
            "device": str(device), "torch": torch.__version__, "python": platform.python_version()}


def tables(results):
    """The results of both parts as Markdown tables."""
    lines = ["| model | parameters | activated per token in training | tokens/s | to dense GPT |",
             "|---|---|---|---|---|"]
    for name, row in results["speed"].items():
        lines.append(f"| {name} | {row['parameters'] / 1e6:.2f}M | {row['at_work'] / 1e6:.2f}M "
                     f"| {row['tokens_per_s']:,.0f} | {row['ratio']:.2f} |")
    if results["learning"]:
        lines += ["", "| minutes | model | optimiser | steps | seconds | bits per byte |",
                  "|---|---|---|---|---|---|"]
    for run in results["learning"]:
        lines.append(f"| {run['minutes']:g} | {run['model']} | {run['optimizer']} "
                     f"| {run['steps']:,} | {run['seconds']:.0f} "
                     f"| {run['val_bits_per_byte']:.3f} |")
    return "\n".join(lines)


def figure(runs):
    """Bits per byte against minutes of training, one line per model."""
    looks = {WITH_MTP: (plots.OURS, "o", "-"),
             DENSE: (plots.BASELINE, "^", ":")}
    picture, ax = plots.canvas()
    ends = []
    for name, (color, marker, line) in looks.items():
        mine = [run for run in runs if run["model"] == name]
        ends += ax.plot([run["minutes"] for run in mine],
                        [run["val_bits_per_byte"] for run in mine], color=color,
                        marker=marker, linestyle=line, label=name)
    last = {run["model"]: run["val_bits_per_byte"] for run in runs}
    ax.set_title(f"After {runs[-1]['minutes']:g} minutes: ours {last[WITH_MTP]:.3f}, "
                 f"dense {last[DENSE]:.3f} bits per byte", loc="left")
    ax.set_xlabel("training time [minutes]")
    ax.set_ylabel("validation [bits per byte]")
    plots.label_ends(ax, ends)
    return picture


def run(arguments):
    """Measure both parts, print and write them -> exit code."""
    check(arguments)
    device, config = choose_device(arguments.device), ModelConfig.preset(arguments.preset)
    ours, dense = recipes(arguments)
    entries, out = contenders(config, ours, dense), Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    dtype = str(choose_precision(ours.precision, device)).removeprefix("torch.")
    print(f"device {device}, activations {dtype}, {ours.batch_size * ours.window:,} tokens "
          f"per step, results in {out}", flush=True)
    data = Dataset(ours.data, config.vocab_size, ours.window, ours.fim_rate, ours.seed)
    results = {"machine": machine(device), "command": " ".join(sys.argv),
               "preset": arguments.preset, "dtype": dtype, "seed": arguments.seed,
               "corpus_sha256": data.sha256,
               "speed": measure_speed(entries, data, device, arguments.rounds, arguments.steps),
               "learning": []}
    write_text(out / "train.json", json.dumps(results, indent=2) + "\n")
    for minutes in [] if arguments.speed_only else sorted(set(arguments.minutes)):
        for name in (WITH_MTP, DENSE):
            entry = entries[name]
            speed = results["speed"][name]["tokens_per_s"]
            results["learning"].append(learn(name, entry, data, device, minutes, speed))
            # Written after each run, so that stopping the benchmark loses only the current one.
            write_text(out / "train.json", json.dumps(results, indent=2) + "\n")
    print(f"\n{tables(results)}\n\nwrote {out / 'train.json'}", end="")
    if results["learning"]:
        plots.save(figure(results["learning"]), out / "train.png")
        print(f" and {out / 'train.png'}", end="")
    print()
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
