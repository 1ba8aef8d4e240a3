"""The picture that grows from notebook to notebook: one block, with the part of today lit."""

from matplotlib.patches import Circle, FancyBboxPatch

from minidsv3.measure import plots

# {part of the picture: its finding}, in the order of notebooks 01 to 07, in which they appear.
PARTS = {
    "block": "Twice: norm, compute, add",
    "cache": "One short latent per token in place of keys and values",
    "rotation": "A position is an angle",
    "experts": "A router chooses 8 of 256 experts",
    "bias": "A bias steers the choice, and nothing else",
    "ahead": "A second module looks one token further",
    "eight bits": "The large products are in 8 bits",
}

# part: (words, left, bottom, width, height), inside the large boxes of attention and feed-forward.
BOXES = {
    "cache": [("query latent", 1.65, 2.0, 2.3, 0.8),
              ("key-value latent:\nthe cache", 4.15, 2.0, 3.0, 0.8)],
    "rotation": [("rotated queries", 1.65, 3.1, 2.3, 0.8),
                 ("one rotated key", 4.15, 3.1, 3.0, 0.8)],
    "experts": [("router", 8.55, 2.0, 1.7, 0.8), ("shared expert", 10.55, 2.0, 2.2, 0.8),
                ("8 of 256\nexperts", 10.55, 3.1, 2.2, 0.8)],
    "bias": [("bias, for\nthe choice", 8.55, 3.1, 1.7, 0.8)],
    "ahead": [("MTP: the token\nafter the next", 13.75, 3.1, 2.2, 1.0)],
}
PRODUCTS = [(3.95, 2.92), (7.15, 2.92), (12.75, 2.92), (12.75, 4.02)]       # corners of boxes


@plots.style()
def block(today="block"):
    """Block, head and MTP as far as they are known in the notebook about `today`, one of PARTS."""
    names = list(PARTS)
    known = names[:names.index(today) + 1]
    figure, ax = plots.canvas(size=(10, 4.1))

    def box(words, left, bottom, width, height, lit, centre=True):
        ax.add_patch(FancyBboxPatch(
            (left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=plots.ORANGE if lit else "white", edgecolor=plots.BLACK, linewidth=1.3))
        where = (left + width / 2, bottom + height / 2) if centre else (left + 0.15, bottom + height
                                                                       - 0.33)
        ax.text(*where, words, va="center", ha="center" if centre else "left",
                fontsize=14 if not centre else 11 if lit else 12,
                fontweight="bold" if lit else "normal")

    def arrow(start, end):
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": plots.BLACK,
                                                "shrinkA": 0, "shrinkB": 0, "linewidth": 1.5})

    arrow((0, 0.5), (13.75, 0.5))                                      # the stream
    ax.text(0.05, 0.05, "stream of a token", fontsize=14, va="center")
    for words, left, right in (("attention", 1.45, 7.35), ("feed-forward network", 8.35, 13.0)):
        box(words, left, 1.75, right - left, 3.2, False, centre=False)
        box("norm", left - 0.65, 0.95, 1.0, 0.5, today == "block")
        arrow((left - 0.15, 0.5), (left - 0.15, 0.95))
        arrow((left + 0.2, 1.45), (left + 0.4, 1.75))
        arrow((right - 0.15, 1.75), (right - 0.15, 0.72))
        ax.add_patch(Circle((right - 0.15, 0.5), 0.22, zorder=3, edgecolor=plots.BLACK,
                            facecolor=plots.ORANGE if today == "block" else "white"))
        ax.text(right - 0.15, 0.48, "+", ha="center", va="center", zorder=4)
    box("head: the\nnext token", 13.75, 0.2, 2.2, 1.0, False)
    for part, boxes in BOXES.items():
        for words, *place in boxes if part in known else ():
            box(words, *place, part == today)
    if "ahead" in known:
        arrow((13.35, 0.5), (14.4, 3.1))
    for x, y in PRODUCTS if "eight bits" in known else ():
        ax.text(x, y, " 8 bits ", fontsize=9, ha="right", va="center", fontweight="bold",
                bbox={"boxstyle": "round,pad=0.1", "facecolor": plots.ORANGE})
    ax.set(xlim=(-0.1, 16.1), ylim=(-0.2, 5.3), aspect="equal")
    ax.set_axis_off()
    ax.set_title(PARTS[today], loc="left")
    return figure
