"""What a comparison says: differences by seed and their error, the verdict, the table, the picture.

A study gives its runs as {variant: [figures of seed 0, of seed 1, ...]}, the default first. A run
whose loss diverged is None. Two runs of one seed are a pair: much of what chance does to one it
does to the other, so that their difference has a smaller error than either of them.
"""

import math
import statistics

from ..measure import plots

BASE = "default"                                 # the variant that all others are compared with
TIMES = 2                                        # errors above which a difference is called one
# How often chance alone leads to more than that: Student's t with one degree of freedom fewer.
CHANCE = {2: 0.30, 3: 0.18, 4: 0.14, 5: 0.12}
COLOURS = (plots.BLUE, plots.VERMILLION, plots.GREEN, plots.PURPLE)    # of the variants
MARKERS, LINES = "osD^v", ("-", "--", "-.", ":", (0, (1, 3)))


def paired(scores, baseline):
    """Differences of two lists by seed, their mean, and its standard error: the unit of scores.

    One value for each seed, None for a run that diverged; then mean and error are None. The error
    of one seed is None, too.
    """
    by_seed = [None if None in pair else pair[0] - pair[1] for pair in zip(scores, baseline)]
    if None in by_seed:
        return {"by_seed": by_seed, "mean": None, "standard_error": None}
    error = statistics.stdev(by_seed) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else None
    return {"by_seed": by_seed, "mean": statistics.fmean(by_seed), "standard_error": error}


def verdict(difference):
    """One sentence about what `paired` returned; fewer bits per byte are better."""
    mean, error, seeds = (difference["mean"], difference["standard_error"],
                          len(difference["by_seed"]))
    if mean is None:
        lost = [str(seed) for seed, each in enumerate(difference["by_seed"]) if each is None]
        return f"no difference is stated, because a run diverged (seed {', '.join(lost)})"
    word = "better" if mean < 0 else "worse"
    if error is None:
        return (f"{word} by {abs(mean):.4f} bits per byte in one seed: no error is stated, which "
                "takes two seeds or more")
    if abs(mean) <= TIMES * error:
        return f"no difference beyond the error: {mean:+.4f} ± {error:.4f} bits per byte"
    sentence = f"{word} by {abs(mean):.4f} ± {error:.4f} bits per byte: more than twice its error"
    if seeds in CHANCE:
        sentence += f" (as chance alone gives in {CHANCE[seeds]:.0%} of studies of {seeds} seeds)"
    return sentence


def summarise(runs):
    """Runs of a study -> {variant: its runs, and beside the default its difference and verdict}."""
    scores = {name: [run and run["val_bits_per_byte"] for run in each]
              for name, each in runs.items()}
    results = {name: {"runs": each} for name, each in runs.items()}
    for name in list(runs)[1:]:
        difference = paired(scores[name], scores[BASE])
        results[name] |= {"difference": difference, "verdict": verdict(difference)}
    return results


def as_markdown(results):
    """The table: a line for each run, and for each variant its means."""
    lines = ["| variant | seed | validation [bits/byte] | difference from default | tokens/s "
             "| MaxVio |", "|---|---|---|---|---|---|"]
    for name, each in results.items():
        runs, difference = each["runs"], each.get("difference")
        for seed, run in enumerate(runs):
            cell = "-" if difference is None else signed(difference["by_seed"][seed])
            lines.append(row(name, seed, run, cell))
        if len(runs) > 1:
            mean = None if None in runs else {
                key: mean_of([run[key] for run in runs])
                for key in ("val_bits_per_byte", "tokens_per_s", "max_vio")}
            cell = "-"
            if difference is not None and difference["mean"] is not None:
                cell = f"{signed(difference['mean'])} ± {difference['standard_error']:.4f}"
            lines.append(row(f"**{name}**", f"mean of {len(runs)}", mean, cell))
    return "\n".join(lines)


def row(name, seed, run, cell):
    """A line of the table; run: its figures, or None if there are none."""
    if run is None:
        return f"| {name} | {seed} | diverged | {cell} | - | - |"
    max_vio = "-" if run["max_vio"] is None else f"{run['max_vio']:.2f}"
    return (f"| {name} | {seed} | {run['val_bits_per_byte']:.4f} | {cell} | "
            f"{run['tokens_per_s']:,.0f} | {max_vio} |")


def mean_of(values):
    """The mean of some numbers; None if one of them is None, as MaxVio is without experts."""
    return None if None in values else statistics.fmean(values)


