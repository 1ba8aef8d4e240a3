"""How many copies of a token cross the network: node limit and two hops (report, section 3.2.2).

    python -m minidsv3.scale.traffic checkpoints/tiny

Counted on the routing of a real text, for experts divided over nodes of several GPUs:

    one hop      a copy to every GPU that has a chosen expert
    two hops     a copy to every such node, to the GPU of the sender's own index; it passes it on

The router's limit keeps the chosen experts of a token in `topk_group` of `n_group` groups. If every
group is a node, no token goes to more than `topk_group` nodes. The report's network between nodes
is 3.2 times slower than the one inside (50 and 160 GB/s), so this is the number to keep small. The
same model without its limit chooses the best experts wherever they are; it was not trained so.
"""

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from .. import hf
from ..command import Parser, UserError, answer, check_out
from ..data.batches import validation_windows
from ..data.foreign import read_tokenizer
from ..measure import plots
from ..measure.evaluate import documents_of

WINDOWS = 64                                     # of text, of at most 256 tokens each


class Copies(NamedTuple):
    """Copies of a token that are sent, in the mean over tokens."""

    across: float                                # from node to node
    inside: float                                # between GPUs of a node
    most_across: int                             # of any token


def count(experts, num_experts, nodes, per_node):
    """Copies in one hop and in two, for chosen experts (N, K) -> {"one hop": Copies, ...}.

    Each GPU has an equal number of consecutive experts; token n is on GPU n mod (nodes * per_node).
    """
    gpus = nodes * per_node
    target = experts // (num_experts // gpus)                          # (N, K)
    home = torch.arange(len(experts)) % gpus                           # (N,)
    to_gpu = torch.zeros(len(experts), gpus, dtype=torch.bool)
    to_gpu.scatter_(1, target, True)                                   # (N, gpus)
    to_node = to_gpu.view(-1, nodes, per_node).any(dim=2)              # (N, nodes)
    far = torch.arange(nodes) != (home // per_node)[:, None]           # (N, nodes)
    other_nodes = (to_node & far).sum(dim=1)                           # (N,)
    far_gpus = (to_gpu.view(-1, nodes, per_node) & far[..., None]).sum(dim=(1, 2))
    near_gpus = to_gpu.sum(dim=1) - far_gpus - to_gpu.gather(1, home[:, None])[:, 0].long()
    # In two hops, the GPU of the sender's index gets the copy for its node, and sends on the rest.
    arrives = (torch.arange(gpus) % per_node) == (home % per_node)[:, None]            # (N, gpus)
    passed_on = (to_gpu & ~arrives).sum(dim=1)
    return {"one hop": mean(far_gpus, near_gpus), "two hops": mean(other_nodes, passed_on)}


def mean(across, inside):
    """Copies (N,) across and inside -> their Copies."""
    return Copies(across.double().mean().item(), inside.double().mean().item(), int(across.max()))


@contextmanager
def without_limit(model):
    """While it lasts, routers choose the best experts of all groups."""
    routers = model.routers()
    groups = [router.n_group for router in routers]
    for router in routers:
        router.n_group = 1
    try:
        yield model
    finally:
        for router, group in zip(routers, groups, strict=True):
            router.n_group = group


@torch.inference_mode()
def chosen_experts(model, inputs):
    """The experts that all sparse blocks choose for a text: (W, T) tokens -> (N, K)."""
    chosen = []
    for window in inputs.split(8):
        _, routings = model.hidden_states(window)
        chosen += [routing.experts.flatten(0, 1) for routing in routings]
    return torch.cat(chosen)


def measure(model, inputs, per_node):
    """{"with the limit" or "without": {"one hop" or "two hops": Copies}}; every group is a node."""
    config = model.config
    def counted():
        return count(chosen_experts(model, inputs), config.n_routed_experts, config.n_group,
                     per_node)

    found = {"with the limit": counted()}
    with without_limit(model):
        found["without"] = counted()
    return found


@plots.style()
def picture(found, ax=None):
    """Bars of copies per token, from node to node and inside; found: of `measure`."""
    figure, ax = (ax.figure, ax) if ax else plots.canvas()
    names = [f"{limit},\n{way}" for limit in found for way in found[limit]]
    rows = [each for ways in found.values() for each in ways.values()]
    places = range(len(rows))
    for shift, part, colour, hatch in ((-0.2, "across", plots.VERMILLION, None),
                                       (0.2, "inside", plots.BLUE, "//")):
        values = [getattr(row, part) for row in rows]
        ax.bar([place + shift for place in places], values, 0.38, color=colour, hatch=hatch,
               edgecolor="white", label={"across": "from node to node", "inside": "inside a node"
                                         }[part])
        for place, value in zip(places, values, strict=True):
            ax.text(place + shift, value + 0.03, f"{value:.2f}", ha="center")
    best, worst = found["with the limit"]["two hops"].across, found["without"]["one hop"].across
    ax.set_xticks(places, names)
    ax.set(ylabel="copies per token", ylim=(0, 1.25 * max(max(row[:2]) for row in rows)))
    ax.set_title(f"Limit and two hops: {worst:.1f} → {best:.1f} copies per token between nodes",
                 loc="left")
    ax.legend(loc="upper left", frameon=False, ncols=2)
    return figure


# ---- the command ----

def run(arguments):
    """Count, print a table, draw -> exit code."""
    parser = Parser(prog="python -m minidsv3.scale.traffic", description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="a run or checkpoint with groups of experts")
    parser.add_argument("--gpus-per-node", type=int, default=2, help="of each of n_group nodes [2]")
    parser.add_argument("--data", metavar="PATH", help="another text than the run's validation")
    parser.add_argument("--out", type=Path, metavar="PNG", help="the picture "
                        "[runs/traffic/NAME.png]")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    folder, per_node = hf.locate(options.folder), options.gpus_per_node
    out = options.out or Path("runs/traffic") / f"{folder.resolve().name}.png"
    check_out(out, ".png")
    model = hf.load(folder)
    config = model.config
    if config.n_group < 2 or not config.num_moe_layers:
        raise UserError(f"{folder} has n_group={config.n_group}, so its router has no limit; "
                        "choose a model with two groups of experts or more.")
    size = config.n_routed_experts // config.n_group
    if per_node < 1 or size % per_node:
        raise UserError(f"--gpus-per-node {per_node} does not divide the {size} experts of a "
                        "node; choose a divisor.")
    documents, _ = documents_of(folder, options.data)
    window = min(256, config.max_position_embeddings)
    inputs, _ = validation_windows(documents, read_tokenizer(folder, config), window)
    chosen = torch.linspace(0, len(inputs) - 1, min(WINDOWS, len(inputs))).long()
    found = measure(model, inputs[chosen], per_node)
    if options.json:
        print(json.dumps({limit: {way: copies._asdict() for way, copies in ways.items()}
                          for limit, ways in found.items()}))
        return
    print(f"{config.n_group} nodes of {per_node} GPUs, {config.n_routed_experts // config.n_group} "
          f"experts each; limit: {config.topk_group} nodes per token; copies per token")
    print(f"{'':26}{'node to node':>14}{'at most':>10}{'inside':>10}")
    for limit, ways in found.items():
        for way, copies in ways.items():
            print(f"{limit + ', ' + way:26}{copies.across:14.2f}{copies.most_across:10}"
                  f"{copies.inside:10.2f}")
    out.parent.mkdir(parents=True, exist_ok=True)
    plots.save(picture(found), out)
    print(f"wrote {out}")


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
