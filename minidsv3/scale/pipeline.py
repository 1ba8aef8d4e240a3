"""A pipeline on several processes: each rank executes its list of the programme, as it is drawn.

    pipeline = Pipeline(model, "dualpipe", micro_batches=8)            on every rank, one model
    result = pipeline.step(tokens)               tokens (B, T+1) -> gradients, LossTerms, loads

After a step every loss term, and the gradient of every parameter that a rank holds, is that of
`model.loss` on the whole batch, up to the order of sums. Call it with zeroed gradients. The router
loads are of all micro-batches; give them to `model.update_router_bias`.

`split_backward.py` splits a backward pass. It finds the nodes of the graph where a weight joins the
path to the stage's input. I keeps the gradients that arrive there, and W begins again from them.
These nodes run twice; so does what lies between two uses of one weight, as of a head that is tied
to the embedding of an MTP module. On one core of a Zen 4, I and W together took 12 to 26 % longer
than B for a middle stage of preset tiny, and 65 % longer for the last. Blocks with `recompute` are
not supported, since W would run them again.

What is left out here: an overlapped pair is computed one chunk after the other, because only a GPU
could overlap it; receives do not begin early; messages need tags, which gloo has and NCCL has not;
each process has the whole model in memory, though it only uses its stages. `engine.py` runs the
same stages on torch's own schedules, without these limits but the last.
"""

import time
from typing import NamedTuple

import torch
import torch.distributed as dist

from ..command import UserError
from ..model.layers import at_least_float32
from ..model.objective import LossTerms
from .programme import Compute, Send, make_programme, message, number_of_stages, stages_of
from .split_backward import backward_input, backward_weights
from .stage import Shared, Stage
from .timeline import Cell


class Result(NamedTuple):
    """What a step gives, the same on all ranks but for the last two fields."""

    terms: LossTerms                 # means over the batch
    loads: torch.Tensor              # (layers, E) int64, tokens sent to each expert
    executed: list                   # Chunk, Send, Receive in the order in which they were done
    cells: list                      # of timeline.Cell, measured in seconds of a common clock


class Pipeline:
    """A model's stages on the ranks of a group (None: all), and the programme of a schedule."""

    def __init__(self, model, schedule, micro_batches, group=None):
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        if model.recompute:
            raise UserError("recompute=True does not go with a pipeline that splits its backward "
                            "passes; set model.recompute = False.")
        self.model, self.group, self.micro_batches = model, group, micro_batches
        self.programme = make_programme(schedule, ranks, micro_batches)[rank]
        count = number_of_stages(schedule, ranks)
        self.stages = {index: Stage(model, index, count)
                       for index in stages_of(schedule, ranks, rank)}
        self.shared = Shared(model, schedule, group)

    def step(self, tokens, mtp_weight=0.3, balance_weight=1e-4, balance_over="affinity"):
        """One pass over the whole batch: tokens (B, T+1), the same on all ranks -> Result."""
        parts = split(tokens, self.micro_batches)
        execution = Execution(self, parts, (mtp_weight, balance_weight, balance_over))
        for action in self.programme:
            execution.do(action)
        for sending, _ in execution.sends:
            sending.wait()
        self.shared.add_gradients(mtp_weight)
        return Result(*total(self.model, execution.terms, self.group), execution.executed,
                      execution.cells)


def split(tokens, micro_batches):
    """tokens (B, T+1) -> micro-batches of equally many sequences."""
    if len(tokens) % micro_batches:
        raise UserError(f"{len(tokens)} sequences do not divide into {micro_batches} micro-batches;"
                        f" choose a multiple of {micro_batches}.")
    return tokens.chunk(micro_batches)


def as_vector(terms):
    """LossTerms of a stage -> (4,), for sums that need no gradient."""
    return at_least_float32(torch.stack([*terms]).detach())


def total(model, terms, group):
    """Sums over the ranks: a rank's terms (4,) -> LossTerms, router loads (layers, E)."""
    loads = model.router_loads()                 # zeros in the layers that this rank does not have
    dist.all_reduce(terms, group=group)
    dist.all_reduce(loads, group=group)
    return LossTerms(*terms), loads