def signed(difference):
    """A difference with its sign, or a dash for None."""
    return "-" if difference is None else f"{difference:+.4f}"


def as_text(results):
    """The table, and below it a sentence for each variant."""
    sentences = [f"{name}: {each['verdict']}." for name, each in results.items()
                 if "verdict" in each]
    return "\n".join([as_markdown(results), "", *sentences])


# ---- the picture ----

@plots.style()
def picture(results):
    """Bits per byte over the steps, the paired differences of all seeds, the experts' load."""
    names = list(results)
    figure, (left, middle, right) = plots.canvas(1, 3, size=(16, 6), width_ratios=[7, 5, 4])
    lines = [draw_curve(left, number, name, results[name]["runs"])
             for number, name in enumerate(names)]
    lines = [line for line in lines if line is not None]
    several = len(results[BASE]["runs"]) > 1
    left.set_title("Mean of the seeds, and the band from\nthe best to the worst" if several
                   else "One seed", loc="left")
    left.set_xlabel("training progress [steps], without the first third")
    left.set_ylabel("validation [bits per byte]")
    plots.label_ends(left, lines)
    draw_differences(middle, names, [results[name]["difference"] for name in names[1:]])
    right.sharey(middle)
    draw_loads(right, [results[name]["runs"] for name in names])
    return figure


def look(number):
    """Colour, marker and line style of a variant; number 0 is the default."""
    if number == 0:
        return plots.BASELINE, "o", "-"
    number -= 1
    return (COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)],
            LINES[(number + 1) % len(LINES)])


def draw_curve(ax, number, name, runs):
    """The mean over the seeds that did not diverge, with a band -> the line, None without any.

    The first third is left out: its fall is so deep that nothing else would be seen beside it.
    """
    curves = [dict(run["curve"]) for run in runs if run]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    steps = steps[len(steps) // 3:]
    if not steps:
        return None
    colour, marker, style = look(number)
    values = [[curve[step] for curve in curves] for step in steps]
    if len(curves) > 1:
        ax.fill_between(steps, [min(each) for each in values], [max(each) for each in values],
                        color=colour, alpha=0.2, linewidth=0)
    return ax.plot(steps, [statistics.fmean(each) for each in values], color=colour, marker=marker,
                   linestyle=style, markersize=5, label=in_lines(name))[0]


def in_lines(name):
    """The name of a variant with one setting a line."""
    return name.replace(" ", "\n")


def draw_differences(ax, names, differences):
    """A row for each variant: a point for each seed, and the mean with its error.

    names: those of the rows; the first is the default's, which has no difference.
    """
    for number, difference in enumerate(differences, start=1):
        colour, marker, _ = look(number)
        points = [each for each in difference["by_seed"] if each is not None]
        ax.plot(points, [number - 0.15] * len(points), marker, color=colour, markerfacecolor="none")
        if difference["standard_error"] is not None:
            ax.errorbar(difference["mean"], number + 0.15, xerr=difference["standard_error"],
                        color=colour, marker=marker, capsize=6)
    ax.axvline(0, color=plots.BASELINE)
    lost = [""] + ["\n(diverged)" if each["mean"] is None else "" for each in differences]
    ax.set_yticks(range(len(names)), [in_lines(name) + end for name, end in zip(names, lost)])
    ax.set_ylim(len(names) - 0.5, -0.5)          # the first on top, as in the table
    ax.locator_params(axis="x", nbins=4)
    ax.margins(x=0.1)
    ax.set_xlabel("difference from the default\n[bits per byte], below 0 is better")
    ax.set_title("One seed: no error is known" if len(differences[0]["by_seed"]) == 1 else
                 "Above: each seed.\nBelow: mean ± its error", loc="left")


def draw_loads(ax, variants):
    """MaxVio in the rows of `draw_differences`; variants: the runs of each row."""
    for number, runs in enumerate(variants):
        colour, marker, _ = look(number)
        loads = [run["max_vio"] for run in runs if run and run["max_vio"] is not None]
        ax.plot(loads, [number] * len(loads), marker, color=colour, markerfacecolor="none")
    ax.tick_params(labelleft=False)              # they stand beside the differences
    ax.margins(x=0.15)
    ax.set_xlim(left=0)
    ax.set_xlabel("MaxVio, mean of the layers\n0: equal loads")
    ax.set_title("The load of the\nbusiest expert", loc="left")
