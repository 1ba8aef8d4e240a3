"""What does one changed idea do? The default beside the change: matched steps, text and seeds.

    python -m minidsv3.study.compare --set gamma=0 --seeds 3 --jobs 2
    python -m minidsv3.study.compare --variant "balance_weight=0" --variant "gamma=0" \\
        --variant "gamma=0 balance_weight=0" --seeds 3 --steps 600 --out runs/compare/balance

All --set together are one variant of the default; each --variant is one more, its settings divided
by spaces. --both changes the default, too. Fields and values are those of `train_tiny.py --set`.

For each seed all variants are trained with equal steps, on the same batches. So the differences
are taken by seed: their mean, and its standard error. Each run is a run folder in OUT. Ctrl-C saves
what is under way, and the same command goes on; it may ask for more --seeds, for nothing else.
The last point of a curve is that of the whole validation text, the others are those of a part.
"""

import json
import platform
import re
import sys
from pathlib import Path

import torch

from .. import hf
from ..command import Parser, UserError, answer, notice
from ..data import corpus
from ..device import choose_device, choose_precision, choose_threads
from ..files import make_folder, refuse_files, write_text
from ..measure import plots
from ..train import options
from ..train.checkpoint import as_metrics
from ..train.recipe import TrainConfig, batch_sizes
from . import pool
from .compare_results import BASE, as_text, picture, summarise

POINTS = 12                                      # of a curve
MATCHED = {"steps": "--steps", "data": "--data", "seed": "--seeds"}    # equal in all variants


# ---- the command ----

def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(prog="python -m minidsv3.study.compare", description=__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="change",
                        help="a field to change; all of them together are one variant")
    parser.add_argument("--variant", action="append", default=[], metavar='"NAME=VALUE ..."',
                        help="one more variant, repeatable")
    parser.add_argument("--both", action="append", default=[], metavar="NAME=VALUE",
                        help="a field to change in the default and in all variants, repeatable")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant [3]")
    parser.add_argument("--steps", type=int, help="optimiser steps of each run [the preset's]")
    parser.add_argument("--preset", default="tiny", help="tiny, short or small [tiny]")
    parser.add_argument("--data", help="the text, as for train_tiny.py [python-stdlib]")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each [1]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    parser.add_argument("--out", type=Path, help="results and run folders [runs/compare/CHANGES]")
    parsed = parser.parse_args(arguments)
    parsed.variants = [*([parsed.change] if parsed.change else []), *map(str.split, parsed.variant)]
    check(parsed)
    if parsed.out is None:
        parsed.out = Path("runs", "compare", file_name("_".join(map(" ".join, parsed.variants))))
    return parsed


def check(parsed):
    """UserError for options that make no study."""
    for name in ("seeds", "jobs"):
        if getattr(parsed, name) < 1:
            raise UserError(f"--{name} {getattr(parsed, name)} must be at least 1.")
    if not parsed.variants or [] in parsed.variants:
        raise UserError("there is nothing to compare; change a field, for instance --set gamma=0.")
    for setting in [*parsed.both, *sum(parsed.variants, [])]:
        name = setting.partition("=")[0]
        if name in MATCHED:
            raise UserError(f"{setting}: all runs have the same {name}; give {MATCHED[name]}.")
    choose_device(parsed.device)


def file_name(text):
    """A text as the name of a folder on any system."""
    return re.sub(r"[^\w.=+-]+", "-", text)[:60].rstrip(".")


# ---- what is compared ----

def configure(arguments):
    """{variant: (ModelConfig, TrainConfig of seed 0)}, the default first.

    Raises UserError if two of them are the same.
    """
    words = ["--preset", arguments.preset, "--seed", "0"]
    words += [f"--{name}={value}" for name in ("steps", "data")
              if (value := getattr(arguments, name)) is not None]
    steps = arguments.steps or TrainConfig.preset(arguments.preset).steps
    common = [f"eval_every={max(1, steps // POINTS)}", *arguments.both]
    found = {}
    for name, settings in [(BASE, []), *((" ".join(each), each) for each in arguments.variants)]:
        parsed = options.parse_arguments([*words, *(f"--set={each}" for each in common + settings)])
        configs = options.configure(parsed)
        for other, known in found.items():
            if known == configs:
                raise UserError(f"{name} changes nothing: it is the same as {other}.")
        found[name] = configs
    return found


