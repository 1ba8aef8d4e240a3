"""One optimiser step: micro-batches, clipping, schedules, optimisers, and last the router bias.

    figures = step(tokens, progress)             tokens (B, T+1) -> one tensor, still on the device
    step.read(figures)                           the same as numbers, once all work is done

An accelerator is given the work of a whole step and is waited for once, when the figures are read.
So a loss that is not finite is noticed after the step: whoever drives it must not keep these
weights.
"""

import math
from typing import NamedTuple

import torch

from .recipe import gamma_at, learning_rate_factor, mtp_weight_at


class Figures(NamedTuple):
    """What became of a step; the losses are means over its tokens, unweighted but for the total."""

    total: float
    next_token: float                            # [nats]
    mtp: float                                   # [nats]
    balance: float
    norm: float                                  # of the whole gradient, before clipping
    loads: torch.Tensor                          # (layers, E) int64, tokens sent to each expert

    @property
    def is_finite(self):
        """Whether the step was sound; after one that was not, weights may be no numbers."""
        return math.isfinite(self.total + self.norm)


class Step:
    """The steps of one run: a model, its optimisers, and the recipe that says how."""

    def __init__(self, model, optimizers, recipe):
        self.model, self.optimizers, self.recipe = model, optimizers, recipe
        self.loss = model.loss                   # or a compiled form of it

    def __call__(self, tokens, progress):
        """One step from tokens (B, T+1), at a share of the run -> (5 + layers*E,), not read."""
        self.set_rates(progress)
        terms = self.gradients(tokens, mtp_weight_at(self.recipe, progress))   # (4,)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loads = self.model.update_router_bias(gamma_at(self.recipe, progress))  # (layers, E)
        # In one tensor, so that one read brings all; float32 counts exactly up to 16 million.
        return torch.cat([terms, norm[None], loads.flatten().float()])

    def set_rates(self, progress):
        """The schedule's learning rate, for every group of every optimiser."""
        factor = learning_rate_factor(self.recipe, progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor

    def gradients(self, tokens, mtp_weight):
        """Accumulate over all micro-batches -> mean (total, next_token, mtp, balance), (4,)."""
        means = torch.zeros(4, device=tokens.device)
        for part in tokens.split(self.recipe.micro_batch):
            share = len(part) / len(tokens)
            terms = self.loss(part, mtp_weight, self.recipe.balance_weight,
                              self.recipe.balance_over)
            (terms.total * share).backward()
            means += share * torch.stack(terms).detach().float()
        return means

    def read(self, figures):
        """The one read of a step: what it returned -> Figures."""
        values, experts = figures.cpu(), self.model.config.n_routed_experts
        return Figures(*values[:5].tolist(), values[5:].long().unflatten(0, (-1, experts)))
