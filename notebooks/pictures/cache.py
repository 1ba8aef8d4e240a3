"""Pictures of notebook 02: why does a 671B model need so little cache?"""

from matplotlib.patches import FancyBboxPatch

from minidsv3.measure import plots


@plots.style()
def two_routes(cached=6):
    """One head's scores by two routes: all latents go up to keys, or the query comes down once."""
    figure, panels = plots.canvas(1, 2, size=(11, 4.6))

    def box(ax, left, bottom, height, colour, words=""):
        ax.add_patch(FancyBboxPatch((left, bottom), 0.6, height, facecolor=colour,
                                    boxstyle="round,pad=0,rounding_size=0.08",
                                    edgecolor=plots.BLACK, linewidth=1.3))
        ax.text(left + 0.3, bottom + height / 2, words, ha="center", va="center")

    def arrow(ax, start, end):
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": plots.VERMILLION,
                                                "shrinkA": 0, "shrinkB": 0, "linewidth": 2})

    for ax, title in zip(panels, ("expand: every latent goes up",
                                  "absorb: the query comes down")):
        for n in range(cached):
            box(ax, 2 + n, 0.6, 1.4, plots.SKY)
        ax.text(2, 0.1, "cached latents", va="center")
        box(ax, 0.2, 3.2, 1.4, "white", "q")
        ax.set(xlim=(0, 2.6 + cached), ylim=(-0.2, 5.2))
        ax.set_axis_off()
        ax.set_title(title, loc="left", fontsize=14)
    expand, absorb = panels
    for n in range(cached):
        box(expand, 2 + n, 3.2, 1.4, plots.ORANGE)
        arrow(expand, (2.3 + n, 2.0), (2.3 + n, 3.2))
    expand.text(2, 4.9, "keys, computed again at each step", va="center")
    box(absorb, 0.2, 0.6, 1.4, plots.ORANGE)
    arrow(absorb, (0.5, 3.2), (0.5, 2.0))
    absorb.text(2, 3.9, "no key is computed", va="center")
    for ax, height in ((expand, 3.9), (absorb, 1.3)):
        ax.annotate("", (2, height), (0.8, height), arrowprops={
            "arrowstyle": "<|-|>", "color": plots.BLACK, "linewidth": 1.5})
        ax.text(1.4, height + 0.25, "scores", ha="center", fontsize=13)
    figure.suptitle("Absorb: one product with $W^{UK}$, not one per cached token", x=0.01,
                    ha="left")
    return figure


@plots.style()
def absorbed_queries(alone, turned):
    """Absorbed queries of a latent with two channels: alone (2,), and turned (N, 2) by distance."""
    figure, ax = plots.canvas(size=(8, 5))
    ax.plot(*turned.T, "o", color=plots.SKY, markeredgecolor=plots.BLACK, markersize=21)
    for distance, (x, y) in enumerate(turned.tolist()):
        ax.text(x, y, distance, ha="center", va="center", fontsize=12)
    ax.annotate("without position:\nonly this one", alone.tolist(), (2.1, 1.5), va="center",
                arrowprops={"arrowstyle": "-|>", "color": plots.BLACK, "shrinkB": 12})
    ax.text(2.1, -0.6, "with position:\none for each distance,\n"
            f"0 to {len(turned) - 1}", color=plots.BLUE, va="center")
    ax.set(xlabel="absorbed query, channel 1", ylabel="channel 2", xlim=(-2, 4.4), ylim=(-2, 2),
           aspect="equal")
    ax.set_title(f"Position inside the key: {len(turned)} distances need {len(turned)} queries",
                 loc="left")
    return figure


@plots.style()
def memory_held(lengths, formed, held):
    """Bytes of the keys and values that a text needs, and of the latents kept in their place."""
    figure, ax = plots.canvas()
    lines = [*ax.plot(lengths, [size / 1e6 for size in formed], "o--", color=plots.BLACK,
                      label="keys and\nvalues"),
             *ax.plot(lengths, [size / 1e6 for size in held], "s-", color=plots.OURS,
                      label="latents,\nkept")]
    ax.set(xlabel="context [tokens]", ylabel="memory [MB]", ylim=(0, None),
           xlim=(0, 1.02 * max(lengths)))
    ax.set_title(f"Measured: keys and values are {formed[-1] / held[-1]:.3g} times as large",
                 loc="left")
    plots.label_ends(ax, lines)
    return figure


