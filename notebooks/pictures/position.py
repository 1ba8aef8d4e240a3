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
    ax.set_title("Fast hands separate neighbours, slow hands distant tokens", loc="left")
    return figure


def distances(scores):
    """Scores (T, T) of one query at each position t with one key at each position j."""
    places, largest = range(len(scores)), abs(scores).max().item()
    return plots.heat_map(scores, "score", "Equal distance, equal score: each diagonal has one "
                          "number", places, places, "position of the key, j",
                          "position of the query, t", 0, (0, largest),
                          [[f"{score:.2f}" for score in row] for row in scores.tolist()])


@plots.style()
def rotated_queries(plain, turned):
    """Queries for a latent of two channels: one for all distances (2,), and one for each (N, 2)."""
    figure, panels = plots.canvas(1, 2, sharey=True)
    reach = 1.35 * max(plain.norm(), turned.norm(dim=1).max()).item()
    for ax, queries, names, words in (
            (panels[0], plain[None], [f"0 to {len(turned) - 1}"],
             "not rotated: one for all distances"),
            (panels[1], turned, range(len(turned)), "rotated: one for each distance")):
        for query, name in zip(queries, names, strict=True):
            ax.annotate("", query.tolist(), (0, 0), arrowprops={
                "arrowstyle": "->", "linewidth": 2, "color": plots.BLUE, "shrinkA": 0,
                "shrinkB": 0})
            ax.text(*(query + 0.12 * reach * query / query.norm()).tolist(), name, ha="center",
                    va="center")
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal",
               xlabel="latent channel 1")
        ax.set_title(words, loc="left", fontsize=13)
    panels[0].set_ylabel("latent channel 2")
    figure.suptitle("If all channels are rotated, each distance needs its own absorbed query",
                    x=0.01, ha="left")
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
    ax.text(24, 2e4, "less than a turn", color=plots.VERMILLION, ha="right")
    ax.set(xlabel="pair m [index]", ylabel="tokens for a turn [log scale]", ylim=(4, 5e5))
    ax.set_title(f"{slow.sum()} of {len(theta)} pairs never complete a turn in {window:,} tokens",
                 loc="left")
    return figure
