"""Does FP8 training follow bfloat16 training? The report's figure 10 and appendix B, small.

    python -m minidsv3.study.fp8 --seeds 3 --jobs 2        some four hours on two cores
    python -m minidsv3.study.fp8 --steps 100 --seeds 1     a look, in some minutes

Matched runs of the tiny preset: for each seed the same first weights and the same batches in every
arm; only the arithmetic differs. The report's own optimiser, AdamW, since its moments are a part of
the recipe. What is compared, as in the report, is the relative loss error

    (EMA of the arm's loss - EMA of bfloat16's) / EMA of bfloat16's             smoothed with 0.9

Training amplifies any difference, however small, so one arm is bfloat16 once more, its first
weights moved by one part in a million: what it differs by is what *no* difference looks like. Each
run is a file in OUT/runs; those already there are kept, so an interrupted study goes on.
"""

import json
import multiprocessing
import platform
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm

from .. import fp8
from ..command import Parser, answer
from ..config import ModelConfig
from ..device import choose_device
from ..hf import write_text
from ..measure import plots
from ..train.recipe import TrainConfig
from ..train.trainer import Trainer

BASELINE, TWIN = "bf16", "bf16-nudged"
ARMS = {BASELINE: "bf16", TWIN: "bf16", "fp32": "fp32", **dict.fromkeys(fp8.RECIPES, "fp8")}
NUDGE = 1e-6                                     # relative change of the twin's first weights
SMOOTHING = 0.9                                  # of the EMA, the report's
CLAIM = 0.0025                                   # the report: below 0.25 %
COLOURS = {TWIN: plots.BLACK, "fp32": plots.PURPLE, "deepseek-v3": plots.BLUE,
           "per-tensor": plots.VERMILLION, "block-activations": plots.GREEN,
           "e5m2-backward": plots.ORANGE}


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm [3]")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps a run [1000]")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM",
                        help=f"beside {BASELINE}: some of {', '.join(ARMS)} [all]")
    parser.add_argument("--data", default="python-stdlib", help="as of train_tiny.py")
    parser.add_argument("--out", type=Path, default=Path("studies/fp8"), help="[studies/fp8]")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each [1]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    parser.add_argument("--overwrite", action="store_true", help="make finished runs anew")
    arguments = parser.parse_args(arguments)
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} {getattr(arguments, name)} must be at least 1.")
    if arguments.steps < 20:
        raise ValueError(f"--steps {arguments.steps} are too few to smooth; take 20 or more.")
    arguments.arms = [arm for arm in ARMS if arm in {BASELINE, *arguments.arms}]
    choose_device(arguments.device)
    return arguments


def train(arm, seed, steps, data, device):
    """One run -> its figures: losses (steps,) in nats, validation, seconds, and what it ran on."""
    torch.set_num_threads(1)
    recipe = TrainConfig.preset("tiny").replace(optimizer="adamw", precision=ARMS[arm], seed=seed,
                                                steps=steps, data=data)
    trainer = Trainer(ModelConfig.preset("tiny"), recipe, None, choose_device(device))
    if arm in fp8.RECIPES:
        fp8.convert(trainer.model, arm)
    if arm == TWIN:
        nudge(trainer.model, seed)
    losses, seconds = [], []
    for _ in tqdm(range(steps), desc=f"{arm}, seed {seed}", leave=False):
        begin = time.perf_counter()
        losses.append(round(trainer.train_step()[0]["loss"], 6))
        seconds.append(time.perf_counter() - begin)
    data = trainer.data
    result = trainer.evaluate(data.inputs, data.targets, data.validation_bytes)
    return {"arm": arm, "seed": seed, "steps": steps, "corpus_sha256": data.sha256,
            "val_bits_per_byte": round(result.bits_per_byte, 6),
            "seconds_a_step": round(statistics.median(seconds), 4),
            "flow": str(trainer.model.activation_dtype or torch.float32).removeprefix("torch."),
            "device": str(trainer.device), "torch": torch.__version__,
            "python": platform.python_version(), "losses": losses}


@torch.no_grad()
def nudge(model, seed):
    """Move every weight by one part in a million, up or down."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        sign = torch.randint(2, weight.shape, generator=generator) * 2 - 1
        weight.mul_(1 + NUDGE * sign.to(weight))


def runs(arguments):
    """Make what is missing, some at a time -> {(arm, seed): figures}."""
    found, missing = {}, []
    for seed in range(arguments.seeds):
        for arm in arguments.arms:
            path = arguments.out / "runs" / f"{arm}-{seed}.json"
            if path.exists() and not arguments.overwrite:
                found[arm, seed] = json.loads(path.read_text(encoding="utf-8"))
                if found[arm, seed]["steps"] != arguments.steps:
                    raise ValueError(f"{path} has {found[arm, seed]['steps']} steps, not "
                                     f"{arguments.steps}; use another --out, or --overwrite.")
            else:
                missing.append((arm, seed))
    spawn = multiprocessing.get_context("spawn")
    with (ProcessPoolExecutor(arguments.jobs, mp_context=spawn) as pool,
          tqdm(total=len(missing), unit="run", disable=not missing) as bar):
        under_way = [pool.submit(train, arm, seed, arguments.steps, arguments.data,
                                 arguments.device) for arm, seed in missing]
        for done in as_completed(under_way):
            run = done.result()
            found[run["arm"], run["seed"]] = run
            path = arguments.out / "runs" / f"{run['arm']}-{run['seed']}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(run) + "\n")
            bar.update()
    return found


def smooth(losses):
    """The report's moving average: (steps,) -> (steps,), from the first loss on."""
    average, smoothed = losses[0], []
    for loss in losses:
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average)
    return torch.tensor(smoothed, dtype=torch.float64)


