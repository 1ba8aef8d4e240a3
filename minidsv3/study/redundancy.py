"""What do redundant experts level? The report's section 3.4, on traces of a trained model.

    python -m minidsv3.study.redundancy          studies/redundancy, from the traces stored there

A stream of steps moves from code to prose, to tables and back to code, and the loads of the experts
move with it. Six ways to serve 256 experts on 32 GPUs are compared, by the load of the busiest GPU
over the mean:

    plain       8 experts on each GPU, in their order
    packed      the same number, placed anew every few steps by the loads since then; no copies
    static      32 redundant experts, placed once, by the loads of the first steps
    periodic    the same, placed anew every few steps
    grouped     as `periodic`, but all experts of a group stay on one node
    dynamic     7 more experts on each GPU, chosen when `periodic` places its 9; each step activates
                9 of these 16 (`serve/dynamic.py`)

The loads on which a placement is made are always those of steps before it. With them come a table
on loads that follow Zipf's law, one on more GPUs, where loads are known, and copies of tokens
between nodes for placements that keep groups on a node and for those that do not.
"""

import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..command import Parser, UserError, answer
from ..files import make_folder, refuse_files, write_text
from ..measure import plots
from ..scale import traffic
from ..serve.dynamic import hosting, level
from ..serve.placement import gpu_loads, imbalance, inverse, rebalance
from ..serve.traces import loads, read_trace

WAYS = ("plain", "packed", "static", "periodic", "grouped", "dynamic")
ORDER = ("code", "prose", "tables", "code")      # the stream's kinds of text
ZIPF = (0.0, 0.3, 0.6, 0.9)                      # exponents


def busiest(load, placement, gpus):
    """The busiest GPU's load over the mean, by layer: load (layers, E) -> (layers,)."""
    return imbalance(gpu_loads(placement, torch.from_numpy(load), gpus)).numpy()


def in_order(layers, experts):
    """The placement without copies where the first GPU has the first experts, and so on."""
    slots = torch.arange(experts).repeat(layers, 1)
    return inverse(slots, slots, experts)


def levelled(load, hosts, active):
    """The same with dynamic redundancy; hosts: of each layer, (gpus, E)."""
    shares = [level(row, each, active).sum(axis=1) for row, each in zip(load, hosts, strict=True)]
    return np.array([share.max() / share.mean() for share in shares])


def follow(stream, every, groups, nodes, gpus, hosted, active, bar):
    """Imbalance of each way in each step: stream (S, layers, E) -> {way: (S,)}."""
    experts = stream.shape[2]

    def placed(past, replicas, together=1, on=1):
        return rebalance(torch.from_numpy(past), replicas, together, on, gpus)

    begin = stream[:every].sum(axis=0)
    plain = in_order(*begin.shape)
    static = placed(begin, experts + gpus)
    found = {way: [] for way in WAYS}
    for step, load in enumerate(stream):
        if step % every == 0:
            past = stream[max(0, step - every):step].sum(axis=0) if step else begin
            packed, periodic = placed(past, experts), placed(past, experts + gpus)
            grouped = placed(past, experts + gpus, groups, nodes)
            hosts = [hosting(row, gpus, hosted, active) for row in past]
        for way, placement in (("plain", plain), ("packed", packed), ("static", static),
                               ("periodic", periodic), ("grouped", grouped)):
            found[way].append(busiest(load, placement, gpus).mean())
        found["dynamic"].append(levelled(load, hosts, active).mean())
        bar.update()
    return {way: [round(float(x), 4) for x in values] for way, values in found.items()}


def before_and_after(stream, every, gpus):
    """Load of every GPU, plain and with copies placed by these very loads -> (gpus,), (gpus,).

    Of the first layer, in those `every` steps of the stream where plain is the least balanced.
    """
    windows = torch.from_numpy(np.stack([stream[start:start + every, :1].sum(axis=0)
                                         for start in range(0, len(stream), every)]))
    experts = windows.shape[2]
    plain = in_order(1, experts)
    before = [gpu_loads(plain, window, gpus)[0] for window in windows]
    worst = int(imbalance(torch.stack(before)).argmax())
    copied = rebalance(windows[worst], experts + gpus, 1, 1, gpus)
    return before[worst].numpy(), gpu_loads(copied, windows[worst], gpus)[0].numpy()


