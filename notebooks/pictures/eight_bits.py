"""Pictures of notebook 07: how do you train in 8 bits?"""

import torch
from matplotlib.patches import Rectangle

from minidsv3.measure import plots

SMALLEST, LARGEST = 2.0**-9, 448.0               # of E4M3, above 0
LOOKS = ((plots.BLUE, "-"), (plots.GREEN, "-."), (plots.VERMILLION, "--"), (plots.BLACK, ":"))


@plots.style()
def number_lines(formats):
    """Numbers of each format from 2^-18 to 2^18, and those from 1 to 2: {name: all numbers}."""
    figure, ax = plots.canvas(2, 1, size=(9, 4.8))
    colours = (plots.BLUE, plots.VERMILLION, plots.BLACK)
    for y, (numbers, colour) in enumerate(zip(formats.values(), colours)):
        for panel, low, high in ((ax[0], 2**-18, 2**18), (ax[1], 1, 2)):
            numbers = numbers.float()
            shown = numbers[(numbers >= low) & (numbers <= high)]
            panel.vlines(shown, -y - 0.3, -y + 0.3, color=colour, linewidth=1.3)
    for panel in ax:
        panel.set_yticks([-y for y in range(len(formats))], formats)
        panel.grid(False)
    ax[0].set_xscale("log", base=2)
    ax[0].set(xlabel="all octaves [logarithmic]", xlim=(2**-18, 2**18))
    ax[1].set(xlabel="one octave, from 1 to 2 [linear]", xlim=(0.98, 2.02))
    ax[0].set_title("Eight bits give more octaves or more steps, but not both", loc="left")
    return figure


@plots.style()
def outlier_errors(sizes, errors):
    """Error of all other numbers over the size of one outlier: {way to share scales: errors}."""
    figure, ax = plots.canvas(size=(9, 4.5))
    lines = [ax.loglog(sizes, 100 * torch.as_tensor(values), style, color=colour, label=name)[0]
             for (name, values), (colour, style) in zip(errors.items(), LOOKS)]
    ax.set(xlabel="size of one outlier; the others are about 1 [logarithmic]",
           ylabel="error of all the others [%, log.]", ylim=(0.8, 300))
    ax.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    ax.set_title("A tile keeps the damage of an outlier to itself", loc="left")
    plots.label_ends(ax, lines)
    return figure


@plots.style()
def in_range(rows, title):
    """Where numbers lie in the range of E4M3: {name: numbers, divided by their scales}.

    A pair of braces in the title stands for the share of the first numbers that become 0.
    """
    figure, panels = plots.canvas(len(rows), 1, size=(9, 1 + 1.6 * len(rows)), sharex=True,
                                  squeeze=False)
    bins, losses = torch.logspace(-34, 11, 91, base=2), []
    for ax, (name, numbers) in zip(panels[:, 0], rows.items()):
        sizes = numbers.abs().flatten()
        losses.append(100 * (sizes <= SMALLEST / 2).float().mean())
        ax.axvspan(SMALLEST, LARGEST, facecolor="#FFE9BF", zorder=0)
        ax.hist(sizes.clamp(min=2.0**-33.9), bins=bins, color=plots.SKY, edgecolor=plots.BLACK,
                linewidth=0.5)
        ax.set(xscale="log", xlim=(2.0**-34, 2.0**11))
        ax.set_yticks([])
        ax.grid(False)
        ax.set_title(f"{name}: {losses[-1]:.1f} % become 0", loc="left", fontsize=13)
    panels[0, 0].text((SMALLEST * LARGEST)**0.5, panels[0, 0].get_ylim()[1] * 0.95,
                      "range of E4M3", ha="center", va="top")
    panels[-1, 0].set_xlabel("size of a number divided by its scale [logarithmic]")
    figure.suptitle(title.format(f"{losses[0]:.0f} %"), x=0.01, ha="left")
    return figure


def gradient_errors(errors):
    """Error of the whole gradient for {recipe or other batch: fraction}."""
    recipes = list(errors)[:-1]
    percent = {name: 100 * error for name, error in errors.items()}
    worst = max(percent[name] for name in recipes)
    *_, (other, far) = percent.items()
    title = f"Rounding: at most {worst:.0f} %; {other}: {far:.0f} %"
    return plots.bars(percent, "error of the whole gradient [%]", title, form="{:.0f} %",
                      highlight=recipes[:1])


