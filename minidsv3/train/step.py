"""One optimiser step: micro-batches, clipping, schedules, optimisers, and last the router bias.

    figures = step(tokens, progress)             tokens (B, T+1) -> one tensor, still on the device
    step.read(figures)                           the same as numbers, once all work is done

The host queues a whole step on an accelerator and waits once, when the figures are read. So a loss
that is not finite is noticed only after the step, and the caller must not keep these weights.

With several processes, each takes its own part of the batch. FSDP, which holds the model there,
averages the gradients; this module averages the figures and sums the router loads.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist

from ..device import local, send
from ..files import first_line
from ..kernels.grouped import keep_out_of_graphs
from ..model.layers import at_least_float32
from .recipe import batch_sizes, gamma_at, learning_rate_factor, mtp_weight_at


class Diverged(FloatingPointError):
    """The loss or its gradient is no longer finite."""


class Figures(NamedTuple):
    """The figures of one step; losses are means over its tokens, and all but total unweighted."""

    total: float
    next_token: float                            # [nats]
    mtp: float                                   # [nats]
    balance: float
    norm: float                                  # of the whole gradient, before clipping
    loads: torch.Tensor                          # (layers, E) int64, tokens sent to each expert


class Step:
    """The steps of one run: a model, its optimisers, and the recipe.

    group: the processes that train the same layers, None for all; without torch.distributed this
    process alone.
    """

    def __init__(self, model, optimizers, recipe, group=None):
        self.model, self.optimizers, self.recipe, self.group = model, optimizers, recipe, group
        self.loss = model.loss                   # or a compiled form of it

    def __call__(self, tokens, progress, number=0):
        """Step `number`, from 0 on, at a share of the run, from tokens (B, T+1).

        -> (5 + layers*E,), not read.
        """
        self.set_rates(progress, number)
        terms = self.gradients(tokens, mtp_weight_at(self.recipe, progress, number))   # (4,)
        norm = self.clip_gradients()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loads = self.model.router_loads()                              # (layers, E)
        if several():
            dist.all_reduce(terms, group=self.group)
            terms /= dist.get_world_size(self.group)
            dist.all_reduce(loads, group=self.group)
        self.model.update_router_bias(gamma_at(self.recipe, progress), loads)
        # All in one tensor, which takes one read; float32 counts exactly up to 16 million.
        return torch.cat([terms, norm[None], loads.flatten().to(terms.dtype)])

    def set_rates(self, progress, number):
        """The schedule's learning rate, for every group of every optimiser.

        A group that moves in every n-th step only has sqrt(n) times the rate there: the mean of n
        gradients is less noisy, so it is worth more than one step and less than n.
        """
        factor = learning_rate_factor(self.recipe, progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                every = group.get("every", 1)
                moves = (number + 1) % every == 0
                group["lr"] = group["peak"] * factor * every**0.5 if moves else 0.0

    def gradients(self, tokens, mtp_weight):
        """Accumulate over all micro-batches -> mean (total, next_token, mtp, balance), (4,)."""
        means = []
        for part in tokens.split(self.recipe.micro_batch):
            share = len(part) / len(tokens)
            terms = self.loss(part, mtp_weight, self.recipe.balance_weight,
                              self.recipe.balance_over)
            (terms.total * share).backward()
            means.append(share * at_least_float32(torch.stack(terms).detach()))
        return sum(means)

    def rehearse(self, tokens):
        """Compute the gradients of tokens (B, T+1) and forget them, and the loads counted."""
        self.gradients(tokens, self.recipe.mtp_weight)
        self.model.zero_grad(set_to_none=True)
        self.model.update_router_bias(0.0)

    def clip_gradients(self):
        """Scale the gradient down to the recipe's norm -> its norm before, ().

        Every process holds a part of it, and no number is held twice.
        """
        gradients = [local(parameter.grad) for parameter in self.model.parameters()
                     if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if several():
            square = norm.square()
            dist.all_reduce(square, group=self.group)
            norm = square.sqrt()
        # What torch's clip_grad_norm_ does, which takes no shards of different meshes.
        factor = (self.recipe.clip_norm / (norm + 1e-6)).clamp(max=1)
        torch._foreach_mul_(gradients, factor)
        return norm

    def read(self, figures):
        """The one read of a step: what it returned -> Figures.

        Raises Diverged if the loss or its gradient is not finite; then the weights may not be
        finite either.
        """
        values, shape = figures.cpu(), self.model.router_loads().shape
        figures = Figures(*values[:5].tolist(), values[5:].long().view(shape))
        if not math.isfinite(figures.total + figures.norm):
            raise Diverged(f"the loss is {figures.total} and its gradient {figures.norm}")
        return figures

    def compile(self, tokens):
        """torch.compile the loss, tried on tokens (B, T+1); if it fails or is wrong, go on without.

        In bfloat16 some tokens go to other experts, so the gradients are not exactly equal.
        """
        try:
            keep_out_of_graphs()
            compiled = torch.compile(self.model.loss)
            right, found = self.trial(self.model.loss, tokens), self.trial(compiled, tokens)
            torch._foreach_sub_(found, right)
            norm = torch.nn.utils.get_total_norm
            wrong = float(norm(found) / norm(right))
            if not wrong <= 0.3:                 # nan is wrong too
                raise ArithmeticError(f"the gradient is off by {wrong:.0%}")
            self.loss = compiled
        except Exception as error:               # any compiler error; eager mode is always right
            print(f"torch.compile failed ({type(error).__name__}: {first_line(error)}); going on "
                  "without it.")

    def trial(self, loss, tokens):
        """The gradients of a loss function, which leaves no gradients and no loads behind."""
        try:
            loss(tokens).total.backward()
            return [parameter.grad for parameter in self.model.parameters()
                    if parameter.grad is not None]
        finally:
            self.model.zero_grad(set_to_none=True)
            self.model.update_router_bias(0.0)


def all_steps(step, batches):
    """Train by the recipe of a Step from its beginning to its end; yields the Figures of each step.

    For studies: nothing is saved, and a loss that is not finite raises Diverged.
    """
    sizes, done = batch_sizes(step.recipe), 0
    for number, size in enumerate(sizes):
        tokens = send(batches.take(done, size), step.model.norm.weight.device)     # (B, T+1)
        done += size
        yield step.read(step(tokens, done / sum(sizes), number))


def several():
    """Whether torch.distributed connects this process with others."""
    return dist.is_available() and dist.is_initialized()
