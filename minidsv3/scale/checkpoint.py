"""The run folder of several processes, and its checkpoints, which any number of them can read.

    state/step-00000200/     torch's distributed checkpoint: each process writes its own part
        run.json             step, recipe, model, text: what is known before the model is made
        .metadata            written last: the checkpoint is complete

While a checkpoint is written, training goes on. The one before is removed only when the new one is
complete, so that a kill at any moment leaves one. The first process alone writes everything else.
At the end of a run the weights are gathered and written in the released format, as by a single
process. Beside its own part, a process then holds one whole tensor, and the first one all of them.
"""

import json
import os
import shutil

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from .. import hf
from ..command import UserError, command_line, script
from ..files import SHARED, first_line, write_text
from ..train.checkpoint import STATE, RunFolder

TENSORS = ("model", "average", "optimizers", "rng")                    # of a Trainer's state


class SharedFolder(RunFolder):
    """The files of one run of several processes, all of which call every method."""

    def __init__(self, path, resume=False, overwrite=False):
        self.first, self.under_way = dist.get_rank() == 0, None
        # Of its own, because a checkpoint is written while the training communicates.
        self.group = dist.new_group(backend="gloo")
        super().__init__(path, resume, overwrite)
        dist.barrier()                           # nobody writes while another still looks

    def require_state(self):
        """UserError if there is no complete checkpoint."""
        if self.state_path.is_file():
            raise UserError(f"the run in {self.path} was made by a single process; go on with "
                            + command_line("python", script("train_tiny.py"), "--out", self.path,
                                           "--resume"))
        if not self.complete_steps():
            raise UserError(f"nothing to resume: {self.path / SHARED} holds no complete "
                            "checkpoint; leave out --resume.")

    def complete_steps(self):
        """The folders of complete checkpoints, the newest last."""
        return sorted(file.parent for file in (self.path / SHARED).glob("step-*/.metadata"))

    # ---- writing ----

    def start(self, first_state=None):
        """Make the folder; a new run gives its first state, which then replaces an older run."""
        if self.first:
            super().start()
        dist.barrier()
        if first_state is None:
            return
        self.save_state(first_state)
        self.wait()
        self.begun = True
        if self.first:
            self.remove_old_run()
            self.state_path.unlink(missing_ok=True)

    def save_state(self, state):
        """Begin to write a checkpoint; wait for the one before it."""
        self.wait()
        folder = self.path / SHARED / f"step-{state['step']:08}"
        if (folder / ".metadata").exists():
            if self.begun:                       # it is this very state
                return
            folder = folder.with_name(folder.name + ".new")            # the old run's one is kept
        dist.barrier()                           # all have looked
        if self.first:
            shutil.rmtree(folder, ignore_errors=True)          # what a killed run left half-written
            folder.mkdir(parents=True)
            known = {name: value for name, value in state.items() if name not in TENSORS}
            write_text(folder / "run.json", json.dumps(known) + "\n")
        dist.barrier()
        tensors = {name: state[name] for name in TENSORS}
        self.under_way = folder, dcp.async_save(tensors, checkpoint_id=folder,
                                                process_group=self.group)

    def wait(self):
        """Until the checkpoint under way is complete; then remove those before it."""
        if self.under_way is None:
            return
        (folder, writing), self.under_way = self.under_way, None
        writing.result()
        dist.barrier()
        if self.first:
            for old in (self.path / SHARED).iterdir():
                if old != folder:
                    shutil.rmtree(old)

    def export(self, model):
        """Nothing: weights are gathered at the end alone."""

    def close(self, model):
        """After the last step: wait, and write the whole model."""
        self.wait()
        if self.first:
            super().export(model)
        else:                                    # takes part in gathering
            for _ in hf.each_released(model):
                pass

    def write_tensors(self, name, pairs):
        """Gather (name, tensor) pairs; the first process writes them."""
        if self.first:
            super().write_tensors(name, pairs)
        else:
            for _ in pairs:
                pass

    def write_json(self, name, values):
        """Write a JSON file, in the first process."""
        if self.first:
            super().write_json(name, values)

    def open_metrics(self, steps):
        """metrics.jsonl to append to; in all processes but the first a file that keeps nothing."""
        return super().open_metrics(steps) if self.first else open(
            os.devnull, "w", encoding="utf-8")

    # ---- reading ----

    def load_state(self):
        """What is known of the newest complete checkpoint before the model is made."""
        folder = self.complete_steps()[-1]
        try:
            known = hf.read_json(folder / "run.json")
            missing = STATE - set(TENSORS) - known.keys()
        except (OSError, ValueError, AttributeError) as error:
            missing = first_line(error)
        if missing:
            raise UserError(damaged(folder, missing))
        return known

    def complete(self, state, trainer):
        """The tensors of the checkpoint, divided as this trainer's are, beside what is known."""
        make_moments(trainer.optimizers)
        tensors = {name: value for name, value in trainer.state().items() if name in TENSORS}
        folder = self.complete_steps()[-1]
        try:
            dcp.load(tensors, checkpoint_id=folder, process_group=self.group)
        except (Exception, CheckpointException) as error:      # the latter is no Exception
            raise UserError(damaged(folder, first_line(error))) from None
        return state | tensors


def damaged(folder, reason):
    """What is said of a checkpoint that cannot be read."""
    return (f"{folder} cannot be read ({reason}); it is damaged or no checkpoint of this program: "
            "start anew with --overwrite.")


def make_moments(optimizers):
    """Let new optimisers make their states, by a step that changes no weight."""
    for optimizer in optimizers:
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
