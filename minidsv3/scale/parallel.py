"""How a model is divided over many processes (report, section 3.2).

    model = parallelize(model, make_mesh(fsdp=2, ep=2))        then make its optimisers

    ep      processes over which the routed experts of a layer are divided; tokens travel
    fsdp    groups of ep processes; weights travel

With fsdp=2, ep=2 there are four processes, each with its own part of the batch:

    routed experts        half of them on each process of an ep group; FSDP over 2 (`fsdp`)
    all other weights     FSDP over all 4 (`data`)

FSDP is torch's `fully_shard`, with one unit per block: its weights are gathered before the block
computes and dropped after it. Gradients are means over all processes, as in a single one.
"""

from typing import NamedTuple

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Shard

from ..kernels.grouped import grouped_swiglu
from ..model.block import Block
from ..model.moe import MoE
from ..train.optim import Muon
from .expert_parallel import one_hop, spread
from .muon import sharded_directions


class Mesh(NamedTuple):
    """The processes in two arrangements, as torch's DeviceMesh."""

    data: object                                 # all in a row
    experts: object                              # (fsdp, ep): an ep group is consecutive


def make_mesh(fsdp=1, ep=1, device_type="cpu"):
    """The Mesh of fsdp * ep processes; every process must call it."""
    return Mesh(init_device_mesh(device_type, (fsdp * ep,), mesh_dim_names=("data",)),
                init_device_mesh(device_type, (fsdp, ep), mesh_dim_names=("fsdp", "ep")))


def parallelize(model, mesh):
    """Divide a finished model over a Mesh -> the same model, its weights DTensors.

    Make the optimisers afterwards, and give them to `finish`. With activations in bfloat16, blocks
    are gathered in bfloat16, but routers in float32; gradients are summed up in float32.
    """
    divide(model, mesh, model.activation_dtype)
    for method in ("loss", "hidden_states", "mtp_states"):     # entrances besides forward
        register_fsdp_forward_method(model, method)
    return model


def divide(module, mesh, short=None):
    """Let FSDP, and where ep > 1 expert parallelism, divide a module; short: dtype of blocks."""
    everywhere, fsdp, ep = mesh.data, mesh.experts["fsdp"], mesh.experts["ep"]
    usual = MixedPrecisionPolicy(cast_forward_inputs=False)
    policy = usual if short is None else MixedPrecisionPolicy(
        param_dtype=short, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in [each for each in module.modules() if isinstance(each, MoE)]:
        if ep.size() > 1:
            unit(spread_over(layer, ep), fsdp, policy)
        unit(layer.gate, everywhere, usual)      # float32, whatever the precision
    for block in [each for each in module.modules() if isinstance(each, Block)]:
        unit(block, everywhere, policy)
    unit(module, everywhere, usual)


def spread_over(layer, ep):
    """Divide the experts of a finished MoE layer over the mesh `ep` -> the experts, DTensors."""
    in_fp8 = layer.experts.swiglu is not grouped_swiglu
    experts = spread(layer, one_hop(ep.get_group()), in_fp8).experts
    experts.share = 1 / ep.size()                # FSDP's mean is over `fsdp` only
    for name, part in list(experts.named_parameters()):
        part = DTensor.from_local(part.detach(), ep, [Shard(0)], run_check=False)
        setattr(experts, name, torch.nn.Parameter(part))
    return experts


def unit(module, mesh, policy):
    """Let FSDP divide what is in a module and in no unit inside it."""
    fully_shard(module, mesh=mesh, mp_policy=policy)
    if mesh.device_type == "cpu":                # gloo knows sums, but no means
        module.set_force_sum_reduction_for_comms(True)


def finish(optimizers):
    """Make the optimisers of a divided model use whole matrices -> the same optimisers."""
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            optimizer.directions = sharded_directions
    return optimizers