class Execution:
    """One step of one rank: the tensors that are alive between its actions."""

    def __init__(self, pipeline, parts, weights):
        self.stages, self.model, self.group = pipeline.stages, pipeline.model, pipeline.group
        self.parts, self.weights = parts, weights
        self.mail = {}                           # {chunk: its input}, received or to be sent
        self.alive = {}                          # {(stage, micro-batch): what F keeps for B}
        self.open = {}                           # {(stage, micro-batch): what I keeps for W}
        self.sends = []                          # (transport, tensor): kept until it has arrived
        self.executed, self.cells = [], []
        self.terms = 0                           # means over the micro-batches so far, (4,)

    def do(self, action):
        """Execute one action of the programme."""
        if isinstance(action, Compute):
            start = time.monotonic()
            for chunk in action.chunks:
                {"F": self.forward, "B": self.backward, "I": self.input_gradient,
                 "W": self.weight_gradient}[chunk.kind](chunk)
                self.executed.append(chunk)
            self.cells.append(Cell(dist.get_rank(self.group), *action, start, time.monotonic()))
        else:
            (self.send if isinstance(action, Send) else self.receive)(action)
            self.executed.append(action)

    # ------------------------------------------------------------------------------ computing

    def forward(self, chunk):
        """Run the stage; keep its graph for the backward pass."""
        stage, tokens = self.stages[chunk.stage], self.parts[chunk.micro_batch]
        entry = stage.embed(tokens) if stage.first else self.mail.pop(chunk)           # (B, T, C)
        x = entry.detach().requires_grad_()      # the graph of a stage begins here
        out, terms = stage(x, tokens, *self.weights)
        self.terms = self.terms + as_vector(terms) / len(self.parts)
        if not stage.last:
            self.mail[chunk._replace(stage=chunk.stage + 1)] = out.detach()
        self.alive[chunk[1:]] = entry, x, out, terms.total

    def roots(self, chunk):
        """Where the backward pass of a stage begins: tensors, their gradients; and its inputs.

        They are the output, whose gradient the next stage has sent, and the stage's own loss.
        """
        entry, x, out, loss = self.alive.pop(chunk[1:])
        roots = []
        if loss.requires_grad:                   # without sparse blocks it is a constant 0
            roots.append((loss, torch.full_like(loss, 1 / len(self.parts))))
        if not self.stages[chunk.stage].last:
            roots.append((out, self.mail.pop(message(chunk))))
        return *zip(*roots), entry, x

    def backward(self, chunk):
        """The whole backward pass of a stage: both gradients."""
        roots, gradients, entry, x = self.roots(chunk)
        torch.autograd.backward(roots, gradients)
        self.pass_on(chunk, x)
        self.finish(chunk, entry, x)

    def input_gradient(self, chunk):
        """Only what the stage before waits for."""
        roots, gradients, entry, x = self.roots(chunk)
        weights = self.stages[chunk.stage].parameters()
        groups = backward_input(roots, gradients, x, weights)
        self.open[chunk[1:]] = groups, entry, x
        self.pass_on(chunk, x)

    def weight_gradient(self, chunk):
        """The rest: the products that give the gradients of the weights."""
        groups, entry, x = self.open.pop(chunk[1:])
        backward_weights(groups)
        self.finish(chunk, entry, x)

    def pass_on(self, chunk, x):
        """The gradient of the stage's input goes to the stage before."""
        if chunk.stage > 0:
            self.mail[message(chunk)._replace(stage=chunk.stage - 1)] = x.grad

    def finish(self, chunk, entry, x):
        """In the first stage, the gradient of the input goes on to the embedding."""
        if chunk.stage == 0:
            entry.backward(x.grad)

    # -------------------------------------------------------------------------- communicating

    def send(self, action):
        """Begin to send, and go on at once: who waited here could make two ranks wait forever."""
        tensor = self.mail.pop(action.chunk).contiguous()
        self.sends = [pair for pair in self.sends if not pair[0].is_completed()]
        self.sends.append((dist.isend(tensor, group=self.group, group_dst=action.rank,
                                      tag=self.tag(action.chunk)), tensor))

    def receive(self, action):
        """Wait for the input of the next chunk: an activation or its gradient, (B, T, C)."""
        B, T = self.parts[0][:, :-1].shape
        weight = self.model.embed_tokens.weight
        tensor = torch.empty(B, T, weight.size(1), device=weight.device,
                             dtype=self.model.activation_dtype or weight.dtype)
        dist.recv(tensor, group=self.group, group_src=action.rank, tag=self.tag(action.chunk))
        self.mail[action.chunk] = tensor

    def tag(self, chunk):
        """A number for each message; with it, the order of two messages does not matter."""
        return 2 * (chunk.stage * len(self.parts) + chunk.micro_batch) + (chunk.kind == "B")
