"""Pictures of notebook 01: what is DeepSeek-V3?"""

import re

from matplotlib.patches import Rectangle

from minidsv3.measure import plots


def visible(piece):
    """A token as a label: a line break as an arrow, its indentation left out."""
    return re.sub(r"\n\s*", "↵", piece).strip() or "␣"


@plots.style()
def lens(certainty, best, read):
    """The best guess after each block, framed where it is the token that really follows.

    certainty: its probability (L, T); best: L lists of T tokens; read: the T tokens just read.
    """
    _, ax = plots.canvas(size=(10, 4.2))
    right = [[guess == follows for guess, follows in zip(row, read[1:])] for row in best]
    figure = plots.heat_map(
        certainty.numpy(), "probability of the best guess",
        f"Right guesses (framed): {sum(right[0])} of {len(read) - 1} after block 1, "
        f"{sum(right[-1])} after block {len(best)}",
        [f"after block {n}" for n in range(1, len(best) + 1)], [visible(piece) for piece in read],
        "token just read", texts=[[visible(piece) for piece in row] for row in best], ax=ax)
    for row, marks in enumerate(right):
        for column in range(len(marks)):
            if marks[column]:
                ax.add_patch(Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, fill=False,
                                       edgecolor=plots.ORANGE, linewidth=4))
    return figure


@plots.style()
def after_each_block(curve, unigram):
    """Bits per byte if the stream is read after each block, beside token frequencies alone."""
    figure, ax = plots.canvas(size=(10, 4.5))
    blocks = range(1, len(curve) + 1)
    ax.bar(blocks, curve, width=0.55, color=plots.SKY, edgecolor=plots.BLACK)
    for block, value in zip(blocks, curve):
        ax.text(block, value, f"{value:.2f}", ha="center", va="bottom")
    ax.axhline(unigram, color=plots.BLACK, linestyle="--")
    ax.text(len(curve) + 1.25, unigram, f"token frequencies\nalone: {unigram:.2f}", va="bottom",
            ha="right")
    ax.set(xlabel="the stream is read after block", ylabel="bits per byte (less is better)",
           xticks=list(blocks), xlim=(0.5, len(curve) + 1.3), ylim=(0, 1.2 * max(*curve, unigram)))
    ax.grid(axis="x", visible=False)
    ax.set_title(f"Read after block 1: {curve[0]:.2f} bits per byte; after the last block: "
                 f"{curve[-1]:.2f}", loc="left")
    return figure


@plots.style()
def stored_and_used(routed, rest, share):
    """All parameters and those activated per token [billions]; of the routed ones a share is."""
    figure, ax = plots.canvas(size=(10, 3.6))
    for row, experts in enumerate((routed, share * routed)):
        ax.barh(row, experts, color=plots.ORANGE, edgecolor=plots.BLACK, height=0.55)
        ax.barh(row, rest, left=experts, color=plots.BLUE, edgecolor=plots.BLACK, height=0.55)
        words = f"{experts:.1f} in routed experts + {rest:.1f} in all else"
        inside = experts > (routed + rest) / 2
        ax.text((experts if inside else experts + rest) / (2 if inside else 1) + 8 * (not inside),
                row, words, va="center", ha="center" if inside else "left")
    ax.set_yticks((0, 1), (f"stored: {routed + rest:.1f}",
                           f"activated per token:\n{share * routed + rest:.1f}"))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="parameters [billions]")
    ax.set_title(f"{(share * routed + rest) / (routed + rest):.1%} of the parameters are "
                 "activated per token", loc="left")
    return figure
