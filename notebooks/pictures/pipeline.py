"""Pictures of notebook 09: why do pipelines have bubbles?"""

from minidsv3.measure import plots


@plots.style()
def bubbles_over_weight(weights, simulated, formula):
    """The bubble of a schedule for several durations of W, simulated and by Table 2 [F]."""
    figure, ax = plots.canvas()
    lines = [*ax.plot(weights, simulated, "o-", color=plots.BLUE, label="simulated"),
             *ax.plot(weights, formula, "--", color=plots.BLACK, label="Table 2")]
    ax.set(xlabel="time of a weight gradient, W [F]", ylabel="largest idle time [F]",
           ylim=(0, None))
    ax.set_title("Beyond W = F, a longer W does not shorten the bubble", loc="left")
    plots.label_ends(ax, lines)
    return figure
