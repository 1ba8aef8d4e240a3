"""Experts on several processes: tokens travel to their experts and back (report, section 3.2.2).

    spread(layer, one_hop(group))                          layer: a finished MoE layer
    spread(layer, two_hops(across, inside))                the same in nodes of several GPUs

Process r of P keeps E/P experts, numbers r*E/P and following, and has its own tokens:

    dispatch    a copy of each token goes to every process that has one of its K experts
    experts     as on one process, for the copies that arrived
    combine     the weighted sums return, and are added up by the process that has the token

A copy travels once to each process, not once to each expert. In two hops it travels once to each
node, to the GPU with the sender's own index there, and this GPU passes it on inside the node. The
weighted sums return the same way and are added up on the way. So the slow network between nodes
carries a token at most `topk_group` times if each group of experts is a node.

The formats on the way are those of the report: dispatch in FP8 with scales of powers of two, and
combine in bfloat16, both in the forward and in the backward pass; or the dtype of the activations.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist

from ..device import local
from ..fp8 import TILE, dequantize, quantize
from ..kernels.grouped import Runs, assign_slots
from ..model.experts import Experts


class Link:
    """A process group that rows travel over, and the bytes that this process has sent.

    per_node: consecutive ranks that form a node; None: all are one node.
    """

    def __init__(self, group, per_node=None):
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        per_node = per_node or dist.get_world_size()
        nodes = [rank // per_node for rank in dist.get_process_group_ranks(group)]
        self.far = [node != nodes[self.rank] for node in nodes]
        self.across = self.inside = 0            # bytes to other nodes, to others of the own node

    def exchange(self, x, sent, received):
        """Rows x (S, ...), sent[p] of them to process p -> rows (R, ...), received[p] from p."""
        arrived = x.new_empty(sum(received), *x.shape[1:])
        dist.all_to_all_single(arrived, x.contiguous(), received, sent, group=self.group)
        row = x[:1].numel() * x.element_size()
        for process, count in enumerate(sent):
            if self.far[process]:
                self.across += count * row
            elif process != self.rank:
                self.inside += count * row
        return arrived


# ---- formats on the way ----

def as_it_is(x, send):
    """Send rows in their own dtype; send moves a tensor of rows."""
    return send(x)


def in_bfloat16(x, send):
    """Send rows in bfloat16."""
    return send(x.bfloat16()).to(x.dtype)


def in_fp8(x, send):
    """Send rows as E4M3 codes, with a scale for every 128 channels that is a power of two."""
    codes, scale = quantize(x, TILE, power_of_two=True)
    codes = send(codes.view(torch.uint8)).view(codes.dtype)            # (R, C)
    return dequantize(codes, send(scale), TILE).to(x.dtype)


class Exchange(torch.autograd.Function):
    """Rows to other processes in one format, and their gradients back in another."""

    @staticmethod
    def forward(ctx, x, link, sent, received, there, back):
        ctx.link, ctx.sent, ctx.received, ctx.back = link, sent, received, back
        return there(x, lambda rows: link.exchange(rows, sent, received))

    @staticmethod
    def backward(ctx, dy):
        link, sent, received = ctx.link, ctx.sent, ctx.received
        dx = ctx.back(dy, lambda rows: link.exchange(rows, received, sent))
        return dx, None, None, None, None, None


class Hop:
    """Copies of rows to the processes that want them, and sums on the way back.

    wanted (M, P) bool: process p of the link gets a copy of row m.
    """

    def __init__(self, wanted, link):
        self.link, self.rows = link, len(wanted)
        self.source = wanted.T.nonzero()[:, 1]                         # (S,)  by process
        sent = wanted.sum(dim=0)                                       # (P,)
        received = link.exchange(sent, [1] * link.size, [1] * link.size)
        self.sent, self.received = torch.stack([sent, received]).tolist()

    def there(self, x, there=as_it_is, back=as_it_is):
        """x (M, ...) -> the copies that arrive here, (R, ...), by the process they come from."""
        x = x.index_select(0, self.source)                             # (S, ...)
        return Exchange.apply(x, self.link, self.sent, self.received, there, back)

    def back(self, y, there=as_it_is, back=as_it_is):
        """Values for those copies, y (R, C) -> their sums over the copies of each row, (M, C)."""
        y = Exchange.apply(y, self.link, self.received, self.sent, there, back)
        return y.new_zeros(self.rows, y.size(1)).index_add(0, self.source, y)


class Route(NamedTuple):
    """How a copy gets to the process of an expert: over these links, one after the other.

    via[i][p] is the process of links[i] that passes on copies for process p; links[i].size: none.
    """

    links: list
    via: list
    rank: int                                    # of this process among those with experts
    size: int


def one_hop(group, per_node=None):
    """The direct way; per_node is only for counting bytes across nodes."""
    link = Link(group, per_node)
    return Route([link], [torch.arange(link.size)], link.rank, link.size)


def two_hops(across, inside, per_node=None):
    """First to the process of the same index on each node, then inside the node (section 3.2.2).

    across: the processes of one index on all nodes; inside: those of one node. The experts are in
    the order of the nodes.
    """
    node, index = Link(across, per_node), Link(inside, per_node)
    processes = torch.arange(node.size * index.size)
    to_node = processes // index.size                                  # (P,)
    to_index = (processes % index.size).masked_fill(to_node != node.rank, index.size)
    return Route([node, index], [to_node, to_index], node.rank * index.size + index.rank,
                 len(processes))


class Journey(NamedTuple):
    """Where the copies of tokens went, so that the results find their way back."""

    hops: list
    arrived: torch.Tensor                        # (A,)  the row that a copy for an expert is of
    choice: torch.Tensor                         # (A,)  as which of its K choices
    slots: torch.Tensor                          # (A,)  its row among those sorted by expert


class Share(torch.autograd.Function):
    """A weight as it is; only a share of its gradient."""

    @staticmethod
    def forward(ctx, weight, share):
        ctx.share = share
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient):
        return gradient if ctx.share == 1 else gradient * ctx.share, None


class SpreadExperts(Experts):
    """The experts of this process, for the tokens of all.

    Their gradients are sums over all processes, times `share`: 1, or 1/P where the gradients of all
    other parameters are means over the processes.
    """

    def __init__(self, experts, route, fp8=False):
        torch.nn.Module.__init__(self)
        self.share = 1
        count = len(experts.gate_up_proj)
        if count % route.size:
            raise ValueError(f"{count} routed experts cannot be divided over {route.size} "
                             "processes; choose a number of processes that divides them.")
        self.route, self.swiglu, self.count = route, experts.swiglu, count // route.size
        self.first = route.rank * self.count     # the number of the first expert here
        self.to_experts, self.to_tokens = (in_fp8, in_bfloat16) if fp8 else (as_it_is, as_it_is)
        for name, whole in experts.named_parameters():
            own = whole.detach()[self.first:self.first + self.count].clone()
            setattr(self, name, torch.nn.Parameter(own))

    def dispatch(self, x, routing, multiple=1):
        """Copies of all tokens for the experts here, sorted by expert: rows (M, C), Journey, Runs.

        The rows of an expert are in the order of the tokens, whatever way they came.
        """
        chosen = routing.experts.flatten(0, -2)                        # (N, K)
        number = (self.route.rank << 32) + torch.arange(len(x), device=x.device)
        chosen = torch.cat([chosen, number[:, None]], dim=1)           # (N, K+1)
        hops = []
        for link, via in zip(self.route.links, self.route.via, strict=True):
            over = via.to(x.device)[chosen[:, :-1] // self.count]      # (M, K)
            wanted = torch.zeros(len(x), link.size + 1, dtype=torch.bool, device=x.device)
            hop = Hop(wanted.scatter_(1, over, True)[:, :-1], link)
            x, chosen = hop.there(x, self.to_experts, self.to_tokens), hop.there(chosen)
            hops.append(hop)
        order = chosen[:, -1].argsort()                                # (R,)
        experts = chosen[order, :-1] - self.first                      # (R, K)
        place, choice = ((experts >= 0) & (experts < self.count)).nonzero(as_tuple=True)   # (A,)
        experts, arrived = experts[place, choice], order[place]
        load = experts.bincount(minlength=self.count)
        slots, counts = assign_slots(experts, load, multiple)
        rows = arrived.new_zeros(int(counts.sum()))                    # (M,)  padding rows: row 0
        rows[slots] = arrived
        return x.index_select(0, rows), Journey(hops, arrived, choice, slots), Runs(counts)

    def feed_forward(self, rows, runs):
        """rows (M, C) sorted by expert, Runs -> (M, C)."""
        gate_up_proj, down_proj = (Share.apply(local(weight), self.share)
                                   for weight in (self.gate_up_proj, self.down_proj))
        return self.swiglu(rows, gate_up_proj, down_proj, runs)

    def combine(self, rows, journey, weights):
        """Back to the tokens: rows (M, C), their Journey, weights (N, K) -> (N, C).  eq. 12"""
        for hop in journey.hops:
            weights = hop.there(weights)                               # (R, K)
        rows = rows.index_select(0, journey.slots)                     # (A, C)
        own = weights[journey.arrived, journey.choice].to(rows.dtype)  # (A,)
        y = rows.new_zeros(len(weights), rows.size(1))
        y = y.index_add(0, journey.arrived, own[:, None] * rows)       # (R, C)
        for hop in reversed(journey.hops):
            y = hop.back(y, self.to_tokens, self.to_experts)
        return y                                                       # (N, C)


def spread(layer, route, fp8=False):
    """Let a finished MoE layer keep only this process's experts and use those of the others.

    fp8: dispatch in FP8 and combine in bfloat16. Raises ValueError if the experts cannot be divided
    evenly.
    """
    layer.experts = SpreadExperts(layer.experts, route, fp8)
    return layer
