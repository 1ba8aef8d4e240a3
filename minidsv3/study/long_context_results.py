"""The figures of the long-context study: means over maps and seeds, the table, the pictures."""

import platform

import numpy as np
import torch

from ..context import needle, position
from ..measure import plots

MAIN = ("before", "yarn_untrained", "phase1", "phase2")
ABLATIONS = ("plain", "one_phase", "no_notes", "no_mscale")
HARD = ("before", "phase2")                      # measured on all three tasks, of the first seed
INSIDE = 32                                      # windows: up to here a mean over the map counts


def mean_accuracy(figures, task="single", part=lambda distance, length: True):
    """Mean of a map over the lengths up to INSIDE windows.

    part: which cells count, by the tokens between note and question, and by the length.
    """
    window, cells = figures["window"], []
    for depth, row in zip(figures["depths"], figures["maps"][task], strict=True):
        for length, share in zip(figures["lengths"], row, strict=True):
            if length <= INSIDE * window and part((1 - depth) * length, length):
                cells.append(share)
    return float(np.mean(cells))


def summarise(runs):
    """All figures of a study -> the content of results.json. runs: {(model, seed): figures}."""
    window = next(iter(runs.values()))["window"]
    of = {model: [figures for (name, _), figures in runs.items() if name == model]
          for model in (*MAIN, *ABLATIONS)}
    of = {model: found for model, found in of.items() if found}

    def over_seeds(value):
        return {model: round(float(np.mean([value(each) for each in found])), 4)
                for model, found in of.items()}

    def curve(model):
        curves = [figures["bits_by_position"] for figures in of[model]]
        return {place: round(float(np.mean([each[place] for each in curves])), 4)
                for place in curves[0]}

    return {
        "window": window, "seeds": len(of["phase2"]), "chance": needle.CHANCE["single"],
        "needle_accuracy": over_seeds(mean_accuracy),
        "needle_accuracy_by_seed": {model: [round(mean_accuracy(each), 4) for each in found]
                                    for model, found in of.items()},
        "before_inside": round(float(np.mean([
            mean_accuracy(each, part=lambda distance, length: length <= window)
            for each in of["before"]])), 4),
        "before_beyond": round(float(np.mean([
            mean_accuracy(each, part=lambda distance, length: distance > window)
            for each in of["before"]])), 4),
        "harder_tasks": {task: {model: round(float(np.mean(
            [mean_accuracy(each, task) for each in of[model] if task in each["maps"]])), 4)
            for model in HARD if task in of[model][0]["maps"]} for task in needle.TASKS[1:]},
        "bits_per_byte_inside": over_seeds(lambda figures: figures["bits_per_byte_inside"]),
        "bits_by_position": {model: curve(model) for model in of},
        "seconds": round(sum(each["trained_s"] + each["measured_s"] for each in runs.values())),
        "trained_s": over_seeds(lambda figures: figures["trained_s"]),
        "torch": torch.__version__, "python": platform.python_version()}


def mean_map(runs, model, task="single"):
    """The map of a model as the mean over its seeds, as an array (depths, lengths)."""
    return np.mean([figures["maps"][task] for (name, _), figures in runs.items()
                    if name == model], axis=0)


def draw(runs, results, out):
    """maps.png and position.png."""
    any_run = next(iter(runs.values()))
    figure, panels = plots.canvas(2, 2, size=(15, 9))
    titles = {"before": "trained at {window} tokens", "yarn_untrained": "YaRN, not trained",
              "phase1": "after phase 1", "phase2": "after phase 2"}
    for model, ax in zip(MAIN, panels.flat, strict=True):
        share = results["needle_accuracy"][model]
        needle.heat_map(mean_map(runs, model), any_run["lengths"], any_run["depths"],
                        f"{titles[model].format(**results)}: {share:.0%}", ax=ax)
    plots.save(figure, out / "maps.png")
    curves = {titles[model].format(**results): {int(place): bits for place, bits in
                                                results["bits_by_position"][model].items()}
              for model in MAIN}
    plots.save(position.picture(curves, results["window"],
                                "After both phases a longer text hardly disturbs"),
               out / "position.png")


def as_markdown(results):
    """The table of README: one line for each model."""
    window, curves = results["window"], results["bits_by_position"]
    first, *_, last = [place for place in curves["phase2"] if int(place) <= INSIDE * window]
    lines = [f"| model | notes found | bits per byte inside {window} tokens | of the same tokens "
             f"after {first} | after {last} |", "|---|---|---|---|---|"]
    for model, share in results["needle_accuracy"].items():
        inside, curve = results["bits_per_byte_inside"][model], curves[model]
        lines.append(f"| {model} | {share:.1%} | {inside:.3f} | {curve[first]:.3f} | "
                     f"{curve[last]:.3f} |")
    return "\n".join(lines)
