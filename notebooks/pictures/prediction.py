"""Pictures of notebook 06: can it think two tokens ahead?"""

import math

from matplotlib.patches import Rectangle

from minidsv3.measure import plots

COUNTS = ("no drafts", "1 draft", "2 drafts", "3 drafts", "4 drafts")


@plots.style()
def chain(T, depths):
    """What the main model and each MTP depth read and predict, at each position of T inputs."""
    figure, ax = plots.canvas(size=(10, 4.6))
    for k in range(depths + 1):
        for i in range(T - k):
            ax.text(3 * i, k, f"$h^{k}_{i}$" if k else f"$h_{i}$", ha="center", va="center",
                    fontsize=17, bbox={"boxstyle": "round", "facecolor": "white"})
            ax.text(3 * i - 0.45, k, f"$x_{i + k}$ →", ha="right", va="center", color=plots.BLUE,
                    fontsize=15)
            ax.text(3 * i + 0.45, k, f"→ $x_{i + k + 1}$", va="center", color=plots.VERMILLION,
                    fontsize=15)
            if k:
                ax.annotate("", (3 * i, k - 0.24), (3 * i, k - 0.76),
                            arrowprops={"arrowstyle": "-|>", "color": plots.BLACK})
    ax.text(-1.4, -0.72, "blue, left: the token that is read or joined", color=plots.BLUE)
    ax.text(3 * T - 1.6, -0.72, "red, right: the token that is predicted", color=plots.VERMILLION,
            ha="right")
    ax.set(xlim=(-1.6, 3 * T - 1.4), ylim=(-0.9, depths + 0.45))
    ax.set_xticks([3 * i for i in range(T)], [f"position {i}" for i in range(T)])
    names = ["main model", *(f"MTP, depth {k}" for k in range(1, depths + 1))]
    ax.set_yticks(range(depths + 1), names)
    ax.grid(False)
    ax.set_title("Each depth reads one more token and predicts one step further", loc="left")
    return figure


@plots.style()
def rejected(words, p, q):
    """Drafts from q on the left, the text on the right: what is rejected is drawn anew.

    p, q: the distributions of the main model and of the drafts, one number per word.
    """
    p, q = [float(x) for x in p], [float(x) for x in q]
    both = [min(wanted, drafted) for wanted, drafted in zip(p, q)]
    figure, (left, right) = plots.canvas(1, 2, size=(10, 4.6), sharey=True)
    lost = 1 - sum(both)
    for ax, whole, colour, hatch, name in (
            (left, q, plots.VERMILLION, "xx", "rejected"),
            (right, p, plots.ORANGE, "//", "drawn anew")):
        ax.bar(words, both, color=plots.SKY, edgecolor=plots.BLACK)
        ax.bar(words, [height - low for height, low in zip(whole, both)], bottom=both,
               color="white" if ax is left else colour, edgecolor=colour if ax is left else "black",
               hatch=hatch)
        ax.text(0.97, 0.93, f"{lost:.0%} {name}", transform=ax.transAxes, ha="right", va="top",
                fontsize=15, fontweight="bold",
                color=plots.VERMILLION if ax is left else plots.BLACK)
        ax.text(0.97, 0.83, f"blue: {1 - lost:.0%} accepted", transform=ax.transAxes, ha="right",
                va="top")
    left.set_title("the drafts: q", loc="left")
    right.set_title("the text: exactly p", loc="left")
    left.set(ylabel="probability [0 to 1]", ylim=(0, 1.15 * max(*p, *q)))
    figure.suptitle(f"What is rejected on the left is drawn anew on the right: {lost:.0%}",
                    x=0.01, ha="left")
    return figure


@plots.style()
def drafted_text(prompt, pieces, passes):
    """A text with its tokens parted by thin lines; those that were drafts are shaded and bold."""
    figure, ax = plots.canvas(size=(10, 4.6))
    row = column = widest = 0
    for text, drafted in [(prompt, False), *((piece.text, piece.drafted) for piece in pieces)]:
        ax.plot([column, column], [row + 0.1, row + 0.9], color=plots.BLACK, linewidth=0.7)
        for sign in text:
            if drafted and sign != "\n":
                ax.add_patch(Rectangle((column, row), 1, 1, color=plots.SKY, linewidth=0))
            ax.text(column + 0.5, row + 0.5, sign.strip("\n"), ha="center", va="center",
                    fontsize=12, family="DejaVu Sans Mono", weight="bold" if drafted else "normal")
            row, column = (row + 1, 0) if sign == "\n" or column == 76 else (row, column + 1)
            widest = max(widest, column)
    tokens = sum(piece.token is not None for piece in pieces)
    ax.set(xlim=(0, max(60, widest)), ylim=(row + 1, 0))
    ax.set_axis_off()
    ax.set_title(f"{tokens} tokens in {passes} passes: the shaded ones were drafted", loc="left")
    return figure


