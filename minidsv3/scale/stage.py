"""A model cut into the stages of a pipeline, and what several ranks hold of it.

    stage = Stage(model, index, count)       consecutive blocks; the model itself is unchanged
    x, terms = stage(x, tokens)              x (B, T, C), tokens (B, T+1) -> x (B, T, C), LossTerms

The first stage also has the embedding; the last one has final norm, head and MTP modules. A stage
gives the loss terms that arise in it. Summed over all stages they are those of `model.loss`.

The MTP modules need the embedding too. Where first and last stage are on one rank, as in DualPipe,
they share it physically (report, section 3.2.1). Elsewhere two ranks hold it, each with a part of
its gradient, and `Shared` adds the parts. It does the same for the second copy of each stage in
DualPipe.
"""

import torch
import torch.distributed as dist
from torch import nn

from ..command import UserError
from ..model.moe import Router
from ..model.objective import balance_losses, combine, mtp_losses, next_token_loss
from ..model.rope import rope_table
from .programme import number_of_stages, stages_of


class Stage(nn.Module):
    """Blocks of a finished model. Its parameters are the model's own, not copies."""

    def __init__(self, model, index, count):
        super().__init__()
        depth = len(model.layers)
        if depth < count:
            raise UserError(f"{count} stages need a block each, but the model has {depth}; choose "
                            "fewer ranks or more layers.")
        self.first, self.last = index == 0, index == count - 1
        self.whole = (model,)            # in a tuple, so that its parameters are not the stage's
        # If blocks do not divide, the last stages have fewer: head and MTP are there.
        sizes = [depth // count + (i < depth % count) for i in range(count)]
        start = sum(sizes[:index])
        self.layers = nn.ModuleList(model.layers[start:start + sizes[index]])
        if self.first or self.last and len(model.mtp):
            self.embed_tokens = model.embed_tokens
        if self.last:
            self.norm, self.lm_head, self.mtp = model.norm, model.lm_head, model.mtp
        self.routers = [module for module in self.modules() if isinstance(module, Router)]

    def embed(self, tokens):
        """tokens (B, T+1) -> the input of the first block (B, T, C)."""
        return self.whole[0].embed(tokens[:, :-1])

    def forward(self, x, tokens, mtp_weight=0.3, balance_weight=1e-4, balance_over="affinity"):
        """x (B, T, C), tokens (B, T+1) -> x (B, T, C), the LossTerms of this stage alone.

        mtp_weight 0 leaves the MTP modules out. In training, the routers count their loads.
        """
        model, inputs, targets = self.whole[0], tokens[:, :-1], tokens[:, 1:]          # (B, T)
        rope = rope_table(model.config, torch.arange(x.size(1), device=x.device))
        x, routings = model.through(self.layers, x, rope)              # (B, T, C)
        next_token, mtp = x.new_zeros(()), []
        if self.last:
            hidden, head = model.norm(x), model.lm_head.weight         # (B, T, C), (V, C)
            next_token = next_token_loss(hidden, head, targets)
            states, mtp_routings = model.mtp_states(hidden, inputs) if mtp_weight else ([], [])
            mtp = mtp_losses(states, head, targets)
            routings = routings + mtp_routings
        if self.training:
            for router, routing in zip(self.routers, routings):        # perhaps without MTP's
                router.load += routing.load
        balance = balance_losses(routings, balance_over)
        return x, combine(next_token, mtp, balance, mtp_weight, balance_weight)


def holders(model, schedule, ranks):
    """{name of a parameter: the ranks that hold it, one or two}; a tied matrix has one name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found, count = {name: set() for name in names.values()}, number_of_stages(schedule, ranks)
    for rank in range(ranks):
        for index in stages_of(schedule, ranks, rank):
            for parameter in Stage(model, index, count).parameters():
                found[names[parameter]].add(rank)
    return {name: sorted(owners) for name, owners in found.items()}


class Shared:
    """The parameters that this rank holds together with another one."""

    def __init__(self, model, schedule, group=None):
        rank, self.group = dist.get_rank(group), group
        owners = holders(model, schedule, dist.get_world_size(group))
        self.partners = [(parameter, next(other for other in owners[name] if other != rank))
                         for name, parameter in model.named_parameters()
                         if rank in owners[name] and len(owners[name]) == 2]
        self.of_mtp = set(model.mtp.parameters())

    def add_gradients(self, mtp_weight):
        """Give both holders the sum of their gradients, equal to the last bit.

        At mtp_weight 0 the MTP modules have no gradients, as after `model.loss`.
        """
        for parameter, other in self.partners:
            if parameter in self.of_mtp and not mtp_weight:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            theirs = torch.empty_like(parameter.grad)
            sending = dist.isend(parameter.grad.contiguous(), group=self.group, group_dst=other)
            dist.recv(theirs, group=self.group, group_src=other)
            sending.wait()                       # before the sum overwrites what is sent
            parameter.grad += theirs