# Of each product: its name, the factors and the result, rows, the dimension that is summed over,
# columns, the tiles of both factors (width, height; 4 stands for 128), and a colour.
ROW, COLUMN, BLOCK = (4, 1), (1, 4), (4, 4)
PRODUCTS = [
    ("Fprop", ("x", "$W^T$", "y"), "tokens", "inputs", "outputs", (ROW, BLOCK), plots.FORWARD),
    ("Dgrad", ("dy", "W", "dx"), "tokens", "outputs", "inputs", (ROW, BLOCK), plots.BACKWARD),
    ("Wgrad", ("$dy^T$", "x", "dW"), "outputs", "tokens", "inputs", (ROW, COLUMN), plots.WEIGHT),
]


@plots.style()
def three_products():
    """The matrix products of a linear layer, with one tile or block of each factor in colour."""
    figure, panels = plots.canvas(1, 3, size=(11, 4.3))
    for ax, (title, names, rows, summed, columns, tiles, colour) in zip(panels, PRODUCTS):
        for (left, low), (width, height) in zip(((0, 0), (9.5, 9.5)), tiles):
            for i in range(0, 8, width):
                for j in range(0, 8, height):
                    first = i == 0 and j == 8 - height
                    ax.add_patch(Rectangle((left + i, low + j), width, height, edgecolor="#777777",
                                           facecolor=colour if first else "white"))
        ax.add_patch(Rectangle((9.5, 0), 8, 8, facecolor="#EEEEEE", edgecolor=plots.BLACK))
        for name, place in zip(names, ((4, 3.4), (13.5, 12.9), (13.5, 4))):
            ax.text(*place, name, ha="center", va="center", fontsize=17,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 2})
        for end, start in (((8, -0.9), (0, -0.9)), ((8.6, 9.5), (8.6, 17.5))):
            ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "lw": 2.5,
                                                    "color": colour})
        ax.text(4, -2.5, summed, ha="center", color=colour, fontsize=15)
        ax.text(13.5, -2.5, columns, ha="center", fontsize=15)
        ax.text(-1, 4, rows, rotation=90, va="center", ha="center", fontsize=15)
        ax.set(title=title, xlim=(-2, 18), ylim=(-3.2, 18), aspect="equal")
        ax.set_axis_off()
    figure.suptitle("Each tile lies along its arrow: the dimension that is summed over")
    return figure


@plots.style()
def sums(lengths, curves):
    """Error of sums over their length: {kind of numbers: {"never", "every 128": fractions}}."""
    figure, panels = plots.canvas(1, len(curves), size=(10, 4.5), sharey=True, squeeze=False)
    panels = panels[0]
    looks = (plots.VERMILLION, "s--"), (plots.BLUE, "o-")
    for ax, (kind, ways) in zip(panels, curves.items()):
        for (name, values), (colour, style) in zip(ways.items(), looks):
            ax.loglog(lengths, [100 * value for value in values], style, color=colour, label=name)
        ax.set(xlabel="terms K [logarithmic]", ylim=(0.008, 12))
        last = (f"{100 * values[-1]:.2g} %" for values in ways.values())
        ax.set_title(f"{kind}: {' or '.join(last)}", loc="left", fontsize=13)
        ax.set_xticks([128, 512, 2048], ["128", "512", "2,048"])
        ax.minorticks_off()
        plots.label_ends(ax, ax.get_lines())
    panels[0].set_ylabel("error [%, logarithmic]")
    panels[0].set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
    figure.suptitle("Promoted every 128 terms, a long sum is as good as a short one", x=0.01,
                    ha="left")
    return figure


@plots.style()
def loss_errors(parts, claim, plain, title):
    """Mean size of the loss error of each variant: parts {steps: {variant: errors of its seeds}}.

    claim: the report's bound, a dashed line; plain: the variants without eight bits, in grey.
    """
    figure, panels = plots.canvas(1, len(parts), size=(11, 4.5), sharex=True, sharey=True,
                                  squeeze=False)
    panels = panels[0]
    for ax, (name, variants) in zip(panels, parts.items()):
        above = 0
        for y, (variant, errors) in enumerate(variants.items()):
            percent = [100 * error for error in errors]
            above += sum(error > claim for error in errors)
            ax.barh(y, sum(percent) / len(percent), edgecolor=plots.BLACK,
                    color="#DDDDDD" if variant in plain else plots.SKY)
            ax.plot(percent, [y] * len(percent), "o", color=plots.BLACK)
        count = sum(map(len, variants.values()))
        ax.axvline(100 * claim, color=plots.VERMILLION, linestyle="--")
        ax.set(xlabel="mean size of the loss error [%]")
        ax.set_title(f"steps {name}: {above} of {count} runs above {100 * claim:g} %", loc="left",
                     fontsize=13)
        ax.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(variants)), variants)
    panels[0].invert_yaxis()
    figure.suptitle(title, x=0.01, ha="left")
    return figure
