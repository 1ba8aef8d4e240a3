"""One style for all figures, and the figures that several parts of the project need.

A plotting function takes data and, optionally, the axes to draw into; it returns the figure. It
shows nothing, saves nothing, and changes no setting of matplotlib. Figures are made without pyplot:
they need no display and need not be closed. A notebook shows a figure if it is the value of the
last line of a cell.

    fig = loss_curve(metrics)        # metrics: the lines of metrics.jsonl
    save(fig, "loss.png")

Colour-blind readers can tell the colours apart, and each has a contrast of at least 3:1 against
white. A marker, a line style or a label always repeats what the colour says.
`measure/architecture.py` draws the architecture.
"""

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image

from ..files import replacing

BLUE, VERMILLION, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
ORANGE, SKY = "#E69F00", "#56B4E9"        # only 2.3:1: for areas with a dark edge, not for lines

FORWARD, BACKWARD, WEIGHT, COMMUNICATION = BLUE, VERMILLION, GREEN, PURPLE
OURS, BASELINE = BLUE, BLACK

LOOK = {
    "figure.figsize": (8, 4.5), "figure.dpi": 100, "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",         # part of matplotlib, so the same on every machine
    "font.size": 13, "axes.titlesize": 15, "figure.titlesize": 15, "figure.labelsize": 13,
    "axes.labelsize": 13, "xtick.labelsize": 13, "ytick.labelsize": 13,
    "legend.fontsize": 13,
    "lines.linewidth": 2, "lines.markersize": 7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": "#DDDDDD", "grid.linewidth": 0.7,
    "image.cmap": "cividis",
}
MAX_BYTES = 200_000


class Picture(Figure):
    """A figure that a notebook can show without %matplotlib, as a PNG."""

    def _repr_png_(self):
        return png(self, dpi=100)


def style():
    """The style as a context or a decorator: `with style():` around the drawing."""
    return matplotlib.rc_context(LOOK)


@style()
def canvas(rows=1, columns=1, size=None, **options):
    """New figure in our style -> (figure, axes); arguments as in Figure.subplots, size [inch]."""
    figure = Picture(figsize=size)
    return figure, figure.subplots(rows, columns, **options)


@style()
def loss_curve(metrics, title=None, ax=None):
    """Training loss, MTP loss and validation bits per byte of a run, over tokens read.

    metrics: the lines of metrics.jsonl as dicts. The loss of every step is drawn faintly, its
    moving average on top. ax: one axes for the losses, or a pair, the second for bits per byte.
    Without ax, the second panel is left out if no step was evaluated. Raises ValueError if metrics
    is empty.
    """
    if not metrics:
        raise ValueError("metrics is empty, but at least one step is needed; "
                         "read metrics.jsonl of a run that has finished its first step.")
    evaluated = [line for line in metrics if line.get("val_bits_per_byte") is not None]
    if ax is None:
        _, ax = canvas(1 + bool(evaluated), sharex=True, height_ratios=[3, 2][:1 + bool(evaluated)])
    panels = np.atleast_1d(np.asarray(ax, dtype=object))

    tokens = [line["tokens"] for line in metrics]
    loss = [line["loss"] for line in metrics]
    panels[0].plot(tokens, loss, color=BLUE, alpha=0.25, linewidth=1)
    ends = [*panels[0].plot(tokens, smooth(loss), color=BLUE, label="next token")]
    with_mtp = [line for line in metrics if line.get("mtp_loss")]
    if with_mtp:
        ends += panels[0].plot([line["tokens"] for line in with_mtp],
                               smooth([line["mtp_loss"] for line in with_mtp]),
                               color=VERMILLION, linestyle="--", label="MTP")
    label_ends(panels[0], ends)
    panels[0].set_ylabel("loss [nats per token]")
    panels[0].set_title(title or finding(metrics), loc="left")
    if evaluated and len(panels) > 1:
        draw_bits_per_byte(panels[1], evaluated)
    panels[-1].set_xlabel("training progress [tokens]")
    for panel in panels:
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    return panels[0].figure


