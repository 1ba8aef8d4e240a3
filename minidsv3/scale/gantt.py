"""The picture of a pipeline's timeline, as the report's Figure 5: draw(timeline) -> figure.

Rank downwards, time to the right, the number of the micro-batch in each cell. Of an overlapped
pair, the left half is the forward chunk. Chunks of a rank's second stage, which DualPipe and
DualPipeV have, carry a bar on top. Darkness and hatching repeat what the colours say.
"""

from .programme import stages_of

KINDS = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient"}
NAMES = {"1f1b": "1F1B", "zb1p": "ZB1P", "dualpipe": "DualPipe", "dualpipev": "DualPipeV"}
HALF = 0.4                                       # half the height of a row


def draw(timeline, title=None, unit="any unit", ax=None):
    """The Gantt chart of a Timeline -> figure; unit: that of its times. Without ax, a new one."""
    from ..measure import plots
    with plots.style():
        if ax is None:
            _, ax = plots.canvas(size=(width_of(timeline), 2 + 0.42 * timeline.ranks))
        handles = draw_boxes(ax, timeline)
        draw_numbers(ax, timeline)
        ax.figure.legend(handles=handles, loc="outside lower left", frameon=False,
                         ncols=len(handles) if ax.figure.get_figwidth() > 14 else 3,
                         handlelength=1.2, columnspacing=1.2)
        ax.set(xlim=(0, timeline.total or 1), ylim=(timeline.ranks - HALF, -0.6),
               yticks=range(timeline.ranks), ylabel="rank", xlabel=f"time [{unit}]")
        ax.grid(False)
        ax.set_title(title or finding(timeline), loc="left")
    return ax.figure


def width_of(timeline):
    """A width in inches at which numbers fit into most cells, from 8 to 24."""
    halves = [half for cell in timeline.cells for half in halves_of(cell)]
    typical = sorted(width for _, _, width in halves)[len(halves) // 4]
    return min(max(8, 0.24 * timeline.total / typical), 24) if typical else 8


def halves_of(cell):
    """(chunk, left edge, width) of each chunk of a cell."""
    width = (cell.end - cell.start) / len(cell.chunks)
    return [(chunk, cell.start + i * width, width) for i, chunk in enumerate(cell.chunks)]


def draw_boxes(ax, timeline):
    """All cells and transfers, without numbers -> what the legend shows."""
    from matplotlib.patches import Patch

    from ..measure import plots
    looks = {"F": {"facecolor": plots.FORWARD}, "B": {"facecolor": mix(plots.BACKWARD, 0.35)},
             "I": {"facecolor": mix(plots.BACKWARD, 0.7)},
             "W": {"facecolor": mix(plots.WEIGHT, 0.8), "hatch": "////"}}
    handles, bars, frames = [], [], []
    for kind, look in looks.items():
        boxes = []
        for cell in timeline.cells:
            first_stage = stages_of(timeline.schedule, timeline.ranks, cell.rank)[0]
            for chunk, left, width in halves_of(cell):
                if chunk.kind == kind:
                    boxes.append(box(left, width, cell.rank - HALF, cell.rank + HALF))
                    if chunk.stage != first_stage:
                        bars.append(box(left, width, cell.rank - HALF, cell.rank - 0.28))
        if boxes:
            add_boxes(ax, boxes, edgecolor="#555555", linewidth=0.5, **look)
            handles.append(Patch(edgecolor="black", label=KINDS[kind], **look))
    for cell in timeline.cells:
        frames.append(box(cell.start, cell.end - cell.start, cell.rank - HALF, cell.rank + HALF))
    add_boxes(ax, bars, facecolor="black")
    add_boxes(ax, frames, facecolor="none", edgecolor="black", linewidth=0.9)
    transfers = [t for t in timeline.transfers if t.end > t.start]
    if transfers:
        add_boxes(ax, [box(t.start, t.end - t.start, t.sender + HALF + 0.02, t.sender + 0.56)
                       for t in transfers], facecolor=plots.COMMUNICATION)
        handles.append(Patch(color=plots.COMMUNICATION, label="communication"))
    if bars:
        handles.append(Patch(color="black", label="bar on top: second stage of the rank"))
    return handles


def box(left, width, top, bottom):
    """The four corners of a rectangle."""
    return [(left, top), (left + width, top), (left + width, bottom), (left, bottom)]


def add_boxes(ax, boxes, **look):
    """Many rectangles at once: a thousand single ones would take seconds."""
    from matplotlib.collections import PolyCollection
    ax.add_collection(PolyCollection(boxes, **look))


def draw_numbers(ax, timeline):
    """The micro-batch of every chunk, where it can be read."""
    scale = 72 * 0.9 * ax.figure.get_figwidth() / (timeline.total or 1)        # points per time
    for cell in timeline.cells:
        for chunk, left, width in halves_of(cell):
            size = min(11, 0.75 * scale * width)
            if size >= 4:
                ax.text(left + width / 2, cell.rank + 0.06, str(chunk.micro_batch), fontsize=size,
                        ha="center", va="center", color="white" if chunk.kind == "F" else "black")


def mix(colour, share):
    """The colour with a share of white."""
    from matplotlib.colors import to_rgb
    return tuple(part + (1 - part) * share for part in to_rgb(colour))


def finding(timeline):
    """What the picture says, as its title."""
    share = timeline.bubble / timeline.total if timeline.total else 0
    return (f"{NAMES[timeline.schedule]}: a rank waits for up to {share:.0%} of the time "
            f"({timeline.bubble:.4g} of {timeline.total:.4g})")
