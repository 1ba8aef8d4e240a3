"""The full-size model on GPUs that nobody has here: what each of them would hold.

    python -m minidsv3.scale.mesh v3-671b --gpus 2048 --pp 16 --ep 64

The model is built without memory (torch's `meta` device), cut into the stages of a pipeline and
divided by the code that divides a real run (`parallel.py`), on torch's fake process group, whose
communication does nothing. So the numbers of parameters are exact, for two plans:

    zero1   the report's: every GPU has its stage whole, except that routed experts are divided over
            ep GPUs; only what the optimiser needs is divided among equal copies
    fsdp    everything is divided; weights of a block are gathered while it computes

In DualPipe a GPU also holds the stage of its opposite, as a second copy of weights and gradients.
Bytes of a number: weights 2 (zero1) or 4 (fsdp, which keeps no others), gradients 4; the optimiser
adds its two moments, 2 each, and in zero1 master weights of 4. Activations are estimated by
formula (`measure/cost.py`), with blocks computed again in the backward pass. Not counted: buffers
of communication, and what a block needs while it computes.
"""

import json
import math
import sys
from collections import defaultdict
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ..command import Parser, UserError, answer
from ..device import local
from ..measure import cost
from ..measure.accounting import figure, model_config
from ..model.block import Block
from ..model.transformer import DeepSeekV3
from .parallel import Mesh, divide
from .stage import Stage

CARD = 80e9                                      # bytes of one GPU
MOST_GPUS = 65_536                               # for which there is an answer within a minute
PARTS = ("weights", "gradients", "optimiser", "second_copy", "gathered", "activations")


class Layout(NamedTuple):
    """GPUs of a run: the stages of a pipeline, each on fsdp * ep of them."""

    stages: int
    fsdp: int
    ep: int

    @property
    def data(self):
        """GPUs of one stage."""
        return self.fsdp * self.ep


