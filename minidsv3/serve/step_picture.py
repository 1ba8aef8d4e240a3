"""The picture of one step with two micro-batches: what computes while what travels.

    figure = draw(seconds, work)               seconds: a StepCost

Time goes to the right. The upper row is the GPU's computation, the lower one the network. Colour
and number say which micro-batch; the second is one part behind the first. Two neighbouring MoE
layers are drawn, of which a step has some sixty.
"""

LAYERS = 2
COMPUTE, NETWORK = 1, 0                          # the rows, from below


def boxes(seconds, work, layers=LAYERS):
    """(row, micro-batch, name, layer, start, end) of MoE layers in the middle of a step [s]."""
    parts, found, now = seconds.parts(work, 2), [], 0.0
    for layer in range(layers):
        # The second micro-batch still combines the layer before.
        for pair in ((("attention", 1, layer), ("combine", 2, layer - 1)),
                     (("attention", 2, layer), ("dispatch", 1, layer)),
                     (("experts", 1, layer), ("dispatch", 2, layer)),
                     (("experts", 2, layer), ("combine", 1, layer))):
            for row, (name, micro_batch, of_layer) in zip((COMPUTE, NETWORK), pair):
                found.append((row, micro_batch, name, of_layer, now, now + getattr(parts, name)))
            now = max(end for *_, end in found[-2:])
    return found


def draw(seconds, work, title=None, ax=None):
    """The timeline of two layers of a step -> figure; without ax, a new one."""
    from ..measure import plots
    with plots.style():
        if ax is None:
            _, ax = plots.canvas(size=(12, 3.6))
        found = boxes(seconds, work)
        total = max(end for *_, end in found)
        looks = {1: (plots.BLUE, "white"), 2: (plots.ORANGE, "black")}
        for row, micro_batch, name, _, start, end in found:
            colour, ink = looks[micro_batch]
            ax.barh(row, 1e6 * (end - start), left=1e6 * start, height=0.8, color=colour,
                    edgecolor="black")
            wide = (end - start) / total > 0.07          # room for the name; else it stands upright
            ax.text(1e6 * (start + end) / 2, row, f"{name}\n{micro_batch}" if wide
                    else f"{name} {micro_batch}", ha="center", va="center", color=ink, fontsize=12,
                    rotation=0 if wide else 90)
        for layer in range(1, LAYERS):
            ax.axvline(1e6 * total * layer / LAYERS, color="black", linestyle="--", linewidth=1)
        ax.set(yticks=(NETWORK, COMPUTE), yticklabels=("network", "computation"),
               xlim=(0, 1e6 * total), xlabel=f"time within {LAYERS} MoE layers [µs]")
        ax.grid(axis="y", visible=False)
        ax.set_title(title or finding(found, total), loc="left")
    return ax.figure


def finding(found, total):
    """What the picture says, as its title."""
    busy = {row: sum(end - start for this, *_, start, end in found if this == row) / total
            for row in (COMPUTE, NETWORK)}
    return (f"Two micro-batches: the GPU computes {busy[COMPUTE]:.0%} of the time, "
            f"the network is busy for {busy[NETWORK]:.0%}")
