"""How far runs are from their baseline: the relative loss error, its table and its picture.

    (EMA of the run's loss - EMA of bfloat16's) / EMA of bfloat16's             smoothed with 0.9

as in the report's appendix B. A study gives its runs as {(variant, seed): figures}, the variants in
the order of the table; each run is held against the baseline of the same seed.
"""

import math
import statistics
from itertools import combinations

import torch

from ..measure import plots

BASELINE = "bf16"                                # the variant that all others are compared with
SMOOTHING = 0.9                                  # of the EMA, the report's
CLAIM = 0.0025                                   # the report: below 0.25 %
COLOURS = (plots.BLUE, plots.VERMILLION, plots.GREEN)    # of the seeds


def smooth(losses):
    """The report's moving average, which starts at the first loss: (steps,) -> (steps,)."""
    average, smoothed = losses[0], []
    for loss in losses:
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average)
    return torch.tensor(smoothed, dtype=torch.float64)


def relative_error(run, baseline):
    """(EMA - EMA of the baseline) / EMA of the baseline, at every step: (steps,)."""
    ours, theirs = smooth(run["losses"]), smooth(baseline["losses"])
    return (ours - theirs) / theirs


def summarise(found):
    """{variant: figures}; each figure is (mean, standard deviation) over its seeds.

    A run that diverged makes both NaN.

    Errors are relative to bf16 of the same seed, as fractions. first: mean of |error| over the
    first tenth of the steps, before training amplifies differences; error: the same over all other
    steps; largest: their maximum; last: the mean with its sign over the last tenth.
    """
    figures = {}
    for (arm, seed), run in found.items():
        error = relative_error(run, found[BASELINE, seed])
        tenth = max(1, len(error) // 10)
        late, last = error[tenth:].abs(), error[-tenth:]
        values = figures.setdefault(arm, {})
        for name, value in (("first", error[:tenth].abs().mean().item()),
                            ("error", late.mean().item()), ("largest", late.max().item()),
                            ("last", last.mean().item()),
                            ("val_bits_per_byte", run["val_bits_per_byte"]),
                            ("seconds_a_step", run["seconds_a_step"])):
            values.setdefault(name, []).append(value)
    return {arm: {"seeds": len(values["error"])} | {
        name: (statistics.fmean(each), deviation(each)) for name, each in values.items()}
        for arm, values in figures.items()}


def deviation(values):
    """The standard deviation; None for a single value, NaN if one of several is NaN."""
    if len(values) < 2:
        return None
    return math.nan if math.isnan(sum(values)) else statistics.stdev(values)


def seed_error(found):
    """Mean |relative error| between baselines of two seeds, over all pairs; None for one seed."""
    baselines = [run for (arm, _), run in found.items() if arm == BASELINE]
    errors = [relative_error(one, other) for one, other in combinations(baselines, 2)]
    means = [error[max(1, len(error) // 10):].abs().mean().item() for error in errors]
    return statistics.fmean(means) if means else None


def as_markdown(table):
    """The figures of `summarise` as a table in Markdown."""
    lines = ["| variant | seeds | error, first tenth | then | largest | last tenth, signed "
             "| validation [bits/byte] | s per step |", "|---|---|---|---|---|---|---|---|"]
    for arm, figures in table.items():
        cells = [f"{100 * mean:{sign}.2f}{spread_of(spread, 2, 100)} %" for sign, (mean, spread) in
                 (("", figures["first"]), ("", figures["error"]), ("", figures["largest"]),
                  ("+", figures["last"]))]
        mean, spread = figures["val_bits_per_byte"]
        lines.append(f"| {arm} | {figures['seeds']} | "
                     f"{' | '.join(cells if arm != BASELINE else ['-'] * 4)} | "
                     f"{mean:.4f}{spread_of(spread, 4)} | {figures['seconds_a_step'][0]:.2f} |")
    return "\n".join(lines)


def spread_of(spread, digits, factor=1):
    """" ± " and a standard deviation, or nothing if there is only one seed."""
    return "" if spread is None else f" ± {factor * spread:.{digits}f}"


@plots.style()
def picture(found):
    """Relative loss error over training: a panel per variant, a line per seed, equal scales."""
    arms = list(dict.fromkeys(arm for arm, _ in found if arm != BASELINE))
    errors = {key: 100 * relative_error(run, found[BASELINE, key[1]]) for key, run in found.items()
              if key[0] != BASELINE}
    rows, steps = -(-len(arms) // 2), len(next(iter(errors.values())))
    limit = max(3 * 100 * CLAIM,
                *(error[steps // 10:].abs().max().item() for error in errors.values()))
    figure, axes = plots.canvas(rows, 2, size=(10, 1 + 2.6 * rows), sharex=True, sharey=True,
                                squeeze=False)
    for ax, arm in zip(axes.flat, arms):
        for (other, seed), error in errors.items():
            if other == arm:
                ax.plot(range(1, steps + 1), error.numpy(), color=COLOURS[seed % 3], linewidth=1)
        ax.axhspan(-100 * CLAIM, 100 * CLAIM, color="#CCCCCC", zorder=0)
        ax.set_title(arm, loc="left")
        ax.set_ylim(-limit, limit)
    for unused in axes.flat[len(arms):]:
        unused.set_visible(False)
    figure.supxlabel("training progress [steps]")
    figure.supylabel("loss error relative to bf16 [%]")
    figure.suptitle("Each line one seed; the grey band is the report's ±0.25 %")
    return figure
