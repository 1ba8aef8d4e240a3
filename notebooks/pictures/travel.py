"""Pictures of notebook 10: how do tokens find their experts?"""

from matplotlib.patches import FancyBboxPatch

from minidsv3.measure import plots

STAYS, INSIDE, ACROSS = ((plots.BLACK, ":"), (plots.BLUE, "--"), (plots.VERMILLION, "-"))


@plots.style()
def journeys(chosen, per_gpu, gpus_per_node, hops=1):
    """Tokens above, the GPUs of their experts below, and an arrow for each copy.

    chosen: by GPU, the experts of each of its tokens. In two hops a row between them shows the GPUs
    that pass copies on.
    """
    gpus = len(chosen)
    figure, ax = plots.canvas(size=(8, 4.5 if hops == 1 else 6))
    top = 2 if hops == 1 else 3.2
    for node in range(gpus // gpus_per_node):
        left = node * gpus_per_node
        ax.add_patch(FancyBboxPatch((left - 0.44, -0.6), gpus_per_node - 0.12, top + 1.2,
                                    boxstyle="round,pad=0,rounding_size=0.1", facecolor="#F4F4F4",
                                    edgecolor="#999999"))
        ax.text(left + (gpus_per_node - 1) / 2, top + 0.72, f"node {node}", ha="center")
    levels = [0] if hops == 1 else [0, 1.6]
    for gpu in range(gpus):
        experts = range(gpu * per_gpu, (gpu + 1) * per_gpu)
        box(ax, gpu, 0, "experts " + " ".join(map(str, experts)))
        ax.text(gpu, -0.48, f"GPU {gpu}", ha="center")
        if hops == 2:
            box(ax, gpu, 1.6, "passes on")
        tokens = len(chosen[gpu])
        for n in range(tokens):
            ax.text(place(gpu, n, tokens), top, str(n), ha="center", va="center", zorder=3,
                    bbox={"boxstyle": "circle", "facecolor": plots.SKY, "edgecolor": plots.BLACK})
        if not tokens:
            ax.text(gpu, top, "no token", ha="center", va="center", color="#666666")
    drawn = set()
    for home, tokens in enumerate(chosen):
        for n, experts in enumerate(tokens):
            start = (place(home, n, len(tokens)), top)
            for gpu in sorted({expert // per_gpu for expert in experts}):
                for step in path(home, gpu, gpus_per_node, hops):
                    # The copy for a node is one arrow, however many GPUs of the node want it.
                    if (home, n, *step) not in drawn:
                        arrow(ax, start, step, n, levels, gpus_per_node)
                    drawn.add((home, n, *step))
    across = sum(far(source, target, gpus_per_node) for _, _, _, source, target in drawn)
    choices = sum(len(experts) for tokens in chosen for experts in tokens)
    last = sum(level == 0 for _, _, level, _, _ in drawn)
    ax.set_title(f"{choices} choices need {last} copies; {across} cross between nodes" if hops == 1
                 else f"In two hops {across} copies cross between nodes", loc="left")
    for at, (colour, dashes), text in ((0, STAYS, "stays"), (0.9, INSIDE, "inside a node"),
                                       (2.3, ACROSS, "between nodes")):
        ax.plot([at - 0.4, at - 0.15], [-0.92] * 2, color=colour, linestyle=dashes)
        ax.text(at - 0.1, -0.92, text, va="center")
    ax.set(xlim=(-0.5, gpus - 0.5), ylim=(-1.1, top + 1))
    ax.set_axis_off()
    return figure


def place(gpu, n, tokens):
    """Where the n-th token of a GPU stands."""
    return gpu + 0.4 * (n - (tokens - 1) / 2)


def far(source, target, gpus_per_node):
    """Are two GPUs in different nodes?"""
    return source // gpus_per_node != target // gpus_per_node


def path(home, gpu, gpus_per_node, hops):
    """The steps (level, source, target) of a copy from GPU `home`; the last one is to level 0."""
    if hops == 1:
        return [(0, home, gpu)]
    between = gpu // gpus_per_node * gpus_per_node + home % gpus_per_node
    return [(1, home, between), (0, between, gpu)]


def box(ax, gpu, height, text):
    """A GPU."""
    ax.add_patch(FancyBboxPatch((gpu - 0.36, height - 0.22), 0.72, 0.44, facecolor="white",
                                edgecolor=plots.BLACK, boxstyle="round,pad=0,rounding_size=0.08"))
    ax.text(gpu, height, text, ha="center", va="center", fontsize=12)


def arrow(ax, start, step, n, levels, gpus_per_node):
    """One step of a copy; start: where its token stands."""
    level, source, target = step
    colour, dashes = (ACROSS if far(source, target, gpus_per_node) else
                      STAYS if source == target else INSIDE)
    # Arrows that end at one box are apart, by where they come from.
    lean = 0.09 * (start[0] - 1.5)
    above = level + 1 < len(levels)
    begin = (source + lean, levels[level + 1] - 0.24) if above else (start[0], start[1] - 0.24)
    ax.annotate("", (target + lean, levels[level] + 0.24), begin,
                arrowprops={"arrowstyle": "-|>", "color": colour, "linestyle": dashes,
                            "linewidth": 2, "shrinkA": 0, "shrinkB": 0})
