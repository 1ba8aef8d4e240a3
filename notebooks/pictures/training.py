"""Pictures of notebook 12: how do you train and judge your own?"""

import numpy as np
from matplotlib.patches import FancyBboxPatch

from minidsv3.measure import plots
from minidsv3.study.compare_results import draw_differences, paired

STEPS = [("text", "documents,\neach once"), ("tokenizer", "frequent\npairs"),
         ("model", "notebooks\n01 to 11"), ("loss", "of the next\ntoken"),
         ("optimiser", "moves all\nweights"), ("evaluation", "on unseen\ntext"),
         ("verdict", "difference\n± error")]
INSIDE = ("model", "loss", "optimiser")          # what is repeated in every step


@plots.style()
def road():
    """From a text to a verdict: seven boxes, of which three are repeated in every step."""
    figure, ax = plots.canvas(size=(10, 3.4))
    for place, (name, words) in enumerate(STEPS):
        lit = name != "model"
        ax.add_patch(FancyBboxPatch(
            (2 * place, 0), 1.75, 1.7, boxstyle="round,pad=0,rounding_size=0.12", linewidth=1.3,
            facecolor=plots.ORANGE if lit else "white", edgecolor=plots.BLACK))
        ax.text(2 * place + 0.87, 1.35, name, ha="center", va="center", fontweight="bold",
                fontsize=12)
        ax.text(2 * place + 0.87, 0.6, words, ha="center", va="center", fontsize=11)
        if place:
            arrow(ax, (2 * place - 0.25, 0.85), (2 * place, 0.85))
    first, last = (2 * [name for name, _ in STEPS].index(name) + 0.87
                   for name in (INSIDE[0], INSIDE[-1]))
    ax.plot([last, last, first], [0, -0.6, -0.6], color=plots.BLUE)
    arrow(ax, (first, -0.6), (first, 0), plots.BLUE)
    ax.text((first + last) / 2, -0.9, "thousands of steps", ha="center", va="center",
            color=plots.BLUE, fontsize=13)
    ax.set(xlim=(-0.2, 2 * len(STEPS) - 0.2), ylim=(-1.2, 2.0), aspect="equal")
    ax.set_axis_off()
    ax.set_title(f"The model is one of {len(STEPS)} boxes: today the other {len(STEPS) - 1}",
                 loc="left")
    return figure


def arrow(ax, start, end, colour=plots.BLACK):
    """A straight arrow."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0,
                                            "shrinkB": 0, "linewidth": 1.5})


@plots.style()
def schedules(progress, curves, title):
    """Schedules of a run: progress (N,) from 0 to 1, curves {name: shares of the highest (N,)}."""
    figure, ax = plots.canvas()
    looks = ((plots.BLUE, "-"), (plots.VERMILLION, "--"), (plots.GREEN, ":"))
    for (name, values), (colour, dashes) in zip(curves.items(), looks):
        ax.plot(progress, values, color=colour, linestyle=dashes, label=name)
    ax.set(xlabel="training progress [share of all tokens]", ylabel="share of the highest value",
           xlim=(0, 1), ylim=(-0.05, 1.1))
    ax.legend(loc="lower left")
    ax.set_title(title, loc="left")
    return figure


@plots.style()
def singular_values(curves):
    """Singular values after each product: {name: values (steps + 1, n)}, 1 is orthogonal."""
    figure, axes = plots.canvas(1, len(curves), size=(10, 4), sharey=True, squeeze=False)
    for ax, (name, values), colour in zip(axes.flat, curves.items(),
                                          (plots.VERMILLION, plots.BLUE)):
        values = np.asarray(values)                                    # (steps + 1, n)
        ax.plot(values, color=colour, marker="o", markersize=4, linewidth=1.2)
        ax.axhline(1, color=plots.BLACK, linestyle="--", linewidth=1)
        ax.set_xticks(range(len(values)))
        ax.set_xlabel("steps")
        ax.set_title(f"{name}: {values[-1].min():.2f} to {values[-1].max():.2f}", loc="left",
                     fontsize=13)
    axes[0, 0].set_ylabel("singular values")
    far = {name: abs(np.asarray(values)[-1] - 1).max() for name, values in curves.items()}
    best = min(far, key=far.get)
    figure.suptitle(f"After {len(values) - 1} steps {best} is within {far[best]:.0%} of 1",
                    x=0.01, ha="left")
    return figure


@plots.style()
def differences(scores, baseline):
    """Differences from the baseline by seed, with mean and standard error: scores {name: values}.

    The baseline is one of the names. Above, a mark per seed; below it, the mean and its error.
    """
    found = {name: paired(values, scores[baseline]) for name, values in scores.items()
             if name != baseline}
    figure, ax = plots.canvas()
    draw_differences(ax, list(found), list(found.values()))
    ax.set_xlabel("difference from the default [bits per byte]; below 0: better")
    larger = [name for name, each in found.items()
              if abs(each["mean"]) > 2 * each["standard_error"]]
    differ = "differ" if len(larger) > 1 else "differs"
    ax.set_title(f"{' and '.join(larger) or 'Nothing'} {differ} from the {baseline} by more than "
                 "twice the error", loc="left")
    return figure
