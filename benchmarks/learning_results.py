"""Figures of the runs of learning.py: means over seeds, differences, the crossing point, pictures.

Differences to the dense GPT are paired: both models of a pair have read the same tokens in the same
order, those of one seed. `±` is the standard error of the mean over seeds.
"""

import math
import statistics

import numpy as np
from contender import DENSE, MODELS, WITH_MTP, WITHOUT_MTP
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from minidsv3.measure import plots

LOOKS = {WITH_MTP: (plots.OURS, "o", "-"), WITHOUT_MTP: (plots.GREEN, "s", "--"),
         DENSE: (plots.BASELINE, "^", ":")}
short = EngFormatter(sep="")                     # 2000 -> 2k


def by_place(runs, model, axis="minutes"):
    """Bits per byte of a model: {place on the axis: {seed: value}}, in the order of the axis."""
    found = {}
    for run in sorted(runs, key=lambda run: run[axis]):
        if run["model"] == model:
            found.setdefault(run[axis], {})[run["seed"]] = run["val_bits_per_byte"]
    return found


def mean_and_error(values):
    """The mean, and its standard error; None for a single value."""
    values = list(values)
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def differences(runs, model):
    """{minutes: a model's bits per byte minus those of the dense GPT, one for each seed}."""
    ours, dense = by_place(runs, model), by_place(runs, DENSE)
    pairs = {minutes: [bits - dense[minutes][seed] for seed, bits in seeds.items()
                       if seed in dense.get(minutes, {})] for minutes, seeds in ours.items()}
    return {minutes: values for minutes, values in pairs.items() if values}


def crossing(means):
    """Minutes from which on the difference stays below 0; None if it is not so at the end.

    means: {minutes: mean difference}, joined by straight lines over log(minutes). If all are below
    0, the shortest time.
    """
    points = sorted(means.items())
    if not points or points[-1][1] >= 0:
        return None
    behind = [place for place, (_, difference) in enumerate(points) if difference >= 0]
    if not behind:
        return points[0][0]
    (before, above), (after, below) = points[behind[-1]:behind[-1] + 2]
    return before * (after / before) ** (above / (above - below))


def in_words(means):
    """The crossing point as the end of a sentence "ours is ..."."""
    minutes = crossing(means)
    if minutes is None:
        return f"not ahead within {max(means):g} minutes"
    if minutes == min(means):
        return f"ahead from the shortest run on ({minutes:g} minutes)"
    return f"ahead from about {float(f'{minutes:.2g}'):g} minutes on"


def mean_differences(runs, model):
    """{minutes: mean difference}."""
    return {minutes: statistics.fmean(values)
            for minutes, values in differences(runs, model).items()}


def summarise(runs):
    """What follows from the runs: the paired differences, and from when on ours is ahead."""
    rows, ahead = [], {}
    for model in (WITH_MTP, WITHOUT_MTP):
        for minutes, values in differences(runs, model).items():
            mean, error = mean_and_error(values)
            rows.append({"model": model, "minutes": minutes, "seeds": len(values),
                         "to_dense": round(mean, 4),
                         "standard_error": None if error is None else round(error, 4)})
        ahead[model] = crossing(mean_differences(runs, model))
    return {"differences": rows, "ahead_from_minutes": ahead}


# ---- tables ----

def with_error(values, sign=""):
    """"1.019 ± 0.004", without the error for a single seed."""
    mean, error = mean_and_error(values)
    return f"{mean:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")


def tables(runs):
    """The runs and the differences as Markdown tables, and a sentence for each crossing point."""
    lines = ["| minutes | model | seeds | steps | tokens | FLOPs | bits per byte |",
             "|---|---|---|---|---|---|---|"]
    for minutes in sorted({run["minutes"] for run in runs}):
        for model in MODELS:
            mine = [run for run in runs if run["model"] == model and run["minutes"] == minutes]
            if mine:
                bits = with_error(run["val_bits_per_byte"] for run in mine)
                lines.append(f"| {minutes:g} | {model} | {len(mine)} | {mine[0]['steps']:,} "
                             f"| {mine[0]['tokens']:,} | {mine[0]['flops']:.2e} | {bits} |")
    found = {model: differences(runs, model) for model in (WITH_MTP, WITHOUT_MTP)}
    lines += ["", f"| minutes | {WITH_MTP} - {DENSE} | {WITHOUT_MTP} - {DENSE} |", "|---|---|---|"]
    for minutes in sorted({minutes for values in found.values() for minutes in values}):
        cells = [with_error(values[minutes], "+") if minutes in values else "-"
                 for values in found.values()]
        lines.append(f"| {minutes:g} | {' | '.join(cells)} |")
    for model, values in found.items():
        if values:
            last = max(values)                   # its error says whether to believe the crossing
            lines += ["", f"{model} is {in_words(mean_differences(runs, model))}; at {last:g} "
                          f"minutes the difference is {with_error(values[last], '+')}."]
    return "\n".join(lines)


# ---- the picture ----

