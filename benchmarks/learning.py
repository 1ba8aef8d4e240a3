"""What the models of train.py learn in a given time: runs of planned length, stored in one file.

A run is planned in steps, as many as fill the minutes at the speed that was measured before. Its
result then does not depend on the clock, on other programs, or on how many runs are made at once.
"""

import json
import math
from functools import lru_cache, partial

import torch
from contender import MODELS, Contender, make_model
from learning_results import summarise
from tqdm import tqdm

from minidsv3.command import UserError
from minidsv3.data.dataset import Dataset
from minidsv3.files import write_text
from minidsv3.study.pool import run_all

FIGURES = {"model", "minutes", "seed", "steps", "tokens", "flops", "seconds",         # planned
           "val_bits_per_byte", "real_seconds"}                                       # measured


# ---- what is planned ----

def read_minutes(words):
    """Numbers of minutes, each alone or as minutes:seeds -> {minutes: seeds}, shortest first."""
    found = {}
    for word in words:
        minutes, colon, seeds = word.partition(":")
        try:
            minutes, seeds = float(minutes), int(seeds) if colon else 1
        except ValueError:
            minutes = math.nan
        if not 0 < minutes < math.inf or seeds < 1:
            raise UserError(f"--minutes {word} must be minutes above 0, or minutes:seeds; give for "
                            "instance 5, or 5:3 for three seeds.")
        if minutes in found:
            raise UserError(f"--minutes {minutes:g} is given twice; give it once.")
        found[minutes] = seeds
    return dict(sorted(found.items()))


def plan_steps(minutes, tokens_per_s, recipe):
    """The number of optimiser steps that take this many minutes at the measured speed."""
    return max(1, round(minutes * 60 * tokens_per_s / (recipe.batch_size * recipe.window)))


def plan(minutes, speed, recipes):
    """The figures of each run that are known before it, shortest runs first.

    minutes: {minutes: seeds}; speed, recipes: {model: its figures, its recipe}. The seeds count up
    from that of the recipe.
    """
    runs = []
    for length, seeds in minutes.items():
        for more in range(seeds):
            for name in MODELS:
                recipe, figures = recipes[name], speed[name]
                steps = plan_steps(length, figures["tokens_per_s"], recipe)
                tokens = steps * recipe.batch_size * recipe.window
                # A parameter at work is one multiplication and one addition per token, and twice
                # as many again in the backward pass. This leaves out the attention scores, the
                # routing, and the optimiser (Muon's products too).
                runs.append({"model": name, "minutes": length, "seed": recipe.seed + more,
                             "steps": steps, "tokens": tokens,
                             "flops": 6 * figures["at_work"] * tokens,
                             "seconds": round(tokens / figures["tokens_per_s"], 1)})
    return runs


# ---- a run, in a process of its own ----

@lru_cache(maxsize=1)                            # the models of one seed run one after another
def read_data(*what):
    """The data of a seed; to make them takes as long as many steps."""
    return Dataset(*what)


def learn(planned, config, recipe, device):
    """Train one model from new weights through the whole schedule -> its figures.

    Raises FloatingPointError that names the run, if its loss is no longer finite.
    """
    torch.set_num_threads(1)
    name, steps, recipe = planned["model"], planned["steps"], recipe.replace(seed=planned["seed"])
    data = read_data(recipe.data, config.vocab_size, recipe.window, recipe.fim_rate, recipe.seed)
    contender = Contender(partial(make_model, name, config), recipe, device)
    label = f"{name}, {planned['minutes']:g} min, seed {recipe.seed}"
    with tqdm(total=steps, unit="step", desc=label, dynamic_ncols=True, leave=False) as bar:
        for step in range(steps):
            try:
                loss = contender.step(data.batches, (step + 1) / steps)
            except FloatingPointError as error:
                raise FloatingPointError(f"{label}, step {step + 1}: {error}") from None
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()
    return planned | {"val_bits_per_byte": round(contender.bits_per_byte(data), 4),
                      "real_seconds": round(contender.seconds, 1)}


# ---- the file of results ----

def store(path, results):
    """Write all results, and what follows from them."""
    write_text(path, json.dumps(results | {"summary": summarise(results["learning"])},
                                indent=2) + "\n")


def read_stored(path, settings):
    """The results in a file, None if there is no file. UserError if their settings are others."""
    if not path.exists():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        stored, _ = results["settings"], [results["speed"][name]["at_work"] for name in MODELS]
        whole = all(set(run) == FIGURES and run["model"] in MODELS for run in results["learning"])
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{path} holds nothing that can be continued, perhaps results of an older "
                        "version; name another --out.")
    for name in {**settings, **stored}:
        if stored.get(name) != settings.get(name):
            raise UserError(f"{path} was made with {name} {stored.get(name)}, not "
                            f"{settings.get(name)}; repeat its settings, or name another --out.")
    return results


def missing(planned, stored):
    """The planned runs that are not stored. UserError if one is stored with other figures."""
    there = {which(run): run for run in stored}
    for run in planned:
        kept = there.get(which(run), run)
        if not run.items() <= kept.items():
            raise UserError(f"a stored run of {run['model']} for {run['minutes']:g} minutes has "
                            f"{kept['steps']:,} steps, and {run['steps']:,} are planned; name "
                            "another --out.")
    return [run for run in planned if which(run) not in there]


def which(run):
    """What tells a run from all others, in their order."""
    return run["minutes"], run["seed"], MODELS.index(run["model"])


def run_missing(planned, results, path, config, recipes, device, jobs):
    """Make the planned runs that are not in the results; each is stored as soon as it is there."""
    todo = missing(planned, results["learning"])
    if len(todo) < len(planned):
        print(f"{len(planned) - len(todo)} of {len(planned)} runs are in {path} and are left out",
              flush=True)

    def keep(run):
        results["learning"] = sorted([*results["learning"], run], key=which)
        store(path, results)

    run_all(learn, [(run, config, recipes[run["model"]], device) for run in todo], jobs, keep)
