"""The same stages on torch's own schedules: an independent check, and the engine for many GPUs.

    result = torch_step(model, "dualpipev", tokens, micro_batches=8)   tokens (B, T+1) -> Result

torch.distributed.pipelining brings 1F1B, ZB-V and DualPipeV. It overlaps communication, needs no
tags, and splits backward passes with functions of its own. Its DualPipeV needs at least as many
micro-batches as stages. It has no DualPipe with two copies.
"""

import torch
import torch.distributed as dist
from torch import nn

from ..command import UserError
from .pipeline import Result, as_vector, split, total
from .programme import stages_of
from .stage import Shared, Stage

SCHEDULES = {"1f1b": "1F1B", "zbv": "ZBVZeroBubble", "dualpipev": "DualPipeV"}


def torch_step(model, schedule, tokens, micro_batches, mtp_weight=0.3, balance_weight=1e-4,
               balance_over="affinity", group=None):
    """One pass of torch's schedule ("1f1b", "zbv", "dualpipev") over tokens (B, T+1) -> Result.

    Gradients, loss terms and loads are those of `Pipeline.step`; what was executed is not recorded.
    """
    from torch.distributed.pipelining import PipelineStage
    from torch.distributed.pipelining.schedules import get_schedule_class
    if schedule not in SCHEDULES:
        raise UserError(f"schedule={schedule!r} is none that torch has here; choose one of "
                        f"{', '.join(SCHEDULES)}.")
    layout = "1f1b" if schedule == "1f1b" else "dualpipev"             # ZB-V has the same V
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    parts = split(tokens, micro_batches)
    B, T = parts[0][:, :-1].shape
    indices = stages_of(layout, ranks, rank)
    count = ranks * len(indices)
    x = torch.empty(B, T, model.config.hidden_size, device=tokens.device, requires_grad=True,
                    dtype=model.activation_dtype or model.norm.weight.dtype)           # (B, T, C)
    stages, modules = [], []
    for index in indices:
        module = WithLoss(Stage(model, index, count), micro_batches,
                          (mtp_weight, balance_weight, balance_over))
        modules.append(module)
        stages.append(PipelineStage(
            module, index, count, tokens.device, group=group,
            dw_builder=None if index < count - 1 or can_split(model) else leave_nothing,
            input_args=parts[0] if index == 0 else x,
            output_args=x.new_empty(1, requires_grad=True) if index == count - 1 else x))
    runner = get_schedule_class(SCHEDULES[schedule])(
        stages[0] if layout == "1f1b" else stages, micro_batches, scale_grads=False,
        loss_fn=lambda loss, _: loss.sum())
    runner.step(*([tokens] if rank == 0 else []), tokens=tokens, target=tokens)
    Shared(model, layout, group).add_gradients(mtp_weight)
    return Result(*total(model, sum(module.terms for module in modules), group), [], [])


def can_split(model):
    """Whether torch can split the backward pass of the last stage.

    It cannot if a weight is used at two places, one after the other: the first call for weight
    gradients frees the graph in between, which the next one needs. With several MTP modules this is
    the embedding, with a tied head the matrix of both.
    """
    return len(model.mtp) < 2 and not (len(model.mtp) and model.config.tie_word_embeddings)


def leave_nothing():
    """For a stage that cannot be split: I is its whole backward pass, and W does nothing."""
    return lambda: None


class WithLoss(nn.Module):
    """A stage with one output, as torch sends it on: (B, T, C), or the loss (1,) of the last."""

    def __init__(self, stage, micro_batches, weights):
        super().__init__()
        self.stage, self.micro_batches, self.weights = stage, micro_batches, weights
        self.terms = 0                           # sums over the micro-batches, (4,)

    def forward(self, x, tokens):
        """x (B, T, C), or anything in the first stage; tokens (B, T+1)."""
        x, terms = self.stage(self.stage.embed(tokens) if self.stage.first else x, tokens,
                              *self.weights)
        self.terms = self.terms + as_vector(terms) / self.micro_batches
        loss = terms.total / self.micro_batches
        return loss.view(1) if self.stage.last else AttachLoss.apply(x, loss)


class AttachLoss(torch.autograd.Function):
    """x as it is; but its backward pass also begins one at a loss (), as if that were added."""

    @staticmethod
    def forward(ctx, x, loss):
        """x (B, T, C), loss () -> x."""
        ctx.like = loss.new_ones(())
        return x.clone()                         # torch detaches its outputs, which no view allows

    @staticmethod
    def backward(ctx, grad):
        """The gradient of x as it comes; that of the loss is 1."""
        return grad, ctx.like