def draw_bits_per_byte(ax, evaluated):
    """Validation bits per byte, with a marker for each evaluation and the value of the last."""
    values = [line["val_bits_per_byte"] for line in evaluated]
    ends = ax.plot([line["tokens"] for line in evaluated], values, color=GREEN, marker="o",
                   label=f"{values[-1]:.3f}")
    ax.margins(y=0.15)                                  # keeps whole markers inside the panel
    label_ends(ax, ends)
    ax.set_ylabel("validation\n[bits per byte]")


def finding(metrics):
    """The result of a run in one line: "7.6 → 2.1 nats per token, 1.05 bits per byte after …"."""
    smoothed = smooth([line["loss"] for line in metrics])
    text = f"{metrics[0]['loss']:.1f} → {smoothed[-1]:.1f} nats per token"
    scores = [line["val_bits_per_byte"] for line in metrics
              if line.get("val_bits_per_byte") is not None]
    if scores:
        text += f", {scores[-1]:.2f} bits per byte"
    return f"{text} after {EngFormatter(places=1, sep='')(metrics[-1]['tokens'])} tokens"


def smooth(values, window=50):
    """Moving average over about `window` steps; over fewer at first, so that it lags less."""
    average, smoothed = 0.0, []
    for step, value in enumerate(values):
        average += (value - average) / min(window, 1 + step / 10)
        smoothed.append(average)
    return smoothed


@style()
def label_ends(ax, lines, gap=0.12):
    """Write each line's label at its right end, in its colour, instead of a legend.

    Labels that are closer than gap, a fraction of the axes' height, are moved apart. Call it last,
    when the limits of the axes are final.
    """
    ax.get_ylim()                                       # makes matplotlib autoscale now
    height = ax.transScale + ax.transLimits             # data -> fractions of the axes
    ends = [(height.transform((1, line.get_ydata()[-1]))[1], line) for line in lines]
    lowest = -np.inf
    for y, line in sorted(ends, key=lambda end: end[0]):
        y = max(y, lowest)
        ax.annotate(line.get_label(), (1, y), xycoords="axes fraction", xytext=(6, 0),
                    textcoords="offset points", color=line.get_color(), va="center")
        lowest = y + gap