def on_more_gpus(steps, every, gpus):
    """Imbalance of known loads on 1, 2 and 4 times the GPUs -> {kind: {GPUs: {way: mean}}}.

    steps: {kind: (S, layers, E)}. Ways: `packed`, and `copied` with one redundant expert per GPU;
    both are placed by the very loads on which they are measured.
    """
    found = {}
    for kind, stream in steps.items():
        past = [torch.from_numpy(stream[start:start + every].sum(axis=0))
                for start in range(0, len(stream), every)]
        experts = stream.shape[2]
        found[kind] = {str(many): {
            way: round(float(np.mean([busiest(load.numpy(), rebalance(load, slots, 1, 1, many),
                                              many).mean() for load in past])), 3)
            for way, slots in (("packed", experts), ("copied", experts + many))}
            for many in (gpus, 2 * gpus, 4 * gpus) if experts % many == 0}
    return found


def zipf_loads(experts, exponent, tokens, seed):
    """Loads of two steps whose experts follow Zipf's law, in one random order: (2, 1, E)."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, experts + 1) ** exponent
    share = rng.permutation(share / share.sum())
    return rng.multinomial(tokens, share, size=2)[:, None]


def on_zipf(experts, gpus, hosted, active, tokens, bar):
    """{exponent: {way: mean over three seeds}}; placed by one step, measured on another."""
    found = {}
    for exponent in ZIPF:
        rows = [follow(zipf_loads(experts, exponent, tokens, seed), 1, 1, 1, gpus, hosted, active,
                       bar) for seed in range(3)]
        # Of the two steps the second one: its placement was made by the first.
        found[str(exponent)] = {way: round(float(np.mean([row[way][1] for row in rows])), 4)
                                for way in WAYS}
    return found


def copies_between_nodes(trace, experts, groups, nodes, gpus):
    """Copies of tokens between nodes for both policies -> {policy: {hops: copies per token}}."""
    counted = torch.from_numpy(loads(trace, experts))
    found = {}
    for policy, together in (("groups on a node", groups), ("anywhere", 1)):
        of_layers = []
        for layer, row in enumerate(counted):
            placement = rebalance(row[None], experts + gpus, together, nodes if together > 1 else 1,
                                  gpus)
            chosen = torch.from_numpy(trace[:, layer].astype(np.int64))            # (N, K)
            turn = torch.arange(len(chosen))[:, None]
            copies = placement.replica_count[0][chosen]
            slots = placement.logical_to_physical[0][chosen, turn % copies]
            of_layers.append(traffic.count(slots, experts + gpus, nodes, gpus // nodes))
        found[policy] = {hops: round(float(np.mean([each[hops].across for each in of_layers])), 3)
                         for hops in of_layers[0]}
    return found


# ---- pictures ----

@plots.style()
def over_time(found, every, kinds_every, ax=None):
    """Imbalance over the steps of the stream, of some or all WAYS."""
    figure, ax = (ax.figure, ax) if ax else plots.canvas(size=(11, 5))
    looks = {"plain": (plots.BLACK, ":"), "packed": ("#777777", "-"),
             "static": (plots.PURPLE, "--"),
             "periodic": (plots.BLUE, "-."), "grouped": (plots.GREEN, "--"),
             "dynamic": (plots.VERMILLION, "-")}
    for way, values in found.items():
        colour, line = looks[way]
        ax.plot(values, line, color=colour, label=way)
    top = max(map(max, found.values()))
    for index, kind in enumerate(ORDER):
        ax.axvline(index * kinds_every - 0.5, color=plots.BLACK, linewidth=0.8)
        ax.text(index * kinds_every, top * 1.04, kind)
    ax.set(xlabel="step", ylabel="busiest GPU over the mean", ylim=(1, top * 1.12))
    plots.label_ends(ax, ax.get_lines()[:len(found)])
    ax.set_title(f"Choosing in every step (dynamic) balances better than placing every {every} "
                 "steps", loc="left", pad=12)
    return figure


@plots.style()
def gpu_bars(before, after, ax=None):
    """Load of every GPU without and with redundancy, over the mean: (gpus,) each."""
    figure, ax = (ax.figure, ax) if ax else plots.canvas(size=(11, 5))
    places = np.arange(len(before))
    ax.bar(places - 0.2, before / before.mean(), 0.4, color=plots.BLACK, label="plain")
    ax.bar(places + 0.2, after / after.mean(), 0.4, color=plots.BLUE, hatch="//",
           edgecolor="white", label="with redundant experts")
    ax.axhline(1, color=plots.BLACK, linewidth=0.8)
    ax.set(xlabel="GPU", ylabel="load over the mean")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  frameon=False)
    ax.set_title(f"If the loads are known, the busiest GPU has {after.max() / after.mean():.2f} in "
                 f"place of {before.max() / before.mean():.2f} times the mean", loc="left")
    return figure


# ---- the command ----

def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(prog="python -m minidsv3.study.redundancy", description=__doc__)
    parser.add_argument("--traces", type=Path, default=Path("studies/redundancy/traces.npz"),
                        help="of `python -m minidsv3.serve.traces` [studies/redundancy/traces.npz]")
    for name, usual, what in (
            ("--groups", 8, "of experts"), ("--nodes", 4, "machines"), ("--gpus", 32, "of all"),
            ("--hosted", 16, "experts on a GPU, dynamic"), ("--active", 9, "of them in a step"),
            ("--tokens", 1024, "of a step"), ("--every", 4, "steps from placement to placement")):
        parser.add_argument(name, type=int, default=usual, help=f"{what} [{usual}]")
    parser.add_argument("--out", type=Path, default=Path("studies/redundancy"),
                        help="results [studies/redundancy]")
    parsed = parser.parse_args(arguments)
    for name in ("tokens", "every", "hosted", "active"):
        if getattr(parsed, name) < 1:
            raise UserError(f"--{name} {getattr(parsed, name)} must be at least 1.")
    if parsed.hosted < parsed.active:
        raise UserError(f"--hosted {parsed.hosted} must be at least --active {parsed.active}.")
    refuse_files(parsed.out)
    if not parsed.traces.is_file():
        raise UserError(f"{parsed.traces} does not exist; make it with python -m "
                        "minidsv3.serve.traces DIR --out FILE.")
    return parsed


def run(arguments):
    """Compare, write results.json and the pictures -> exit code."""
    begin = time.perf_counter()
    traces, experts = read_trace(arguments.traces)
    groups, nodes, gpus = arguments.groups, arguments.nodes, arguments.gpus
    # Code comes twice, the second half of it the second time.
    count = min(map(len, traces.values())) // arguments.tokens // 2
    if count < arguments.every:
        raise UserError(f"{arguments.traces} has {2 * count} steps of {arguments.tokens} tokens of "
                        f"each kind, fewer than 2 * --every {arguments.every}; give fewer tokens.")
    steps = {kind: loads(trace, experts, arguments.tokens) for kind, trace in traces.items()}
    stream = np.concatenate([steps["code"][:count], steps["prose"][:count],
                             steps["tables"][:count], steps["code"][count:2 * count]])
    rebalance(torch.ones(1, experts), experts + gpus, groups, nodes, gpus)     # do sizes fit?
    make_folder(arguments.out)
    with tqdm(total=len(stream) + 2 * 3 * len(ZIPF), unit="step") as bar:
        found = follow(stream, arguments.every, groups, nodes, gpus, arguments.hosted,
                       arguments.active, bar)
        assignments = arguments.tokens * traces["code"].shape[2]
        zipf = on_zipf(experts, gpus, arguments.hosted, arguments.active, 64 * assignments, bar)
    later = {way: round(float(np.mean(values[arguments.every:])), 4)
             for way, values in found.items()}
    results = {"experts": experts, "groups": groups, "nodes": nodes, "gpus": gpus,
               "redundant": gpus, "hosted": arguments.hosted, "active": arguments.active,
               "tokens_per_step": arguments.tokens, "every": arguments.every,
               "steps": len(stream), "mean_imbalance": later, "imbalance": found, "zipf": zipf,
               "known_loads": on_more_gpus(steps, arguments.every, gpus),
               "copies_between_nodes": copies_between_nodes(traces["prose"], experts, groups,
                                                            nodes, gpus),
               "seconds": round(time.perf_counter() - begin, 1), "torch": torch.__version__,
               "python": platform.python_version()}
    write_text(arguments.out / "results.json", json.dumps(results, indent=1) + "\n")
    plots.save(over_time(found, arguments.every, count), arguments.out / "time.png")
    plots.save(gpu_bars(*before_and_after(stream, arguments.every, gpus)),
               arguments.out / "gpus.png")
    for name, row in (("traces", later), *((f"Zipf {x}", row) for x, row in zipf.items())):
        print(f"{name:10}" + "".join(f"{way:>10} {row[way]:.3f}" for way in WAYS))
    print(f"wrote {arguments.out}: results.json, time.png, gpus.png")


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
