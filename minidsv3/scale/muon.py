"""Muon for sharded matrices: each process orthogonalises some of the matrices, whole.

FSDP cuts a matrix (R, C) into P bands of rows, and an orthogonal form needs the whole matrix. So M
updates of one shape change hands twice, M being the number of layers or more:

    M bands of R/P rows  ->  M/P matrices of R rows  ->  orthogonalize  ->  M bands of R/P rows

Both are an all-to-all, in which a process sends about M R C / P numbers, as much as its shard holds;
FSDP itself sends P - 1 times as much to gather the weights. No process computes what another does.
Experts cost nothing: a process holds whole experts.
"""

import torch
from torch.distributed.tensor import DTensor, Shard

from ..train.optim import directions, orthogonalize


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
        mesh = parameters[bands[0]].device_mesh
        mine = reshard(torch.stack([updates[i] for i in bands]), mesh, 1, 0, rows, len(bands))
        done = reshard(orthogonalize(mine), mesh, 0, 1, rows, len(bands))      # (M, R/P, C)
        found.update(zip(bands, done.unbind(), strict=True))
    return [found[i] for i in range(len(updates))]


def reshard(part, mesh, old, new, rows, count):
    """This process's part of a stack (M, R, C), cut along another dimension."""
    columns = part.size(-1)
    stack = DTensor.from_local(part.contiguous(), mesh, [Shard(old)], run_check=False,
                               shape=torch.Size((count, rows, columns)),
                               stride=(rows * columns, columns, 1))
    return stack.redistribute(placements=[Shard(new)]).to_local()