def lead(runs, axis):
    """Ours minus dense at the largest place that both reach -> (place, difference), or None.

    Between two runs the mean is taken from a straight line over the logarithm of the place. The
    true curve sags below it, so the longer the gap, the worse the dense GPT seems.
    """
    curves = [{place: statistics.fmean(seeds.values()) for place, seeds in
               by_place(runs, model, axis).items()} for model in (WITH_MTP, DENSE)]
    if not all(curves):
        return None
    place = min(max(curve) for curve in curves)
    if place < max(min(curve) for curve in curves):
        return None
    ours, dense = (np.interp(math.log(place), np.log(list(curve)), list(curve.values()))
                   for curve in curves)
    return place, ours - dense


def title(runs, axis):
    """The finding of one panel."""
    name = {"minutes": "By the clock", "steps": "By step", "flops": "By FLOP"}[axis]
    if axis == "minutes":
        means = mean_differences(runs, WITH_MTP)
        return f"{name}: ours is {in_words(means)}" if means else name
    found = lead(runs, axis)
    if found is None:
        return f"{name}: runs of ours and of the dense GPT do not overlap"
    place, difference = found
    place = f"{place:,} steps" if axis == "steps" else f"{EngFormatter(places=1)(place)}FLOP"
    return (f"{name}: at {place} ours is {abs(difference):.3f} bits per byte "
            f"{'better' if difference < 0 else 'worse'}")


def band(values):
    """{place: its seeds' values} -> places, lowest, highest, between the places of several seeds.

    One seed has no spread. There the band takes the distances from the mean from its neighbours, by
    straight lines over log(place).
    """
    several = {place: seeds for place, seeds in values.items() if len(seeds) > 1}
    places = [place for place in values if several and min(several) <= place <= max(several)]
    mean = np.array([statistics.fmean(values[place]) for place in places])
    edges = [[pick(seeds) - statistics.fmean(seeds) for seeds in several.values()]
             for pick in (min, max)]
    return places, *(mean + np.interp(np.log(places), np.log(list(several)), edge)
                     if places else mean for edge in edges)


@plots.style()
def panel(ax, runs, axis, label):
    """Bits per byte against minutes, steps or FLOPs: a line through the means, a band, the seeds.

    Small points are the seeds, where there are several.
    """
    ends = []
    for model, (color, marker, line) in LOOKS.items():
        values = {place: list(seeds.values()) for place, seeds in
                  by_place(runs, model, axis).items()}
        if not values:
            continue
        ax.fill_between(*band(values), color=color, alpha=0.2, linewidth=0)
        ends += ax.plot(list(values), [statistics.fmean(seeds) for seeds in values.values()],
                        color=color, marker=marker, linestyle=line, label=model)
        for place, seeds in values.items():
            if len(seeds) > 1:
                ax.plot([place] * len(seeds), seeds, ".", color=color, markersize=5, alpha=0.6)
    if axis == "minutes":
        minutes_axis(ax, runs)
    else:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(short)
        ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(label)
    ax.set_ylabel("validation [bits per byte]")
    ax.set_title(title(runs, axis), loc="left")
    plots.label_ends(ax, ends)


@plots.style()
def difference_panel(ax, runs):
    """Ours minus the dense GPT by the clock: the mean with its standard error, and the seeds.

    Left out are runs shorter than a sixth of the longest. Their differences are so large that the
    last ones, which decide, could not be seen beside them.
    """
    shortest = max(run["minutes"] for run in runs) / 6
    runs, ends = [run for run in runs if run["minutes"] >= shortest], []
    # The models are drawn a little beside the minute, so that one error does not hide another.
    for model, aside in ((WITH_MTP, 1 / 1.015), (WITHOUT_MTP, 1.015)):
        found = differences(runs, model)
        if not found:
            continue
        color, marker, line = LOOKS[model]
        places = [minutes * aside for minutes in found]
        means, errors = zip(*map(mean_and_error, found.values()))
        ends += ax.plot(places, means, color=color, marker=marker, linestyle=line, label=model)
        ax.errorbar(places, means, [math.nan if error is None else error for error in errors],
                    color=color, fmt="none", capsize=5)
        for place, values in zip(places, found.values()):
            if len(values) > 1:
                ax.plot([place] * len(values), values, ".", color=color, markersize=5, alpha=0.6)
    ax.axhline(0, color=plots.BASELINE, linestyle=":")
    minutes_axis(ax, runs)
    ax.set_xlabel("training time at the measured speed [minutes, log scale]")
    ax.set_ylabel("difference to dense GPT\n[bits per byte]")
    ax.set_title("The end of the same: below 0 ours is ahead", loc="left")
    plots.label_ends(ax, ends)


def minutes_axis(ax, runs):
    """A logarithmic axis whose ticks are the lengths of the runs."""
    ticks = sorted({run["minutes"] for run in runs})
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{minutes:g}" for minutes in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


@plots.style()
def figure(runs):
    """Four panels: by the clock, the end of it as a difference, by step, by FLOP."""
    picture, axes = plots.canvas(4, 1, size=(9, 17.5))
    axes[2].sharey(axes[0])
    axes[3].sharey(axes[0])
    panel(axes[0], runs, "minutes", "training time at the measured speed [minutes, log scale]")
    difference_panel(axes[1], runs)
    panel(axes[2], runs, "steps", "training [optimiser steps, log scale]")
    panel(axes[3], runs, "flops", "training [FLOPs of parameters at work, log scale]")
    picture.supxlabel("large points: means over seeds; small points: seeds\n"
                      "bands: lowest to highest seed; bars: standard error")
    return picture
