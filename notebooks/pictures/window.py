"""Pictures of notebook 08: how do you stretch a window?"""

import math

from matplotlib.patches import Circle, Wedge

from minidsv3.measure import plots


@plots.style()
def dials(theta, window, factor):
    """What each pair's hand shows within a window, and what a window `factor` times as long adds.

    theta: angle per token of each pair [radians]. Blue: seen in training. Vermillion: new angles.
    """
    seen = [min(1, window * angle / (2 * math.pi)) for angle in theta.tolist()]
    reached = [min(1, factor * window * angle / (2 * math.pi)) for angle in theta.tolist()]
    columns = -(-len(seen) // 2)
    figure, ax = plots.canvas()
    for pair, (old, new) in enumerate(zip(seen, reached)):
        row, column = divmod(pair, columns)
        centre = (column, -1.35 * row)
        # From the top to the right, as on a clock; matplotlib counts from the right to the top.
        ax.add_patch(Wedge(centre, 0.42, 90 - 360 * new, 90 - 360 * old, facecolor=plots.VERMILLION,
                           hatch="//", edgecolor="white", linewidth=0))
        ax.add_patch(Wedge(centre, 0.42, 90 - 360 * old, 90, facecolor=plots.BLUE))
        ax.add_patch(Circle(centre, 0.42, fill=False, edgecolor=plots.BLACK))
        ax.text(column, centre[1] - 0.62, f"pair {pair}", ha="center")
    ax.text(-0.45, -2.35, f"seen within {window} tokens", color=plots.BLUE)
    ax.text(columns - 0.55, -2.35, f"new within {factor * window:,} (hatched)", ha="right",
            color=plots.VERMILLION)
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(-2.4, 0.5), aspect="equal")
    ax.set_axis_off()
    ax.set_title(f"{sum(share < 1 for share in seen)} of {len(seen)} hands never complete a turn "
                 f"in {window} tokens", loc="left")
    return figure


@plots.style()
def ramp(plain, yarn, ends, factor):
    """Frequencies of all pairs before and after YaRN, with the pairs between which it blends."""
    low, high = ends
    figure, ax = plots.canvas()
    ax.axvspan(low, high, color=plots.SKY, alpha=0.25, linewidth=0)
    ax.text((low + high) / 2, min(plain) / factor * 1.3, f"ramp: pairs {low} to {high}",
            ha="center")
    lines = [*ax.semilogy(plain, color=plots.BLACK, linestyle="--", label="plain"),
             *ax.semilogy(yarn, color=plots.BLUE, marker="o", markersize=5, label="YaRN"),
             *ax.semilogy(plain / factor, color=plots.VERMILLION, linestyle=":",
                          label=f"all / {factor:g}")]
    ax.set(xlabel="pair m [index]", ylabel="angle [radians per token, log scale]",
           xlim=(0, len(plain) - 0.5))
    ax.set_title(f"YaRN keeps the fast pairs and divides the slow ones by {factor:g}", loc="left")
    plots.label_ends(ax, lines, gap=0.07)
    return figure


@plots.style()
def shares_found(curves, window, title):
    """Share of notes found against the length of the text: curves {name: {length: share}}."""
    figure, ax = plots.canvas()
    looks = zip(((plots.BLACK, "--", "o"), (plots.VERMILLION, ":", "v"), (plots.BLUE, "-", "s")),
                curves.items())
    for (colour, dashes, marker), (name, curve) in looks:
        ax.plot(list(curve), list(curve.values()), color=colour, linestyle=dashes, marker=marker,
                label=name)
    ax.axvline(window, color=plots.BLACK, linestyle=":", linewidth=1)
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(curve), [f"{length:,}" for length in curve])
    ax.minorticks_off()
    ax.set(xlabel="length of the text [tokens, log scale]", ylabel="share of notes found",
           ylim=(-0.05, 1.05))
    ax.legend(loc="center right")
    ax.set_title(title, loc="left")
    return figure


@plots.style()
def four_maps(maps, lengths, depths, title):
    """Needle maps of four models in one figure: maps {name: shares (depths, lengths)}."""
    figure, panels = plots.canvas(2, 2, size=(12, 6.75), sharex=True, sharey=True)
    for (name, shares), ax in zip(maps.items(), panels.flat, strict=True):
        image = ax.imshow(shares, aspect="auto", vmin=0, vmax=1, cmap="cividis")
        ax.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        ax.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        ax.grid(False)
        ax.set_title(name, loc="left", fontsize=14)
    figure.colorbar(image, ax=list(panels.flat), label="share of notes found")
    figure.supxlabel("length of the text [tokens]")
    figure.supylabel("depth of the note")
    figure.suptitle(title, x=0.01, ha="left")
    return figure
