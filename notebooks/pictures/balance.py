"""Pictures of notebook 05: who keeps the experts busy?"""

import torch

from minidsv3.measure import plots

LOOKS = (("A", plots.BLUE, "-"), ("B", plots.VERMILLION, "--"), ("C", plots.GREEN, "-."),
         ("D", plots.BLACK, ":"))

# words: centre of the box. The loop is on the left, the brake on the right.
BOXES = {"chosen more often": (3.3, 6), "more tokens to learn from": (3.3, 4),
         "better at its task": (3.3, 2), "higher affinity s": (3.3, 0),
         "count the tokens\nof each expert": (9.8, 4),
         "bias b: down if above\nthe mean, up if below": (9.8, 6)}
LOOP = [((3.3, 5.4), (3.3, 4.6)), ((3.3, 3.4), (3.3, 2.6)), ((3.3, 1.4), (3.3, 0.6)),
        ((2.2, 0), (0.2, 0)), ((0.2, -0.04), (0.2, 6.04)), ((0.2, 6), (2.05, 6))]
BRAKE = [((5.0, 4), (8.65, 4)), ((9.8, 4.7), (9.8, 5.3)), ((8.35, 6), (4.6, 6))]


@plots.style()
def loop_and_brake():
    """The loop of training in the weights, and the bias that acts on the choice."""
    figure, ax = plots.canvas(size=(10, 4.6))
    for words, place in BOXES.items():
        ax.text(*place, words, ha="center", va="center",
                bbox={"boxstyle": "round,pad=0.4", "facecolor": "white"})
    for arrows, colour in ((LOOP, plots.VERMILLION), (BRAKE, plots.GREEN)):
        for start, end in arrows:
            corner = end[0] == 0.2                                 # of the way back: no head
            ax.annotate("", end, start, arrowprops={
                "arrowstyle": "-" if corner else "-|>", "linewidth": 2.5, "shrinkA": 0,
                "shrinkB": 0, "color": colour})
    ax.text(0.45, 3, "the loop:\nin the\nweights", color=plots.VERMILLION, va="center")
    ax.text(6.9, 2.6, "the brake: in the choice only", color=plots.GREEN, va="center")
    ax.set(xlim=(-0.1, 12.4), ylim=(-0.7, 6.8))
    ax.set_axis_off()
    ax.set_title("Training makes a loop; the bias is a brake outside of it", loc="left")
    return figure


@plots.style()
def shares(histories, title=None):
    """Shares of the tokens of experts A to D, a panel for each speed: {gamma: (rounds, 4)}."""
    count = len(histories)
    figure, panels = plots.canvas(1, count, size=(8 if count == 1 else 12, 4.2), sharey=True,
                                  squeeze=False)
    for ax, (gamma, history) in zip(panels.flat, histories.items()):
        lines = [ax.plot(100 * share, style, color=colour, label=name)[0]
                 for share, (name, colour, style) in zip(history.T, LOOKS)]
        busiest = history[-20:].max()
        ax.set(xlabel="round", ylim=(-2, 104))
        speed = f"γ = {gamma:.2g}" if gamma else "no brake"
        ax.set_title(f"{speed}: at the end up to {busiest:.0%} for one", fontsize=12)
        plots.label_ends(ax, lines, gap=0.07)
    panels[0, 0].set_ylabel("share of the tokens [%]")
    figure.suptitle(title or "The busiest expert in the last 20 rounds", x=0.01, ha="left")
    return figure


@plots.style()
def balancing(loads, biases):
    """Loads and biases of experts A to D over the steps: (steps, 4) each."""
    figure, panels = plots.canvas(1, 2, size=(12, 4.5))
    for ax, values, label in zip(panels, (loads, biases), ("load [tokens]", "bias b")):
        lines = [ax.plot(line, style, color=colour, label=name)[0]
                 for line, (name, colour, style) in zip(values.T, LOOKS)]
        ax.set(xlabel="step", ylabel=label)
    for load, (name, colour, _) in zip(loads[0].tolist(), LOOKS):
        panels[0].text(-6, load, name, color=colour, ha="right", va="center")
    panels[0].set_xlim(left=-22)
    panels[0].set_title(f"All loads meet at {loads.mean():g} tokens", loc="left")
    panels[1].set_title("The less popular, the higher its bias", loc="left")
    plots.label_ends(panels[1], lines, gap=0.07)
    return figure


@plots.style()
def collapse(loads, title, at_once=5):
    """Maps of the load of each expert over training: {variant: (steps, E)}.

    The load of `at_once` steps is one cell. A panel's title has the share of the busiest quarter
    of the experts in the last 20 steps.
    """
    figure, panels = plots.canvas(1, len(loads), size=(12, 4.6), sharey=True)
    stacked = torch.stack([load.double() for load in loads.values()], dim=1)       # (S, M, E)
    cells = stacked.unflatten(0, (-1, at_once)).mean(1)
    steps = range(at_once // 2, len(stacked), at_once)
    plots.expert_load(cells / cells.mean(-1, keepdim=True), steps, panels)
    for ax, name, load in zip(panels, loads, stacked[-20:].mean(0)):
        few = len(load) // 4
        share = load.topk(few).values.sum() / load.sum()
        ax.set_title(f"{name}: in the end\n{few} experts take {share:.0%}", fontsize=13)
        ax.set_xlabel("step")
    panels[0].set_ylabel("routed expert [index]")
    figure.suptitle(title, x=0.01, ha="left")
    return figure
