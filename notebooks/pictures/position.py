"""Pictures of notebook 03: how does it know the order of the words?"""

import math

from matplotlib.patches import Circle

from minidsv3.measure import plots


@plots.style()
def clocks(places, theta):
    """The hands at some positions, a column each; theta: angle per token of each hand [radians]."""
    names = [f"pair {m}: a turn in\n{2 * math.pi / angle:,.0f} tokens"
             for m, angle in enumerate(theta)]
    figure, ax = plots.canvas()
    for row, angle in enumerate(theta):
        for column, place in enumerate(places):
            x, y = math.sin(place * angle), math.cos(place * angle)
            ax.add_patch(Circle((column, row), 0.42, facecolor="white", edgecolor=plots.BLACK))
            ax.plot([column, column + 0.36 * x], [row, row - 0.36 * y], color=plots.BLUE,
                    linewidth=3.5)
    ax.set(xlabel="position [tokens]", ylim=(len(theta) - 0.5, -0.5), aspect="equal")
    ax.set_xticks(range(len(places)), places)
    ax.set_yticks(range(len(theta)), names)
    ax.grid(False)
    ax.set_title("Fast hands tell neighbours apart, slow hands far from near", loc="left")
    return figure


@plots.style()
def wavelengths(theta, window, longer):
    """Tokens for a turn of each pair, beside the trained window and a longer one [tokens]."""
    figure, ax = plots.canvas()
    tokens = 2 * math.pi / theta                                       # (Dr/2,)
    slow, pair = tokens > window, range(len(theta))
    for chosen, marker, colour in ((~slow, "o", plots.BLUE), (slow, "s", plots.VERMILLION)):
        ax.semilogy([m for m in pair if chosen[m]], tokens[chosen], marker, color=colour)
    for limit in (window, longer):
        ax.axhline(limit, color=plots.BLACK, linestyle="--")
        ax.text(0, limit * 1.2, f"a window of {limit:,}")
    ax.text(12, 60, "whole turns: every angle was seen", color=plots.BLUE)
    ax.text(31, 1500, "less than a turn", color=plots.VERMILLION, ha="right")
    ax.set(xlabel="pair m [index]", ylabel="tokens for a turn [log scale]", ylim=(4, 5e5))
    ax.set_title(f"{slow.sum()} of {len(theta)} pairs never complete a turn in {window:,} tokens",
                 loc="left")
    return figure
