"""Speed of FP8: slower where it is simulated, faster where a GPU has tensor cores for it.

    python benchmarks/precision.py                 three minutes on a laptop

Steps: whole optimiser steps of a preset in float32, bfloat16 and FP8, in turns, round after round.
Given are the medians of the times, and of their ratios to float32 within a round. Products: the
forward and backward pass of a linear layer, measured in the same way. Its FP8 products run on
tensor cores if minidsv3/fp8/tensor_cores.py finds that they agree with the simulation; otherwise
they are simulated.
"""

import json
import statistics
import sys
from pathlib import Path

import torch
from contender import Contender, clock
from tqdm import tqdm
from train import alternate, machine

from minidsv3 import ModelConfig, fp8
from minidsv3.command import Parser, UserError, answer
from minidsv3.data.dataset import Dataset
from minidsv3.device import choose_device
from minidsv3.files import make_folder, write_text
from minidsv3.fp8 import tensor_cores
from minidsv3.model.layers import Linear
from minidsv3.model.transformer import DeepSeekV3
from minidsv3.train.recipe import TrainConfig

PRECISIONS = ("fp32", "bf16", "fp8")
SIZES = {"cpu": [(256, 256, 256), (1024, 1024, 1024)],       # tokens, in, out
         "cuda": [(4096, 7168, 2048), (4096, 2048, 7168), (4096, 7168, 18432)]}


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--preset", default="tiny", help="tiny, or small on a GPU [tiny]")
    parser.add_argument("--rounds", type=int, default=7,
                        help="measured rounds, after two to warm up [7]")
    parser.add_argument("--steps", type=int, default=5,
                        help="optimiser steps of each precision in a round [5]")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR",
                        help="folder for precision.json [benchmarks/results]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    arguments = parser.parse_args(arguments)
    for name in ("rounds", "steps"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(arguments, name)}.")
    return arguments


def step_times(arguments, device):
    """Seconds per optimiser step -> {precision: [one number per round]}."""
    recipe = TrainConfig.preset(arguments.preset)
    recipe = recipe.replace(batch_start=recipe.batch_size)             # all steps of equal size
    config = ModelConfig.preset(arguments.preset)
    data = Dataset(recipe.data, config.vocab_size, recipe.window, recipe.fim_rate, recipe.seed)
    running = {}
    for precision in PRECISIONS:
        running[precision] = Contender(lambda: DeepSeekV3(config),
                                       recipe.replace(precision=precision), device)
    fp8.convert(running["fp8"].model)
    with tqdm(total=(2 + arguments.rounds) * len(running), unit="round", desc="steps") as bar:
        def one_round(name):
            before = running[name].seconds
            for _ in range(arguments.steps):
                running[name].step(data.batches, 0.1)
            bar.update()
            return (running[name].seconds - before) / arguments.steps

        return alternate(running, 2 + arguments.rounds, one_round)


def product_times(size, rounds, device):
    """Seconds of a layer's forward and backward pass -> {precision: [one number per round]}."""
    N, K, O = size
    layers = {"fp32": Linear(K, O), "bf16": Linear(K, O),
              "fp8": fp8.convert(torch.nn.ModuleDict({"q_b_proj": Linear(K, O)}))["q_b_proj"]}
    for layer in layers.values():
        torch.nn.init.normal_(layer.to(device).weight, std=K**-0.5)
    x, dy = torch.randn(N, K, device=device), torch.randn(N, O, device=device)

    def one_round(name):
        dtype = torch.float32 if name == "fp32" else torch.bfloat16
        inputs, gradient = x.to(dtype).requires_grad_(), dy.to(dtype)
        begin = clock(device)
        for _ in range(5):
            layers[name](inputs).backward(gradient)
        return (clock(device) - begin) / 5

    return alternate(layers, 2 + rounds, one_round)


def figures(times):
    """For each precision the median of the times [ms], and of the ratios to float32 in a round."""
    counted = {name: seconds[2:] for name, seconds in times.items()}
    return {name: {"ms": round(1000 * statistics.median(seconds), 3),
                   "to_fp32": round(statistics.median(
                       a / b for a, b in zip(seconds, counted["fp32"], strict=True)), 3)}
            for name, seconds in counted.items()}


def run(arguments):
    """Measure, print and write -> exit code."""
    device = choose_device(arguments.device)
    make_folder(arguments.out)
    rows = {f"a step of {arguments.preset}": figures(step_times(arguments, device))}
    for size in SIZES.get(device.type, SIZES["cpu"]):
        name = "a layer, {:,} tokens, {:,} to {:,}".format(*size)
        rows[name] = figures(product_times(size, arguments.rounds, device))
    kind = "on tensor cores" if tensor_cores.usable(device) else "simulated"
    print(f"| | float32 [ms] | bfloat16 [ms] | FP8, {kind} [ms] | bfloat16 / float32 "
          "| FP8 / float32 |\n|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[p]['ms']:.1f}" for p in PRECISIONS)
              + f" | {row['bf16']['to_fp32']:.2f} | {row['fp8']['to_fp32']:.2f} |")
    results = {"machine": machine(device), "command": " ".join(sys.argv), "fp8": kind, "rows": rows}
    write_text(arguments.out / "precision.json", json.dumps(results, indent=2) + "\n")
    print(f"wrote {arguments.out / 'precision.json'}")
    return 0


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