@plots.style()
def spectrum(spectra, rank):
    """Singular values of each layer's keys and values, largest first; rank: width of the latent.

    The legend says how many directions hold 99 % of the sum of squares.
    """
    figure, ax = plots.canvas()
    looks = [(plots.BLUE, "-"), (plots.VERMILLION, "--"), (plots.GREEN, "-."), (plots.BLACK, ":")]
    for layer, values in enumerate(spectra, start=1):
        colour, dashes = looks[(layer - 1) % len(looks)]
        share = values.square().cumsum(0) / values.square().sum()
        most = int((share < 0.99).sum()) + 1
        ax.semilogy(range(1, len(values) + 1), values / values[0], color=colour, linestyle=dashes,
                    label=f"layer {layer}: 99 % in {most}")
    ax.axvline(rank, color=plots.BLACK, linewidth=1)
    ax.text(rank + 4, 0.2, f"{rank}: width of the latent")
    ax.set(xlabel="direction [largest first]", ylabel="singular value / largest [log]",
           xlim=(0, len(values)))
    ax.legend(loc="center right")
    ax.set_title(f"{len(values)} numbers per token vary in only {rank} directions", loc="left")
    return figure


@plots.style()
def step_times(times):
    """Milliseconds of one decode step: {name: {cached tokens: time}}, the last name is ours.

    The title says from how many cached tokens on ours is the fastest.
    """
    figure, ax = plots.canvas()
    looks = [("^:", plots.BLACK), ("o--", plots.VERMILLION), ("s-", plots.OURS)]
    lines = [ax.loglog(list(line), list(line.values()), look, color=colour, label=name)[0]
             for (name, line), (look, colour) in zip(times.items(), looks, strict=True)]
    contexts = list(next(iter(times.values())))
    ours = list(times)[-1]
    slower = [tokens for tokens in contexts
              if min(times, key=lambda name: times[name][tokens]) != ours]
    faster = [tokens for tokens in contexts if tokens > max(slower, default=0)]
    ax.set_xticks(contexts, [f"{tokens:,}" for tokens in contexts])
    ax.minorticks_off()
    ax.set(xlabel="cached tokens [log]", ylabel="one step of one layer [ms, log]")
    ax.set_title(f"Measured: {ours} is fastest from {faster[0]:,} cached tokens on" if faster else
                 f"Measured: {ours} is not the fastest", loc="left")
    plots.label_ends(ax, lines, gap=0.1)
    return figure


@plots.style()
def query_times(expanded, absorbed, counted):
    """Times of both routes over the queries at once, {queries: ms}; counted: where work is equal.

    The title says between which numbers of queries the measured lines cross.
    """
    figure, ax = plots.canvas()
    lines = [ax.loglog(list(line), list(line.values()), look, color=colour, label=name)[0]
             for name, line, look, colour in (("expand", expanded, "o--", plots.VERMILLION),
                                              ("absorb", absorbed, "s-", plots.OURS))]
    ax.axvline(counted, color=plots.BLACK, linestyle=":", linewidth=1)
    ax.text(0.95 * counted, min(absorbed.values()), f"equal work, counted: {counted:.0f}",
            ha="right")
    ax.set_xticks(list(expanded), list(expanded))
    ax.minorticks_off()
    ax.set(xlabel="new tokens at once [tokens, log]", ylabel="time of one layer [ms, log]")
    ax.set_title(f"Measured: {crossing(expanded, absorbed)}", loc="left")
    plots.label_ends(ax, lines, gap=0.1)
    return figure


def crossing(expanded, absorbed):
    """Between which numbers of queries the second line rises above the first, in words."""
    below = [n for n in expanded if absorbed[n] < expanded[n]]
    above = [n for n in expanded if absorbed[n] >= expanded[n]]
    if not below or not above:
        return f"{'absorbing' if below else 'expanding'} is faster everywhere"
    if max(below) > min(above):
        return f"the lines touch near {min(above)} queries"
    return f"the lines cross between {max(below)} and {min(above)} queries"
