"""Does FP8 training follow bfloat16 training? The report's figure 10 and appendix B, at tiny size.

    python -m minidsv3.study.fp8 --seeds 3 --jobs 2                          two hours on two cores
    python -m minidsv3.study.fp8 --steps 100 --seeds 1 --out runs/look       a look, ten minutes

The runs of the tiny preset are matched: for each seed all variants start from the same weights and
read the same batches. Only the arithmetic differs; the FP8 variants also keep AdamW's moments in
bfloat16. As in the report, variants are compared by the relative loss error

    (EMA of the variant's loss - EMA of bfloat16's) / EMA of bfloat16's         smoothed with 0.9

Training amplifies any difference, however small. So one variant is bfloat16 again, with its initial
weights changed by one part in a million: its error is what a negligible difference leads to. Each
run is a file in OUT/runs, and existing files are kept, so an interrupted study can be continued.
The table covers all runs in the folder, which must have the same text, length and optimiser.
"""

import json
import math
import platform
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from tqdm import tqdm

from .. import fp8
from ..command import Parser, UserError, answer
from ..config import ModelConfig
from ..data import corpus
from ..device import choose_device
from ..files import make_folder, refuse_files, write_text
from ..measure import plots
from ..measure.evaluate import bits_per_byte
from ..train.optim import make_optimizers
from ..train.prepare import make_model, read_text
from ..train.recipe import TrainConfig
from ..train.step import Step, all_steps
from .loss_error import BASELINE, as_markdown, picture, seed_error, summarise
from .pool import run_all

TWIN = "bf16-nudged"
ARMS = {BASELINE: "bf16", TWIN: "bf16", "fp32": "fp32", **dict.fromkeys(fp8.RECIPES, "fp8")}
NUDGE = 1e-6                                     # relative change of the twin's initial weights


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant [3]")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps per run [1000]")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="VARIANT",
                        help=f"variants to run beside {BASELINE}: some of {', '.join(ARMS)} [all]")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon",
                        help="muon is the preset's, adamw the report's [muon]")
    parser.add_argument("--data", default="python-stdlib", help="the text [python-stdlib]")
    parser.add_argument("--out", type=Path, default="studies/fp8", help="results [studies/fp8]")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each [1]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    parser.add_argument("--overwrite", action="store_true", help="repeat finished runs")
    arguments = parser.parse_args(arguments)
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)} must be at least 1.")
    if arguments.steps < 20:
        raise UserError(f"--steps {arguments.steps} are too few to smooth; take 20 or more.")
    arguments.arms = [arm for arm in ARMS if arm in {BASELINE, *arguments.arms}]
    choose_device(arguments.device)
    refuse_files(arguments.out)
    return arguments


def train(arm, seed, steps, optimizer, data, device):
    """One run -> its figures: losses (steps,) in nats, validation, seconds, and what it ran on."""
    torch.set_num_threads(1)
    # All weights move in every step, as in the report.
    recipe = TrainConfig.preset("tiny").replace(optimizer=optimizer, precision=ARMS[arm], seed=seed,
                                                steps=steps, data=data, expert_every=1, mtp_every=1)
    config, device = ModelConfig.preset("tiny"), choose_device(device)
    text, model = read_text(recipe, config), make_model(config, recipe, device)
    if arm in fp8.RECIPES:
        fp8.convert(model, arm)
    if arm == TWIN:
        nudge(model, seed)
    losses, moments = [], [time.perf_counter()]
    run = all_steps(Step(model, make_optimizers(model, recipe), recipe), text.batches)
    try:
        for figures in tqdm(run, f"{arm}, seed {seed}", steps, leave=False):
            losses.append(round(figures.next_token, 6))
            moments.append(time.perf_counter())
        score = bits_per_byte(model, text.inputs, text.targets, text.validation_bytes)
    except FloatingPointError:                   # a result like others: no number from here on
        losses += [math.nan] * (steps - len(losses))
        score = math.nan
    seconds = [after - before for before, after in pairwise(moments)]
    return {"arm": arm, "seed": seed, "steps": steps, "optimizer": optimizer,
            "corpus_sha256": text.sha256,
            "val_bits_per_byte": round(score, 6),
            "seconds_a_step": round(statistics.median(seconds or [math.nan]), 4),
            "flow": str(model.activation_dtype).removeprefix("torch."),
            "device": str(device), "torch": torch.__version__,
            "python": platform.python_version(), "losses": losses}


