"""Pictures of notebook 04: what do 256 experts do?"""

import numpy as np
from matplotlib.patches import Rectangle

from minidsv3.measure import plots


@plots.style()
def stored_and_activated(stored, activated):
    """Two bars of 100 %: parameters {component: number}, stored and activated per token.

    The routed experts are orange; everything else is white.
    """
    figure, ax = plots.canvas(size=(10, 3.4))
    shares = []
    for row, (what, counts) in enumerate((("stored", stored), ("activated\nper token", activated))):
        total = sum(counts.values())
        shares.append(counts["routed_experts"] / total)
        ax.barh(row, shares[row], 0.6, color=plots.ORANGE, edgecolor=plots.BLACK)
        ax.barh(row, 1 - shares[row], 0.6, left=shares[row], color="white", edgecolor=plots.BLACK)
        ax.text(shares[row] / 2, row, "routed experts", ha="center", va="center", fontsize=14)
        if shares[row] < 0.8:
            ax.text((1 + shares[row]) / 2, row, "everything else", ha="center", va="center",
                    fontsize=14)
        ax.text(1.01, row, f"{total / 1e9:.1f}B", va="center", fontsize=14)
        ax.text(-0.01, row, what, va="center", ha="right", fontsize=14)
    ax.invert_yaxis()
    ax.set(xlim=(-0.14, 1.1))
    ax.set_axis_off()
    ax.set_title(f"Routed experts: {shares[0]:.0%} of what is stored, {shares[1]:.0%} of what is "
                 "activated", loc="left")
    return figure


@plots.style()
def steps(affinity, bias, kept, gates):
    """The way of one token through the router, a row for each step, a column for each expert.

    kept: for each group, whether it stays. gates: 0 for an expert that is not chosen.
    """
    number, size = len(affinity), len(affinity) // len(kept)
    favourite = max(range(number), key=lambda e: affinity[e])
    rows = [("affinity s", affinity), ("bias b", bias),
            ("choice s + b", [s + b for s, b in zip(affinity, bias)]),
            ("groups kept", [affinity[e] + bias[e] if kept[e // size] else None
                             for e in range(number)]),
            ("gate g", gates)]
    figure, ax = plots.canvas(size=(10, 4.2))
    for row, (name, values) in enumerate(rows):
        ax.text(-0.15, row + 0.5, name, ha="right", va="center", fontsize=14)
        for e, value in enumerate(values):
            chosen = row == 4 and value > 0
            best = e == favourite and row == 0
            ax.add_patch(Rectangle((e, row), 1, 1, edgecolor="#BBBBBB", facecolor=plots.ORANGE
                                   if chosen else plots.SKY if best else "#DDDDDD"
                                   if value is None else "white"))
            ax.text(e + 0.5, row + 0.5, "out" if value is None else f"{value:.2f}", ha="center",
                    va="center", fontsize=14, fontweight="bold" if chosen or best else "normal")
    for e in range(number):
        ax.text(e + 0.5, -0.25, f"expert {e}", ha="center", va="center", fontsize=12)
    for left in range(0, number, size):
        ax.add_patch(Rectangle((left, 0), size, len(rows), fill=False, linewidth=2.5))
    ax.set(xlim=(-1.9, number + 0.05), ylim=(len(rows) + 0.05, -0.5))
    ax.set_axis_off()
    fate = "and is chosen" if gates[favourite] else "but is not chosen"
    ax.set_title(f"Blue: expert {favourite} fits best, {fate}. Orange: the chosen experts",
                 loc="left")
    return figure


@plots.style()
def who_goes_where(shares, kinds, even):
    """Share of each kind's tokens that visit each expert: shares (kinds, experts), even the usual.

    Experts are sorted by the kind that visits them most, so that each kind's experts are together.
    """
    shares = np.asarray(shares, dtype=float)
    order = sorted(range(shares.shape[1]),
                   key=lambda e: (shares[:, e].argmax(), -shares[:, e].max()))
    figure, ax = plots.canvas(size=(11, 4.6))
    image = ax.imshow(shares[:, order], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(shares[:, order] >= 2 * even):
        share = shares[row, order[column]]
        ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=14,
                color="white" if share > 0.6 else plots.BLACK)
    ax.set_xticks(range(len(order)), order)
    ax.set_yticks(range(len(kinds)), kinds)
    ax.set_xlabel("routed expert [index], sorted")
    ax.grid(False)
    bar = figure.colorbar(image, ax=ax, ticks=[0, even, 0.5, 1])
    bar.ax.set_yticklabels(["0 %", f"{even:.0%}: even", "50 %", "100 %"])
    liked = sum(row.max() >= 2 * even for row in shares)
    ax.set_title(f"{liked} of {len(kinds)} kinds have an expert that at least {2 * even:.0%} of "
                 "their tokens visit", loc="left")
    return figure


@plots.style()
def missed(kinds, favourite, others, errors, experts):
    """Loss added to each kind without its favourite expert, and without one of the others.

    favourite, others, errors: one number for each kind [nats per token]; errors: the standard
    errors of their difference; experts: the index of the favourite.
    """
    figure, ax = plots.canvas(size=(10, 5))
    rows = np.arange(len(kinds))
    clear = [mine - other > 2 * error for mine, other, error in zip(favourite, others, errors)]
    ax.barh(rows - 0.19, favourite, 0.36, xerr=2 * np.asarray(errors), edgecolor=plots.BLACK,
            color=plots.ORANGE, capsize=4, label="without the expert that it visits most")
    ax.barh(rows + 0.19, others, 0.36, edgecolor=plots.BLACK, color="white",
            label="without another expert (mean)")
    ax.axvline(0, color=plots.BLACK, linewidth=1)
    ax.set_yticks(rows, [f"{kind} ({e})" for kind, e in zip(kinds, experts)])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("loss added to tokens of this kind [nats per token]")
    ax.legend(loc="lower right")
    ax.set_title(f"{sum(clear)} of {len(kinds)} kinds clearly need the expert that they visit most",
                 loc="left")
    return figure


@plots.style()
def named(right):
    """Which tables predict a token's experts, {what the table knows: correct predictions [%]}.

    Three of the keys are "the token", "token and the domain" and "token and a random number".
    """
    figure, ax = plots.canvas(size=(10, 4.6))
    more = right["token and the domain"] - right["token and a random number"]
    return plots.bars(right, "experts predicted correctly in layer 2 [%]",
                      f"The token predicts {right['the token']:.0f} % of the experts; the domain "
                      f"adds {more:.1f} points", "{:.1f}", ["the token"], ax)


@plots.style()
def loss_added(lost):
    """Loss added by changes of the experts: {change: losses of tokens [nats]}; their mean."""
    lost = {name: losses.mean().item() for name, losses in lost.items()}
    figure, ax = plots.canvas(size=(10, 4.2))
    return plots.bars(lost, "loss added [nats per token]",
                      "Losing one expert costs little; choosing at random costs a lot", "{:.3f}",
                      ["4 at random"], ax)
