"""Pictures of notebook 11: how do you serve it?"""

from minidsv3.measure import plots

SHADES = (plots.SKY, plots.ORANGE, "#DDDDDD")


@plots.style()
def stacks(places, load, ax=None):
    """Each GPU as a stack of its experts; copies of an expert share its load evenly.

    places: by GPU, the experts of its slots.
    """
    figure, ax = (ax.figure, ax) if ax else plots.canvas()
    hosted = [expert for slots in places for expert in slots]
    heights = []
    for gpu, slots in enumerate(places):
        bottom = 0.0
        for n, expert in enumerate(slots):
            share = load[expert] / hosted.count(expert)
            ax.bar(gpu, share, 0.7, bottom=bottom, color=SHADES[n % len(SHADES)],
                   edgecolor=plots.BLACK)
            ax.text(gpu, bottom + share / 2, f"expert {expert}: {share:g}", ha="center",
                    va="center", fontsize=13 if share > 1.5 else 11)
            bottom += share
        heights.append(bottom)
        ax.text(gpu, bottom, f"{bottom:g}", ha="center", va="bottom", fontweight="bold")
    mean = sum(heights) / len(heights)
    ax.plot([-0.5, len(places) - 0.5], [mean, mean], "--", color=plots.VERMILLION)
    ax.text(len(places) - 0.45, mean, "the mean", color=plots.VERMILLION, va="center")
    ax.set(xticks=range(len(places)), xticklabels=[f"GPU {gpu}" for gpu in range(len(places))],
           ylabel="tokens", ylim=(0, 1.12 * max(heights)), xlim=(-0.5, len(places) - 0.1))
    ax.grid(axis="x", visible=False)
    ax.set_title(f"The busiest GPU has {max(heights) / mean:.2f} times the mean load", loc="left")
    return figure


@plots.style()
def by_kind(loads):
    """Loads of all experts over their mean, a row for each kind of text: {kind: (E,)}."""
    figure, ax = plots.canvas(size=(10, 3.2))
    rows = [values / values.mean() for values in loads.values()]
    image = ax.imshow(rows, cmap="cividis", aspect="auto", vmin=0)
    for row, values in enumerate(rows):
        for expert, value in enumerate(values):
            ax.text(expert, row, f"{value:.1f}", ha="center", va="center", fontsize=12,
                    color="black" if value > 0.6 * image.get_clim()[1] else "white")
    ax.set(yticks=range(len(rows)), yticklabels=list(loads), xticks=range(len(rows[0])),
           xlabel="expert [index]")
    ax.grid(False)
    figure.colorbar(image, ax=ax, label="load / mean")
    busiest = len({int(values.argmax()) for values in rows})
    ax.set_title(f"{len(rows)} kinds of text have {busiest} different busiest experts", loc="left")
    return figure


@plots.style()
def one_user(times):
    """When one user gets tokens: {name: seconds of each token}; a prompt of another one comes."""
    figure, ax = plots.canvas(size=(10, 3.4))
    looks = zip((plots.BLUE, plots.BLACK, plots.VERMILLION), times.items())
    for row, (colour, (_, seconds)) in enumerate(looks):
        ax.plot(seconds, [-row] * len(seconds), "|", color=colour, markersize=26,
                markeredgewidth=2.5)
        gap = max(b - a for a, b in zip(seconds, seconds[1:]))
        ax.text(1.01, -row, f"longest wait\n{1000 * gap:.0f} ms", color=colour, va="center",
                transform=ax.get_yaxis_transform())
    ax.set(yticks=[-row for row in range(len(times))], yticklabels=list(times),
           xlabel="time [s]; each mark is a token", ylim=(0.6 - len(times), 0.6))
    ax.grid(axis="y", visible=False)
    ax.set_title("A long prompt stops the other users of its GPUs", loc="left")
    return figure


@plots.style()
def queues(loads, formula, simulated):
    """Mean wait against the load: a formula as a line {load: wait}, a simulation as points."""
    figure, ax = plots.canvas()
    ax.plot(list(formula), list(formula.values()), color=plots.BLUE, label="formula")
    ax.plot(loads, simulated, "o", color=plots.VERMILLION, label="simulated")
    ax.set(xlabel="load [share of the time that the server is busy]", xlim=(0, 1),
           ylabel="mean wait [service times]", ylim=(0, None))
    ax.legend(frameon=False)
    ax.set_title("The busier a server is, the longer is the wait", loc="left")
    return figure