def read_layout(config, gpus, stages, ep):
    """The Layout of so many GPUs; UserError if they or the model cannot be divided so."""
    experts, depth = config.n_routed_experts, config.num_hidden_layers
    for name, value in (("gpus", gpus), ("pp", stages), ("ep", ep)):
        if not 1 <= value <= MOST_GPUS:
            raise UserError(f"--{name} {value} must be 1 to {MOST_GPUS:,}.")
    if gpus % (stages * ep):
        raise UserError(f"--gpus {gpus} is no multiple of --pp {stages} times --ep {ep}; choose "
                        f"for instance --gpus {-(-gpus // (stages * ep)) * stages * ep}.")
    if experts % ep:
        raise UserError(f"--ep {ep} does not divide the {experts} routed experts; choose for "
                        f"instance --ep {math.gcd(ep, experts)}.")
    if stages > depth or stages > 1 and stages % 2:
        raise UserError(f"--pp {stages} must be 1, or even and at most the model's {depth} blocks; "
                        "in DualPipe each GPU holds two stages.")
    return Layout(stages, gpus // (stages * ep), ep)


@contextmanager
def as_rank(rank, world):
    """This process as one of many that do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def make_stage(config, layout, index):
    """One stage of the model, without memory; what two stages share is in the first alone."""
    with torch.device("meta"):
        model = DeepSeekV3(config)
    stage = Stage(model, index, layout.stages)
    if stage.last and not stage.first:           # DualPipe has both stages on the same GPUs
        stage.embed_tokens = None
        if config.tie_word_embeddings:
            stage.lm_head = None
    return stage


def shards(config, layout, index, place=0):
    """{name: shape} of what a GPU holds, the place-th of those of a stage, in plan fsdp.

    The first has at least as much of everything as the others.
    """
    with as_rank(index * layout.data + place, layout.stages * layout.data):
        stage = make_stage(config, layout, index)
        rows = init_device_mesh("cpu", (layout.stages, layout.data), mesh_dim_names=("pp", "data"))
        experts = init_device_mesh("cpu", tuple(layout), mesh_dim_names=("pp", "fsdp", "ep"))
        divide(stage, Mesh(rows["data"], experts["fsdp", "ep"]))
        return {name: local(weight).shape for name, weight in stage.named_parameters()}


class Held(NamedTuple):
    """Parameters of a stage: all of it, and on its first GPU."""

    blocks: int
    main: int                                    # of the main model, in the whole stage
    mtp: int
    whole: int                                   # on a GPU: experts divided over ep, the rest whole
    shard: int                                   # on a GPU: everything divided
    largest: int                                 # of the largest block, as in `whole`


def held(config, layout, index):
    """What a stage has, and what its first GPU holds of it -> Held."""
    def on_a_gpu(name, weight):                  # routed experts are the only stacks
        return weight.numel() // (layout.ep if weight.dim() == 3 else 1)

    stage = make_stage(config, layout, index)
    weights = dict(stage.named_parameters())
    blocks = [module for module in stage.modules() if isinstance(module, Block)]
    return Held(
        len(blocks),
        sum(weight.numel() for name, weight in weights.items() if not name.startswith("mtp.")),
        sum(weight.numel() for name, weight in weights.items() if name.startswith("mtp.")),
        sum(on_a_gpu(name, weight) for name, weight in weights.items()),
        sum(math.prod(shape) for shape in shards(config, layout, index).values()),
        max(sum(on_a_gpu(*each) for each in block.named_parameters()) for block in blocks))


def memory(stages, activations):
    """{plan: [{part: bytes} of a GPU of each stage]}; stages: the Held of all."""
    plans = {"zero1": [], "fsdp": []}
    for own, opposite in zip(stages, reversed(stages), strict=True):
        twice = len(stages) > 1
        plans["zero1"].append({
            "weights": 2 * own.whole, "gradients": 4 * own.whole, "optimiser": 8 * own.shard,
            "second_copy": twice * 6 * opposite.whole, "gathered": 0})
        # Gathered: one block and the next in bfloat16, and the gradients of one before their sum.
        largest = max(own.largest, twice * opposite.largest)
        plans["fsdp"].append({
            "weights": 4 * own.shard, "gradients": 4 * own.shard, "optimiser": 4 * own.shard,
            "second_copy": twice * 8 * opposite.shard, "gathered": 2 * 2 * largest + 4 * largest})
    for parts in [each for rows in plans.values() for each in rows]:
        parts["activations"] = activations
        parts["total"] = sum(parts[name] for name in PARTS)
    return plans


def activation_memory(config, layout, window):
    """Bytes of a GPU's activations: a micro-batch of one sequence in `stages` + 1 stages."""
    whole = cost.activation_bytes(config, 1, window, recompute=True)
    return whole * (layout.stages + 1) // layout.stages if layout.stages > 1 else whole


def report(name, config, layout, window):
    """All figures of the plan, in plain units."""
    stages = [held(config, layout, index) for index in range(layout.stages)]
    plans = memory(stages, activation_memory(config, layout, window))
    worst = {plan: max(parts["total"] for parts in rows) for plan, rows in plans.items()}
    return {"model": name, "gpus": layout.stages * layout.data, "pp": layout.stages,
            "fsdp": layout.fsdp, "ep": layout.ep, "window": window,
            "parameters": {"main_model": sum(stage.main for stage in stages),
                           "mtp_modules": sum(stage.mtp for stage in stages)},
            "stages": [stage._asdict() for stage in stages], "bytes_per_gpu": plans,
            "largest_bytes": worst, "card_bytes": CARD,
            "fits": {plan: size <= CARD for plan, size in worst.items()}}


def as_text(figures):
    """The report as tables."""
    lines = ["{model} on {gpus:,} GPUs: {pp} stages, each on {fsdp} x {ep} GPUs (fsdp x ep); "
             "one sequence of {window:,} tokens a micro-batch".format(**figures),
             "{main_model:,} parameters of the main model, {mtp_modules:,} of the MTP modules, "
             "each on one GPU or divided".format(**figures["parameters"])]
    for plan, rows in figures["bytes_per_gpu"].items():
        lines += ["", f"plan {plan}, one GPU of each stage",
                  "  stage blocks     parameters" + "".join(f"{name.replace('_', ' '):>13}"
                                                       for name in (*PARTS, "total"))]
        alike = defaultdict(list)                # {line: the stages that it is true of}
        for index, (stage, parts) in enumerate(zip(figures["stages"], rows, strict=True)):
            count = stage["whole" if plan == "zero1" else "shard"]
            alike[f"{stage['blocks']:7} {count:>14,}" + "".join(
                f"{figure(parts[name], 'B'):>13}" for name in (*PARTS, "total"))].append(index)
        for line, indices in alike.items():
            first, last = indices[0], indices[-1]
            lines.append(f"{first if first == last else f'{first}-{last}':>7}{line}")
        left = CARD - figures["largest_bytes"][plan]
        lines.append(f"{'fits into' if left >= 0 else 'does NOT fit into'} {figure(CARD, 'B')}: "
                     f"{figure(abs(left), 'B')} {'to spare' if left >= 0 else 'too much'}")
    return "\n".join(lines)


def run(arguments):
    """Print what each GPU would hold -> exit code."""
    parser = Parser(prog="python -m minidsv3.scale.mesh", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="a preset or a checkpoint's folder")
    parser.add_argument("--gpus", type=int, default=2048, help="of the whole run [2048]")
    parser.add_argument("--pp", type=int, default=16, help="stages of the pipeline [16]")
    parser.add_argument("--ep", type=int, default=64, help="GPUs that divide the experts [64]")
    parser.add_argument("--window", type=int, default=4096, help="tokens of a sequence [4096]")
    parser.add_argument("--json", action="store_true", help="JSON in plain units")
    options = parser.parse_args(arguments)
    config = model_config(options.name)
    if options.window < 1:
        raise UserError(f"--window {options.window} must be at least 1.")
    layout = read_layout(config, options.gpus, options.pp, options.ep)
    figures = report(options.name, config, layout, options.window)
    print(json.dumps(figures, indent=1) if options.json else as_text(figures))


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
