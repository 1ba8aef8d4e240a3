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

from minidsv3 import DeepSeekV3, ModelConfig
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