@plots.style()
def by_certainty(sure, agree):
    """Share of drafts that the main model would choose, by how sure it is of its own choice.

    sure: the largest probability at each place; agree: 1 where the draft is the same choice.
    """
    found = {}
    for low in range(0, 100, 20):
        group = (sure > low / 100) & (sure <= (low + 20) / 100)
        if group.any():
            found[f"{low} to {low + 20} % sure\n({group.float().mean():.0%} of the places)"] = (
                100 * agree[group].float().mean().item())
    ax = plots.canvas(size=(10, 4.6))[1]
    return plots.bars(found, "drafts that are the main model's choice [%]",
                      "Drafts are accepted where the main model is sure anyway", form="{:.0f} %",
                      highlight=list(found)[-1:], ax=ax)


@plots.style()
def steps_and_time(steps, seconds):
    """What drafts gain and cost, against no drafts: steps and seconds for 0, 1, 2, ... drafts.

    All wrote the same texts, so tokens per step are as the inverse of the steps.
    """
    gain = [steps[0] / number for number in steps]
    speed = [seconds[0] / spent for spent in seconds]
    cost = [tokens / faster for tokens, faster in zip(gain, speed)]
    figure, ax = plots.canvas(size=(10, 4.6))
    lines = [ax.plot(values, marker=marker, linestyle=dashes, color=colour, label=name)[0]
             for values, name, marker, dashes, colour in (
                 (gain, "tokens per step", "o", "-", plots.BLUE),
                 (cost, "time per step", "s", "--", plots.VERMILLION),
                 (speed, "speed", "^", ":", plots.BLACK))]
    ax.set(xlabel="drafts in each step [tokens]", ylabel="compared with no drafts [times]",
           xticks=range(len(steps)), ylim=(0, 1.15 * max(*gain, *cost)))
    best = max(range(1, len(steps)), key=speed.__getitem__)
    ax.set_title(f"{COUNTS[best] if best < 5 else best}: {gain[best]:.1f} times the tokens per "
                 f"step, but only {speed[best]:.1f} times the speed", loc="left")
    plots.label_ends(ax, lines)
    return figure


@plots.style()
def speed_up(extra, rate, drafts, most=8):
    """Speed over the number of drafts, if each is accepted at the same rate; one number marked.

    extra: {name: by how much one draft makes a step longer, as a share of a plain pass}. A step
    with k drafts brings 1 + rate + rate^2 + ... + rate^k tokens and takes 1 + k * extra passes.
    """
    figure, ax = plots.canvas(size=(10, 4.6))
    looks, lines, words = [(plots.BLUE, "-", "o"), (plots.BLACK, "--", "s")], [], []
    for (name, share), (colour, dashes, marker) in zip(extra.items(), looks):
        speed = [sum(rate**n for n in range(k + 1)) / (1 + k * share) for k in range(most + 1)]
        lines += ax.plot(speed, color=colour, linestyle=dashes, label=f"{name}:\n+{share:.1%}")
        ax.plot(drafts, speed[drafts], marker=marker, color=colour, markersize=13)
        words.append(f"{speed[drafts]:.2f} times with {name}")
    ax.axvline(drafts, color=plots.BLACK, linewidth=0.7)
    ax.axhline(1, color=plots.BLACK, linewidth=0.7)
    ax.set(xlabel=f"drafts in each step, each accepted in {rate:.0%} of cases",
           ylabel="speed [no drafts = 1]", xticks=range(most + 1),
           ylim=(0, 1.1 * max(max(line.get_ydata()) for line in lines)))
    ax.set_title(f"Speed with {drafts} {'draft' if drafts == 1 else 'drafts'}: {', '.join(words)}",
                 loc="left")
    plots.label_ends(ax, lines, gap=0.17)
    return figure


@plots.style()
def copying(curve, every):
    """Losses of main model and module after each `every` steps: curve [(main, module)]."""
    at = [n * every for n in range(len(curve))]
    figure, ax = plots.canvas(size=(10, 4.6))
    looks = [("main model", plots.BLACK, "--"), ("MTP module", plots.BLUE, "-")]
    lines = [ax.plot(at, values, color=colour, linestyle=dashes, marker="o", label=name)[0]
             for values, (name, colour, dashes) in zip(zip(*curve), looks)]
    ax.set(xlabel="training [steps]", ylabel="loss after the first round [nats per token]",
           ylim=(0, 3.7))
    ax.set_title("One block does not learn to copy; with the module it does", loc="left")
    plots.label_ends(ax, lines)
    return figure


@plots.style()
def halves(losses, vocabulary):
    """Losses of the module {name: nats per token}, the first as trained, and ln(vocabulary)."""
    ax = plots.canvas(size=(10, 4.6))[1]
    figure = plots.bars(losses, "loss of the module [nats per token]",
                        "The module needs both halves, in the right order", form="{:.2f}",
                        highlight=list(losses)[:1], ax=ax)
    equal = math.log(vocabulary)
    ax.axvline(equal, color=plots.BLACK, linestyle="--")
    ax.text(equal, -0.5, f"equal probabilities: ln {vocabulary:,} = {equal:.2f} ", ha="right",
            va="bottom")
    ax.set_ylim(bottom=len(losses) - 0.5, top=-0.85)
    return figure