@torch.no_grad()
def nudge(model, seed):
    """Change every weight by one part in a million, up or down at random."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        sign = torch.randint(2, weight.shape, generator=generator) * 2 - 1
        weight.mul_(1 + NUDGE * sign.to(weight))


def train_and_store(path, *what):
    """Train one run and write its file at once, so that it is kept if another run fails."""
    write_text(path, json.dumps(train(*what)) + "\n")


def make_missing(arguments):
    """Train the runs that the command line asks for and that have no file yet, in parallel.

    Raises UserError if a run that is kept differs from them in text, length or optimiser.
    """
    wanted = {"steps": arguments.steps, "optimizer": arguments.optimizer,
              "corpus_sha256": corpus.load(arguments.data).sha256}
    asked = {(arm, seed): run_path(arguments.out, arm, seed)
             for seed in range(arguments.seeds) for arm in arguments.arms}
    missing = {key: path for key, path in asked.items()
               if arguments.overwrite or not path.exists()}
    for path in sorted(set((arguments.out / "runs").glob("*.json")) - set(missing.values())):
        run = read(path)
        for name, value in wanted.items():
            if run[name] != value:
                raise UserError(f"{path} was made with {name} {run[name]}, not {value}; use "
                                "another --out" + (", or --overwrite." if (
                                    run["arm"], run["seed"]) in asked else "."))
    make_folder(arguments.out / "runs")
    # Its name keeps the results out of the text, if they lie within it.
    write_text(arguments.out / "study.json", json.dumps(wanted) + "\n")
    run_all(train_and_store, [(path, *key, arguments.steps, arguments.optimizer, arguments.data,
                               arguments.device) for key, path in missing.items()], arguments.jobs)


def run_path(folder, arm, seed):
    """The file of a run."""
    return folder / "runs" / f"{arm}-{seed}.json"


def read(path):
    """One stored run. Raises UserError if the file holds something else."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["arm"] in ARMS and len(run["losses"]) == run["steps"] and {
                "seed", "optimizer", "corpus_sha256"} <= set(run):
            for number in (*run["losses"], run["val_bits_per_byte"], run["seconds_a_step"]):
                float(number)                    # raises for what is not a number
            return run
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is no run of this study; remove it, or use another --out.")


def load(folder):
    """Runs of a study whose seed has a baseline: {(variant, seed): run}, in the order of ARMS."""
    found = {(run["arm"], run["seed"]): run
             for run in map(read, sorted((folder / "runs").glob("*.json")))}
    return {(arm, seed): run for (arm, seed), run in sorted(
        found.items(), key=lambda item: (list(ARMS).index(item[0][0]), item[0][1]))
        if (BASELINE, seed) in found}


def run(arguments):
    """Train, print the table, write the results -> exit code."""
    make_missing(arguments)
    found = load(arguments.out)
    table, noise = summarise(found), seed_error(found)
    print(as_markdown(table))
    if noise is not None:
        print(f"\nbf16 of one seed against bf16 of another: {100 * noise:.2f} %")
    if len(table) > 1:
        plots.save(picture(found), arguments.out / "loss_error.png")
    write_text(arguments.out / "summary.json",
               json.dumps({"arms": table, "between_seeds": noise}, indent=1) + "\n")
    print(f"wrote {arguments.out}: runs/, summary.json, loss_error.png")
    return 0


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(parse_arguments(arguments)), unread=True)


if __name__ == "__main__":
    sys.exit(main())