@style()
def expert_load(loads, steps, ax=None):
    """Load of every expert over training, one heat map per MoE layer; 1 is balanced.

    loads (S, L, E): tokens sent to an expert, divided by the layer's mean, at the S steps given by
    steps (S,). Balance is white. The colour scale always ends at 2, so that runs can be compared.
    MaxVio is the busiest expert's load at the last step, minus 1. A layer that rests in a step, as
    MTP modules may, is grey there. ax: L axes.
    """
    loads = np.asarray(loads, dtype=float).copy()       # (S, L, E)
    if loads.ndim != 3 or len(loads) != len(steps):
        raise ValueError(f"loads has shape {loads.shape} for {len(steps)} steps; "
                         "give it the shape (steps, MoE layers, experts).")
    loads[~loads.any(axis=2)] = np.nan                  # such a layer rests
    layers, experts = loads.shape[1:]
    if ax is None:
        rows = -(-layers // 4)
        columns = -(-layers // rows)
        figure, ax = canvas(rows, columns, size=(8, max(4.5, 2.6 * rows)),
                            sharex=True, sharey=True, squeeze=False)
        for unused in ax.flat[layers:]:
            unused.set_visible(False)
        figure.supxlabel("training progress [steps]")
        figure.supylabel("routed expert [index]")
        figure.suptitle(f"At step {steps[-1]:,} the busiest expert receives "
                        f"{np.nanmax(loads[-1]):.2f} times the mean load")
    panels = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()[:layers]

    for layer, panel in enumerate(panels):
        # Cells have their edges halfway between steps, since steps need not be evenly spaced.
        image = panel.pcolormesh(edges(steps), np.arange(experts + 1) - 0.5, loads[:, layer].T,
                                 cmap="PuOr", norm=CenteredNorm(vcenter=1, halfrange=1))
        max_vio = loads[-1, layer].max() - 1
        panel.set_title(f"MoE layer {layer + 1}\n" + (
            "rests" if np.isnan(max_vio) else f"MaxVio {max_vio:.2f}"), fontsize=13)
        panel.set_facecolor("#BBBBBB")
        panel.set_ylim(experts - 0.5, -0.5)             # expert 0 on top, as in a table
        panel.grid(False)
        panel.xaxis.set_major_locator(MaxNLocator(2, integer=True))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels[0].figure.colorbar(image, ax=list(panels), label="load / mean load [1 = balanced]",
                              extend="max", ticks=[0, 0.5, 1, 1.5, 2])
    return panels[0].figure


@style()
def bars(values, label, title, form="{:,.3g}", highlight=(), ax=None):
    """Horizontal bars of {name: value}, each with its number; they start at 0, the first on top.

    label: text at the axis, with the unit; form: format of the numbers; highlight: names of the
    bars to draw in blue, the others are light blue.
    """
    if ax is None:
        _, ax = canvas()
    names = [str(name) for name in values]
    colours = [BLUE if name in highlight else SKY for name in values]
    drawn = ax.barh(names, list(values.values()), color=colours, edgecolor=BLACK)
    ax.bar_label(drawn, [form.format(value) for value in values.values()], padding=5)
    ax.invert_yaxis()
    ax.margins(x=0.15)                                  # room for the longest bar's number
    ax.set_xlim(left=0)
    if max(values.values()) >= 1000:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(label)
    ax.set_title(title, loc="left")
    return ax.figure


@style()
def heat_map(values, label, title, rows, columns, xlabel="", ylabel="", centre=None, limits=(0, 1),
             texts=None, ax=None):
    """A matrix as colours: values (R, C), with a colour bar; label is its name with the unit.

    Colours are cividis between limits. For differences give centre: PuOr around it, up to the
    distance limits[1]. rows, columns: their names; texts (R, C): written into the cells, if given.
    """
    values = np.asarray(values, dtype=float)
    if ax is None:
        _, ax = canvas()
    norm = Normalize(*limits) if centre is None else CenteredNorm(centre, limits[1])
    colours = "cividis" if centre is None else "PuOr"
    image = ax.imshow(values, aspect="auto", norm=norm, cmap=colours)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(False)
    for (row, column), text in np.ndenumerate(np.asarray(texts if texts is not None else [[]])):
        red, green, blue, _ = image.cmap(image.norm(values[row, column]))
        bright = 0.3 * red + 0.6 * green + 0.1 * blue > 0.5
        ax.text(column, row, text, ha="center", va="center", fontsize=12,
                color=BLACK if bright else "white")
    ax.figure.colorbar(image, ax=ax, label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title, loc="left")
    return ax.figure


def edges(centres):
    """Edges of cells around these centres, halfway between them: (N,) -> (N+1,)."""
    centres = np.asarray(centres, dtype=float)
    inner = (centres[1:] + centres[:-1]) / 2
    first = inner[0] if len(inner) else centres[0] + 0.5
    last = inner[-1] if len(inner) else centres[0] - 0.5
    return np.concatenate([[2 * centres[0] - first], inner, [2 * centres[-1] - last]])


def save(fig, path):
    """Write a figure as PNG, at 150 dpi and cut to its content, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(png(fig, dpi=150))


@style()
def png(fig, dpi):
    """The figure as the bytes of a PNG; above 200 KB it is reduced to 256 colours."""
    buffer = io.BytesIO()
    # Without matplotlib's version number in the file, the same figure gives the same bytes.
    fig.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None},
                pil_kwargs={"optimize": True})
    if buffer.tell() <= MAX_BYTES:
        return buffer.getvalue()
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(256).save(small, format="PNG", optimize=True)
    return small.getvalue()
