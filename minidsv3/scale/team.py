"""The processes of one run, started by torchrun.

    torchrun --nproc-per-node 4 train_tiny.py --parallel ep=2,fsdp=2

Each process reads its own part of every batch. The first one writes the files and speaks.
"""

import logging
import os
import re
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import NamedTuple

import torch
import torch.distributed as dist

from ..command import UserError
from ..device import backends, of_process
from ..train.recipe import batch_sizes
from .parallel import finish, make_mesh, parallelize


class Plan(NamedTuple):
    """How many processes share what; ep * fsdp processes in all."""

    ep: int = 1                                  # divide the experts
    fsdp: int = 1                                # groups of ep that divide everything else too

    @property
    def processes(self):
        """All processes of the run."""
        return self.ep * self.fsdp

    @classmethod
    def read(cls, text):
        """The plan in "ep=2,fsdp=4"; UserError if it is none."""
        if not re.fullmatch(r"((ep|fsdp)=[1-9]\d{0,5})(,(ep|fsdp)=[1-9]\d{0,5})*", text):
            raise UserError(f"--parallel {text!r} is no plan; write for instance ep=2,fsdp=4, with "
                            "numbers of 1 or more.")
        sizes = [part.split("=") for part in text.split(",")]
        if len(dict(sizes)) < len(sizes):
            raise UserError(f"--parallel {text!r} gives a size twice; give ep and fsdp once each.")
        return cls(**{name: int(size) for name, size in sizes})

    def __str__(self):
        return f"ep={self.ep},fsdp={self.fsdp}"

    def check(self, model_config, recipe):
        """UserError if this model or recipe cannot be divided over the processes."""
        experts, count = model_config.n_routed_experts, self.processes
        if experts % self.ep:
            raise UserError(f"ep={self.ep} does not divide the {experts} routed experts; choose "
                            f"{smaller_divisors(experts, self.ep)}.")
        for size in sorted({*batch_sizes(recipe)}):
            if size % count:
                most = -(-recipe.batch_size // count) * count
                change = "" if most == recipe.batch_size else f" --set batch_size={most}"
                raise UserError(f"a step of {size} sequences cannot be divided over {count} "
                                f"processes; add --set batch_start={most}{change}.")


def smaller_divisors(number, limit):
    """The divisors of a number below a limit, as text: "1, 2 or 4"."""
    fit = [str(n) for n in range(1, min(number, limit) + 1) if number % n == 0]
    return f"{', '.join(fit[:-1])} or {fit[-1]}" if len(fit) > 1 else fit[0]


def join(text, device, command):
    """Connect this process with the others that torchrun has started -> Team, its device.

    text: a plan, or None for FSDP over all. Raises UserError with the command to start it if the
    number of processes is another.
    """
    started = int(os.environ.get("WORLD_SIZE", 0))
    plan = Plan.read(text) if text else Plan(fsdp=started)
    if plan.processes != started:
        found = f"torchrun started {started}" if started else "this is a single one"
        raise UserError(f"--parallel {plan} is a plan for {plan.processes} processes, and {found}; "
                        f"start it with: torchrun --nproc-per-node {plan.processes} {command}")
    device = of_process(device, int(os.environ["LOCAL_RANK"]))
    # It warns that stacks of experts take two gathers; they do, once, at the end of a run.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    dist.init_process_group(backends(device))
    return Team(plan, device), device


@contextmanager
def only_first_speaks():
    """Let all processes but the first print nothing.

    A UserError is one of all processes, so the others end with its code and leave the line to the
    first; other errors leave this context.
    """
    if not int(os.environ.get("RANK", 0)):
        yield
        return
    with (open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere),
          redirect_stderr(nowhere)):
        try:
            yield
        except UserError:
            raise SystemExit(2) from None


@contextmanager
def losing_a_process_is_one_line():
    """Turn the error of a broken connection into a UserError."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and "gloo" not in text and "peer" not in text:
            raise
        raise UserError("another process of this run has ended, so this one ends too "
                        f"({text.splitlines()[0][:100]}); the same command with --resume goes on "
                        "from the last checkpoint.") from None


class Team:
    """The processes of a run; `train/team.py` has the same for a single one."""

    def __init__(self, plan, device):
        self.plan, self.mesh = plan, make_mesh(plan.fsdp, plan.ep, device.type)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.first = self.rank == 0
        self.launcher = f"torchrun --nproc-per-node {self.size}"       # on one machine

    def __str__(self):
        return f"{self.size} processes, {self.plan}; "

    def check(self, model_config, recipe):
        """UserError if they cannot be divided over the processes."""
        self.plan.check(model_config, recipe)

    def spread(self, model):
        """The model, divided over all processes before its optimisers are made."""
        return parallelize(model, self.mesh)

    def finish(self, optimizers):
        """The optimisers, for a divided model."""
        return finish(optimizers)

    def own(self, tokens):
        """The rows of a batch (B, T+1) that this process trains on."""
        return tokens.chunk(self.size)[self.rank]

    def any(self, flag):
        """Whether the flag is set in any process."""
        flag = torch.tensor(int(flag))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)
