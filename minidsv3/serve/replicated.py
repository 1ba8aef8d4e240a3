"""A layer whose placed copies of experts serve tokens on several processes (report, section 3.4).

    serve_replicated(layer, route, slots)        layer: a finished MoE layer; slots: of one layer

The processes of the route hold equally many slots of a placement (`placement.py`), each with the
weights of its expert. Token n takes copy n mod c of an expert with c copies, so that copies share
the load evenly. The output is that of the plain layer, whichever copy serves a token, up to the
order of sums. For serving only: copies would need the sum of their gradients.
"""

import torch
from torch import nn

from ..model.moe import Routing
from ..scale.expert_parallel import SpreadExperts


class ReplicatedExperts(SpreadExperts):
    """The copies that this process hosts, for the tokens of all."""

    def __init__(self, experts, route, slots):
        """slots (R,): the expert in each slot of all processes."""
        every = nn.Module()                      # the experts of all slots, as if they were R
        for name, weight in experts.named_parameters():
            setattr(every, name, nn.Parameter(weight.detach()[slots], requires_grad=False))
        every.swiglu = experts.swiglu
        super().__init__(every, route)
        self.requires_grad_(False)
        count = len(experts.gate_up_proj)
        self.copies = torch.bincount(slots, minlength=count)           # (E,)
        self.slot_of = torch.full((count, int(self.copies.max())), -1)
        for expert in range(count):
            found = (slots == expert).nonzero()[:, 0]
            self.slot_of[expert, :len(found)] = found

    def dispatch(self, x, routing, multiple=1):
        """As for plain experts, after each token has chosen a copy of each of its experts."""
        chosen = routing.experts.flatten(0, -2)                        # (N, K)
        turn = torch.arange(len(chosen), device=chosen.device)[:, None]
        copies, slot_of = (t.to(chosen.device) for t in (self.copies, self.slot_of))
        slots = slot_of[chosen, turn % copies[chosen]]                 # (N, K)
        return super().dispatch(x, Routing(routing.affinity, slots), multiple)


def serve_replicated(layer, route, slots):
    """Let a finished MoE layer use placed copies of its experts -> the same layer.

    Raises ValueError if the slots do not divide over the processes, or leave out an expert.
    """
    slots = torch.as_tensor(slots)
    missing = sorted(set(range(len(layer.experts.gate_up_proj))) - set(slots.tolist()))
    if missing:
        raise ValueError(f"expert {missing[0]} has no slot; each expert needs one.")
    layer.experts = ReplicatedExperts(layer.experts, route, slots)
    return layer
