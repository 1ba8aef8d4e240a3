"""Muon for sharded matrices: each process orthogonalises some of them, whole.

FSDP cuts a matrix (R, C) into P bands of rows, and an orthogonal form needs the whole matrix. So
the M updates of one shape change hands twice:

    M bands of R/P rows  ->  M/P matrices of R rows  ->  orthogonalize  ->  M bands of R/P rows

Each is an all-to-all in which a process sends less than its own shard of the M matrices. That is
little: FSDP gathers the other P - 1 shards twice a step. No process computes what another does; if
M is no multiple of P, some have less to do. Experts cost nothing, since they are held whole.
"""

import torch
import torch.distributed as dist

from ..kernels.orthogonal import orthogonalize
from ..train.optim import directions


def sharded_directions(updates, rows, columns, parameters):
    """What `train.optim.directions` returns, for bands of matrices and for whole experts.

    updates: of this process; parameters: DTensors, bands along dimension 0 or stacks of experts.
    """
    bands = [i for i, parameter in enumerate(parameters) if parameter.dim() == 2]
    stacks = [i for i, parameter in enumerate(parameters) if parameter.dim() == 3]
    found = {}
    if stacks:
        found.update(zip(stacks, directions([updates[i] for i in stacks], rows, columns, None),
                         strict=True))
    if bands:
        group = parameters[bands[0]].device_mesh.get_group()
        matrices = gather_some(torch.stack([updates[i] for i in bands]), rows, group)
        parts = return_bands(orthogonalize(matrices), len(bands), group)       # (M, R/P, C)
        found.update(zip(bands, parts.unbind(), strict=True))
    return [found[i] for i in range(len(updates))]


def shares(count, size):
    """How many of `count` things each of `size` processes has, as FSDP divides them."""
    most = -(-count // size)
    return [max(0, min(most, count - rank * most)) for rank in range(size)]


def gather_some(bands, rows, group):
    """This process's bands of all matrices (M, R/P, C) -> its share of whole ones, (M/P, R, C)."""
    size = dist.get_world_size(group)
    matrices, heights = shares(len(bands), size), shares(rows, size)
    mine, columns = matrices[dist.get_rank(group)], bands.size(-1)
    sent = [number * bands.size(1) * columns for number in matrices]
    received = [mine * height * columns for height in heights]
    parts = exchange(bands, sent, received, group)
    return torch.cat([part.view(mine, height, columns)
                      for part, height in zip(parts, heights, strict=True)], dim=1)


def return_bands(matrices, count, group):
    """The way back: this process's whole matrices (M/P, R, C) -> its bands of all, (M, R/P, C)."""
    size = dist.get_world_size(group)
    numbers, heights = shares(count, size), shares(matrices.size(1), size)
    mine, columns = heights[dist.get_rank(group)], matrices.size(-1)
    bands = torch.cat([band.flatten() for band in matrices.split(heights, dim=1)])
    sent = [len(matrices) * height * columns for height in heights]
    received = [number * mine * columns for number in numbers]
    parts = exchange(bands, sent, received, group)
    return torch.cat([part.view(number, mine, columns)
                      for part, number in zip(parts, numbers, strict=True)])


def exchange(x, sent, received, group):
    """All-to-all of the numbers of x, sent[p] of them to process p -> what came from each."""
    arrived = x.new_empty(sum(received))
    dist.all_to_all_single(arrived, x.flatten(), received, sent, group=group)
    return arrived.split(received)