def claim(folder, study, option="--out"):
    """Begin a study in a folder, or go on with the same one there.

    study: what must be equal, ready for JSON. option: which names the folder. Raises UserError if
    something else is there.
    """
    path, study = folder / "study.json", json.loads(json.dumps(study))
    refuse_files(folder, option)
    if path.exists():
        there = hf.read_json(path)
        for name in {**study, **there}:
            if there.get(name) != study.get(name):
                raise UserError(f"{folder} holds another study, with {name}={there.get(name)!r}, "
                                f"not {study.get(name)!r}; name another folder with {option}.")
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files that are no study; name another folder with "
                        f"{option}.")
    else:
        make_folder(folder, option)
        write_text(path, json.dumps(study, indent=1) + "\n")


def describe(configs, device, sha256):
    """What must be equal where a study goes on: the default's fields, the changes, the text.

    The activations are among it: "auto" is another dtype on a machine with bfloat16 instructions.
    """
    model, recipe = configs[BASE]
    fields = {**model.to_dict(), **recipe.to_dict()}
    return {**fields, "variants": list(configs)[1:], "device": str(device),
            "activations": str(choose_precision(recipe.precision, device)), "corpus_sha256": sha256}


def tell_of_other_tokens(configs):
    """A notice for each variant that reads more or fewer tokens in as many steps."""
    tokens = {name: sum(batch_sizes(recipe)) * recipe.window
              for name, (_, recipe) in configs.items()}
    for name, count in tokens.items():
        if count != tokens[BASE]:
            notice(f"{name} reads {count:,} tokens, the default {tokens[BASE]:,}: steps are "
                   "matched, tokens are not.")


# ---- the runs ----

def folder_of(out, number, name, seed):
    """The run folder of a variant and a seed; its number keeps long names apart."""
    return out / f"{number}-{file_name(name)}" / f"seed-{seed}"


def train(model_config, recipe, folder, device):
    """One run. A loss that diverges is a result, too: it is noted, and not tried again."""
    choose_threads(1)
    try:
        pool.train(model_config, recipe, folder, choose_device(device))
    except FloatingPointError as error:
        write_text(folder / "diverged.txt", f"{error}\n")


def is_done(folder):
    """Whether a run is finished, or has diverged."""
    return any((folder / name).exists() for name in ("summary.json", "diverged.txt"))


def read_run(folder, layers):
    """The figures of a run that is done; None if it diverged. layers: main blocks with experts.

    max_vio is the mean over these layers, None without any; the MTP modules' are left out.
    """
    if not (folder / "summary.json").exists():
        return None
    summary, path = hf.read_json(folder / "summary.json"), folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [line for line in map(as_metrics, text.splitlines()) if line]
    max_vio = summary["max_vio"][:layers]
    return {"seed": summary["seed"], "val_bits_per_byte": summary["val_bits_per_byte"],
            "tokens_per_s": summary["tokens_per_s"],
            "max_vio": sum(max_vio) / layers if layers else None, "dtype": summary["dtype"],
            "curve": [[line["step"], line["val_bits_per_byte"]] for line in lines
                      if "val_bits_per_byte" in line]}


def run(arguments):
    """Train what is missing, print the table, write results.json and the picture -> exit code."""
    configs, out = configure(arguments), arguments.out
    device, sha256 = choose_device(arguments.device), corpus.load(configs[BASE][1].data).sha256
    claim(out, describe(configs, device, sha256))
    tell_of_other_tokens(configs)
    folders = {(name, seed): folder_of(out, number, name, seed)
               for seed in range(arguments.seeds) for number, name in enumerate(configs)}
    # Pairs are trained one after the other, so that a study that was stopped has whole ones.
    tasks = [(configs[name][0], configs[name][1].replace(seed=seed), folder, str(device))
             for (name, seed), folder in folders.items() if not is_done(folder)]
    print(f"{len(tasks)} of {len(folders)} runs to train, {configs[BASE][1].steps:,} steps each, "
          f"in {out}; Ctrl-C saves, the same command goes on", flush=True)
    pool.run_all(train, tasks, arguments.jobs)
    runs = {name: [read_run(folders[name, seed], model.num_moe_layers)
                   for seed in range(arguments.seeds)] for name, (model, _) in configs.items()}
    results = summarise(runs)
    plots.save(picture(results), out / "compare.png")
    write_text(out / "results.json", json.dumps({
        "steps": configs[BASE][1].steps, "seeds": arguments.seeds, "both": arguments.both,
        "variants": results, "device": str(device), "torch": torch.__version__,
        "python": platform.python_version(), "corpus_sha256": sha256}, indent=1) + "\n")
    print(as_text(results))
    print(f"wrote {out}: results.json, compare.png, and the run folders")
    return 0


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(parse_arguments(arguments)), unread=True)


if __name__ == "__main__":
    sys.exit(main())