def relative_error(run, baseline):
    """(EMA - EMA of the baseline) / EMA of the baseline, at every step: (steps,)."""
    ours, theirs = smooth(run["losses"]), smooth(baseline["losses"])
    return (ours - theirs) / theirs


def summarise(found, arms, seeds):
    """{arm: figures}; each figure is (mean, standard deviation) over the seeds.

    error: mean of |relative error| after the first tenth of the steps; largest: its maximum there;
    last: the signed mean over the last tenth. Against bf16 of the same seed; all are fractions.
    """
    table = {}
    for arm in arms:
        of_seeds = {"error": [], "largest": [], "last": [], "val_bits_per_byte": [],
                    "seconds_a_step": []}
        for seed in range(seeds):
            run = found[arm, seed]
            error = relative_error(run, found[BASELINE, seed])
            tenth = max(1, len(error) // 10)
            of_seeds["error"].append(error[tenth:].abs().mean().item())
            of_seeds["largest"].append(error[tenth:].abs().max().item())
            of_seeds["last"].append(error[-tenth:].mean().item())
            for name in ("val_bits_per_byte", "seconds_a_step"):
                of_seeds[name].append(run[name])
        table[arm] = {name: (statistics.fmean(values),
                             statistics.stdev(values) if seeds > 1 else float("nan"))
                      for name, values in of_seeds.items()}
    return table


def seed_error(found, seeds):
    """Mean |relative error| between the baselines of two seeds, over all pairs; None for one."""
    pairs = [(one, other) for one in range(seeds) for other in range(one)]
    errors = [relative_error(found[BASELINE, one], found[BASELINE, other]) for one, other in pairs]
    means = [error[max(1, len(error) // 10):].abs().mean().item() for error in errors]
    return statistics.fmean(means) if means else None


def as_markdown(table):
    """The table for people."""
    lines = ["| arm | mean error | largest | last tenth | validation [bits/byte] | s a step |",
             "|---|---|---|---|---|---|"]
    for arm, figures in table.items():
        cells = [f"{100 * mean:{sign}.2f} ± {100 * spread:.2f} %" for sign, (mean, spread) in
                 (("", figures["error"]), ("", figures["largest"]), ("+", figures["last"]))]
        mean, spread = figures["val_bits_per_byte"]
        lines.append(f"| {arm} | {' | '.join(cells if arm != BASELINE else ['-'] * 3)} | "
                     f"{mean:.4f} ± {spread:.4f} | {figures['seconds_a_step'][0]:.2f} |")
    return "\n".join(lines)


@plots.style()
def picture(found, arms, seeds, window=50):
    """Relative loss error over training, mean over the seeds, once more averaged over a window."""
    arms = [arm for arm in arms if arm != BASELINE]
    rows = -(-len(arms) // 2)
    figure, axes = plots.canvas(rows, 2, size=(10, 1 + 2.6 * rows), sharex=True, sharey=True,
                                squeeze=False)
    for ax, arm in zip(axes.flat, arms):
        for seed in range(seeds):
            error = 100 * relative_error(found[arm, seed], found[BASELINE, seed])
            ax.plot(range(1, len(error) + 1), error, color=COLOURS[arm], linewidth=1,
                    alpha=1 if seeds == 1 else 0.6)
        ax.axhspan(-100 * CLAIM, 100 * CLAIM, color="#CCCCCC", zorder=0)
        ax.set_title(arm, loc="left")
        ax.set_ylim(-3, 3)
    for unused in axes.flat[len(arms):]:
        unused.set_visible(False)
    figure.supxlabel("training progress [steps]")
    figure.supylabel("loss error relative to bf16 [%]")
    figure.suptitle("Each line one seed; the grey band is the report's ±0.25 %")
    return figure


def run(arguments):
    """Train, print the table, write the results -> exit code."""
    found = runs(arguments)
    table = summarise(found, arguments.arms, arguments.seeds)
    noise = seed_error(found, arguments.seeds)
    print(as_markdown(table))
    if noise is not None:
        print(f"\nbf16 of one seed against bf16 of another: {100 * noise:.2f} %")
    plots.save(picture(found, arguments.arms, arguments.seeds), arguments.out / "loss_error.png")
    write_text(arguments.out / "summary.json",
               json.dumps({"arms": table, "between_seeds": noise}, indent=1) + "\n")
    print(f"wrote {arguments.out}: summary.json, loss_error.png, runs/")
    return 0


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
