"""Pictures of notebook 00: what does a transformer remember?"""

import math

from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from minidsv3.measure import plots

ROUNDING = 1e-5      # products of other sizes round otherwise: what changes less does not change


@plots.style()
def changes(kept):
    """How much the key of each old token changes when the text grows by one token.

    kept: {title: keys (H, n, D) of texts with n, n + 1, ... tokens}; a panel for each title.
    """
    figure, panels = plots.canvas(1, len(kept), size=(10, 4.8), sharey=True)
    for (title, keys), ax in zip(kept.items(), panels, strict=True):
        rows = [(after[:, :-1] - before).abs().amax((0, 2)).tolist()
                for before, after in zip(keys, keys[1:])]
        width, lengths = len(rows[-1]), [each.shape[1] for each in keys[1:]]
        table = [[max(value, ROUNDING) for value in row] + [math.nan] * (width - len(row))
                 for row in rows]
        image = ax.imshow(table, cmap="cividis", norm=LogNorm(ROUNDING, 1), aspect="auto")
        ax.set_yticks(range(len(rows)), lengths)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set(xlabel="position of an old token")
        ax.grid(False)
        old = sum(lengths) - len(lengths)
        changed = sum(value > ROUNDING for row in rows for value in row)
        ax.set_title(f"{title}: {changed} of {old} keys change", loc="left")
    panels[0].set_ylabel("tokens in the text")
    figure.colorbar(image, ax=list(panels), label="change of a key [log scale]",
                    extend="min")
    figure.suptitle("Which old keys change when the text grows by one token?", x=0.01, ha="left")
    return figure


@plots.style()
def time_and_memory(whole, one, shapes):
    """What a new token costs as the text grows, without and with a cache, and what the cache holds.

    whole, one: {tokens in the text: ms of a pass over all of them, or over one with a cache}.
    shapes: {name: (layers, heads, numbers per head)}; each number takes two bytes.
    """
    figure, (left, right) = plots.canvas(1, 2, size=(10, 5))
    each = {n: ms / n for n, ms in whole.items()}
    looks = ((whole, "no cache", plots.BLACK, "s--"), (one, "decode", plots.BLUE, "o-"),
             (each, "prefill", plots.VERMILLION, "v:"))
    lines = [left.loglog(list(curve), list(curve.values()), look, color=colour, label=name)[0]
             for curve, name, colour, look in looks]
    left.set_xticks(list(whole), list(whole))
    left.minorticks_off()
    left.set(xlabel="tokens in the text [log scale]", ylabel="time per token [ms, log scale]")
    left.set_title("Time: nearly flat with a cache", loc="left")
    plots.label_ends(left, lines)

    tokens = [1_000 * 2**step for step in range(8)]
    looks = zip(((plots.BLUE, "-"), (plots.VERMILLION, "--")), shapes.items())
    for (colour, dashes), (name, (layers, heads, numbers)) in looks:
        held = [2 * layers * heads * numbers * 2 * n / 1e9 for n in tokens]
        right.loglog(tokens, held, dashes, color=colour)
        right.text(tokens[0], held[0] * 1.9, name, color=colour, rotation=26)
    right.axhline(80, color=plots.BLACK, linestyle=":")
    right.text(tokens[0], 95, "80 GB: a large GPU")
    right.set_xticks(tokens[::2], [f"{n:,}" for n in tokens[::2]])
    right.minorticks_off()
    right.set(xlabel="tokens in the text [log scale]", ylabel="cache [GB, log scale]",
              ylim=(0.006, 1200))
    right.set_title("Memory: one text can fill a GPU", loc="left")
    return figure
