"""Start a function on several processes of this machine, from a notebook: `start(f, 2, ...)`.

Spawned processes import what they run, so the function stands here and not in a cell.
"""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.model.moe import MoE
from minidsv3.scale.expert_parallel import one_hop, spread, two_hops
from minidsv3.scale.pipeline import Pipeline

LIMIT = 100                                      # seconds; then a rank that waits gives up


def start(function, ranks, *arguments):
    """Call function(*arguments) on each rank of a new group -> the results by rank."""
    context = multiprocessing.get_context("spawn")                     # the same on every system
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(ranks, context) as pool:
        meeting = (Path(folder) / "meeting").as_uri()
        waiting = [pool.submit(join, meeting, rank, ranks, function, arguments)
                   for rank in range(ranks)]
        return [one.result() for one in waiting]


def join(meeting, rank, ranks, function, arguments):
    """What one process does: meet the others, then call the function."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks,
                            timeout=timedelta(seconds=LIMIT))
    result = function(*arguments)
    dist.barrier()
    dist.destroy_process_group()
    return result


# ---- notebook 09: a pipeline ----

def small_model():
    """Eight blocks and an MTP module in float64, the same on every rank."""
    torch.manual_seed(0)
    config = ModelConfig.preset("tiny").replace(
        vocab_size=512, hidden_size=64, num_hidden_layers=8, moe_intermediate_size=32)
    return DeepSeekV3(config).double()


def one_step(schedule, micro_batches, tokens):
    """One step of a pipeline: tokens (B, T+1) -> loss, gradients, what was done, its cells."""
    model = small_model()
    pipeline = Pipeline(model, schedule, micro_batches)
    result = pipeline.step(tokens)
    gradients = {name: weight.grad.numpy() for name, weight in model.named_parameters()
                 if weight.grad is not None}
    done = [str(action) for action in result.executed]
    return result.terms.total.item(), gradients, done, result.cells


def one_step_each(schedules, micro_batches, tokens):
    """{schedule: its step}, so that processes start only once; the first is a rehearsal."""
    one_step(schedules[0], micro_batches, tokens)
    return {schedule: one_step(schedule, micro_batches, tokens) for schedule in schedules}


# ---- notebook 10: experts on four processes, in two nodes of two ----

def moe_layer(idle=(), dtype=torch.float64):
    """An MoE layer with 4 of 8 experts per token, the same on every rank; nobody chooses `idle`."""
    torch.manual_seed(0)
    layer = MoE(ModelConfig.preset("tiny").replace(
        hidden_size=128, moe_intermediate_size=32, n_routed_experts=8, num_experts_per_tok=4,
        n_group=1, topk_group=1))
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_(std=0.1)
        layer.gate.e_score_correction_bias[list(idle)] = -9
    return layer.to(dtype)


def through(layer, x, dy):
    """Forwards and backwards, x and dy (N, C) -> {"y": output, "x" or a parameter: gradient}."""
    x = x.clone().requires_grad_()
    y, _ = layer(x[None])
    y.backward(dy[None])
    found = {"y": y[0].detach(), "x": x.grad}
    found |= {name: weight.grad for name, weight in layer.named_parameters()}
    return {name: value.double().numpy() for name, value in found.items()}


def spread_each(settings, x, dy):
    """Passes of a spread layer: settings {name: (hops, idle, dtype, fp8)} -> {name: its results}.

    x, dy: for each rank its tokens and the gradients of their outputs. With the results come the
    bytes that this rank has sent to the other node, and to the other process of its own.
    """
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2, 2), mesh_dim_names=("node", "gpu"))
    found = {}
    for name, (hops, idle, dtype, fp8) in settings.items():
        way = (one_hop(dist.group.WORLD, per_node=2) if hops == 1 else
               two_hops(mesh.get_group("node"), mesh.get_group("gpu"), per_node=2))
        layer = spread(moe_layer(idle, dtype), way, fp8)
        values = through(layer, x[rank].to(dtype), dy[rank].to(dtype))
        found[name] = (values, sum(link.across for link in way.links),
                       sum(link.inside for link in way.links))
    return found
