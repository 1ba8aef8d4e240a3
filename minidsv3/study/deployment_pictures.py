"""The pictures and tables of the deployment study, from the content of its results.json."""

from ..measure import plots
from ..serve.disaggregate import DAY, deploy
from ..serve.step_cost import Work
from ..serve.step_picture import draw as draw_step

LOOKS = {"service": (plots.BLUE, "o", "separated"), "chunked 64": (plots.VERMILLION, "s",
         "together, chunks of 64"), "chunked 128": (plots.GREEN, "^", "together, chunks of 128"),
         "whole": (plots.BLACK, "D", "together, whole prompts")}
STEADY = 10                                      # a median TTFT above this is a growing queue [s]


def draw(results, out):
    """load.png, mixes.png and decode_step.png."""
    plots.save(load_picture(results), out / "load.png")
    plots.save(mix_picture(results), out / "mixes.png")
    decode = deploy("service").units[-1]
    batch = round(results["day"]["sequences_per_decode_gpu"][0] * decode.gpus)
    work = Work(sequences=batch, context=batch * DAY.context)
    plots.save(draw_step(decode.seconds, work), out / "decode_step.png")


@plots.style()
def load_picture(results):
    """TTFT and TPOT against the load: the median as a line, the 95th percentile dashed."""
    figure, axes = plots.canvas(1, 2, size=(13, 5.5))
    limits = {"ttft": results["target"]["first"], "tpot": 1e3 * results["target"]["per_token"]}
    for ax, key, unit, label in ((axes[0], "ttft", 1, "time to first token [s]"),
                                 (axes[1], "tpot", 1e3, "time per output token [ms]")):
        for name, curve in results["load"].items():
            colour, marker, words = LOOKS[name]
            steady = [load for load, each in curve.items() if each["ttft"]["50"] <= STEADY]
            for percentile, style in (("50", "-"), ("95", "--")):
                ax.plot([float(load) for load in steady],
                        [unit * curve[load][key][percentile] for load in steady], style,
                        color=colour, marker=marker, label=words if style == "-" else None)
        ax.axhline(limits[key], color="#777777", linestyle=":")
        ax.set(xlabel="load [requests per second and node]", ylabel=label, xlim=(0, None),
               ylim=(0, 2.5 * limits[key]))
    axes[1].text(0.99, limits["tpot"], "target", color="#555555", va="bottom", ha="right",
                 transform=axes[1].get_yaxis_transform())
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False)
    figure.suptitle("Separate pools keep both times short up to a higher load\n"
                    "(lines: median; dashed: 95th percentile)")
    return figure


@plots.style()
def mix_picture(results):
    """The highest load with nine of ten requests in time, for each mix and deployment."""
    figure, ax = plots.canvas(size=(11, 5))
    mixes = results["mixes"]
    for shift, (form, colour) in zip((-0.2, 0.2), (("separated", plots.BLUE),
                                                   ("together", plots.ORANGE))):
        loads = [each["load"][form] for each in mixes.values()]
        drawn = ax.barh([row + shift for row in range(len(mixes))], loads, 0.38, color=colour,
                        edgecolor="black", label=form)
        ax.bar_label(drawn, [f"{load:.1f}" for load in loads], padding=4)
    labels = [f"{name}: {each['lengths'][0]:,.0f} in, {each['lengths'][1]:,.0f} out"
              for name, each in mixes.items()]
    ax.set_yticks(range(len(mixes)), labels)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set(xlabel="highest load with 90 % of requests in time [requests per second and node]")
    ax.grid(axis="y", visible=False)
    ax.legend(frameon=False, loc="best")
    ax.set_title("Separate pools win where prompts are long (0: below 1)", loc="left")
    return figure


def as_markdown(results):
    """The tables of README."""
    lines = ["| deployment | load | TTFT 50 % [s] | 95 % | TPOT 50 % [ms] | 95 % | in time |",
             "|---|---|---|---|---|---|---|"]
    for name, curve in results["load"].items():
        for load, each in curve.items():
            first, further = each["ttft"], each["tpot"]
            lines.append(f"| {name} | {load} | {first['50']:.2f} | {first['95']:.2f} | "
                         f"{1e3 * further['50']:.1f} | {1e3 * further['95']:.1f} | "
                         f"{each['good']:.1%} |")
    lines += ["", "| mix | separated | together | best division | best chunk |",
              "|---|---|---|---|---|"]
    lines += [f"| {name} | {each['load']['separated']:.2f} | {each['load']['together']:.2f} | "
              f"{each['best']['separated']} | {each['best']['together']} |"
              for name, each in results["mixes"].items()]
    lines += ["", "| figure | ours | published | ratio |", "|---|---|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {ours:,.1f} | {published:,.2f} | "
              f"{ours / published:.2f} |"
              for name, (ours, published) in results["day"].items() if published]
    return "\n".join(lines)
