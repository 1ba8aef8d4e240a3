"""The run: its loop, its progress bar, and what it saves.

What a step does (`step.py`) depends on (recipe, step) and the weights alone, so a resumed run
repeats an uninterrupted one bit for bit.
"""

import json
import math
import os
import signal
import sys
import time

import torch
from tqdm import tqdm

from ..command import UserError
from ..device import local, send
from ..measure.evaluate import bits_per_byte, max_violation
from .pace import Pace
from .recipe import batch_sizes
from .report import finish
from .step import Diverged, Step
from .stop import Stop
from .team import ALONE

ADVICE = ("the last checkpoint is kept: try a lower learning_rate, or --precision fp32 --device "
          "cpu.")


class Trainer:
    """One run of a finished model and its optimisers, from step 0 or from a saved state.

    team: the processes of the run.
    """

    def __init__(self, model, optimizers, data, config, folder, team=ALONE):
        self.model, self.optimizers, self.data = model, optimizers, data
        self.folder, self.team, self.device = folder, team, model.norm.weight.device
        self.update = Step(model, optimizers, config)
        self.average = [p.detach().clone() for p in model.parameters()]
        self.step, self.seconds, self.shown = 0, 0.0, {}
        self.interrupted, self.signal = False, signal.SIGINT           # and by what, if it is
        self.directory = os.getcwd()             # where the name of the text is understood
        self.set_recipe(config)

    def set_recipe(self, config):
        """Train by this recipe; all schedules are shares of its steps."""
        self.config = self.update.recipe = config
        self.sizes = batch_sizes(config)         # sequences of every step
        # Loads are written some 100 times, in steps in which no MTP module rests.
        looks = math.ceil(max(1, config.steps // 100) / config.mtp_every)
        self.look_every = min(config.steps, looks * config.mtp_every)

    # ---- one step ----

    def train_step(self):
        """One optimiser step -> the figures of its line in metrics.jsonl."""
        config, size = self.config, self.sizes[self.step]
        done = sum(self.sizes[:self.step])
        tokens = self.data.batches.take(done, size)                    # (B, T+1)
        try:
            own = send(self.team.own(tokens), self.device)
            figures = self.update(own, (done + size) / sum(self.sizes), self.step)
            figures = self.update.read(figures)
        except FloatingPointError as error:      # this step is not saved
            raise Diverged(f"{error}, at step {self.step + 1} of seed {config.seed}; {ADVICE}"
                           ) from None
        self.update_average()
        self.step += 1
        targets = tokens[:, 1:]                                        # (B, T)
        bits = figures.next_token / math.log(2) * targets.numel()
        size_in_bytes = self.data.token_bytes[targets].sum().item()    # 0: special tokens alone
        loads = figures.loads                                          # (layers, E)
        used = loads[loads.any(dim=1)]           # without MTP modules that rest in this step
        return {"step": self.step, "tokens": (done + size) * config.window,
                "loss": figures.next_token, "mtp_loss": figures.mtp,
                "balance_loss": figures.balance,
                "bits_per_byte": bits / size_in_bytes if size_in_bytes else None,
                "lr": self.optimizers[0].param_groups[0]["lr"],
                "max_vio": max_violation(used).mean().item() if len(used) else 0.0}, loads

    @torch.no_grad()
    def update_average(self):
        """Update the averaged weights, on the model's device; early in a run they follow faster."""
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        weights = [local(p.detach()) for p in self.model.parameters()]
        torch._foreach_lerp_([local(each) for each in self.average], weights, 1 - decay)

    # ---- the run ----

    def run(self):
        """Train to the end, or until a signal asks to stop -> the summary, or None if stopped."""
        self.write_recipe()
        quick, pace, stopped = self.data.quick_sample(), Pace(self), False
        with self.folder.open_metrics(self.step) as log, Stop(self), self.bar() as bar:
            while self.step < self.config.steps and not stopped:
                begin = time.perf_counter()
                line, loads = self.train_step()
                alone = time.perf_counter() - begin
                last = self.step == self.config.steps
                if self.step % self.config.eval_every == 0 and not last and quick[-1]:
                    line["val_bits_per_byte"] = bits_per_byte(self.model, *quick)
                if self.step % self.look_every == 0 and len(loads):
                    share = loads / loads.double().mean(dim=1, keepdim=True).clamp(min=1)
                    line["expert_load"] = [[round(x, 3) for x in row] for row in share.tolist()]
                seconds = time.perf_counter() - begin
                self.seconds += seconds
                line["tokens_per_s"] = self.sizes[self.step - 1] * self.config.window / seconds
                log.write(json.dumps(line) + "\n")
                log.flush()
                self.show(bar, line)
                if (said := pace.note(alone)) and self.team.first:
                    bar.write(said, file=sys.stderr)
                if self.step % self.config.save_every == 0 and not last:
                    self.save()
                stopped = self.team.any(self.interrupted)    # all processes agree on this step
            self.save()
            self.folder.close(self.model)
        return None if stopped else finish(self)

    def bar(self):
        """The progress bar, counting tokens; TQDM_DISABLE, which a study sets, hides it."""
        hidden = {} if self.team.first else {"disable": True}
        total, done = sum(self.sizes), sum(self.sizes[:self.step])
        return tqdm(total=total * self.config.window, initial=done * self.config.window,
                    unit="tok", unit_scale=True, dynamic_ncols=True, mininterval=0.5,
                    file=sys.stderr, **hidden)

    def show(self, bar, line):
        """Put the step's figures beside the bar, lightly smoothed."""
        new = {name: line[name] for name in ("loss", "bits_per_byte", "max_vio")
               if line[name] is not None}
        self.shown |= {name: 0.95 * self.shown.get(name, value) + 0.05 * value
                       for name, value in new.items()}
        bar.update(self.sizes[self.step - 1] * self.config.window)
        bar.set_postfix_str("loss {loss:.3f} bits/byte {bits_per_byte:.3f} lr {lr:.1e} "
                            "MaxVio {max_vio:.2f}".format(
                                **{"bits_per_byte": math.nan, "lr": line["lr"]} | self.shown),
                            refresh=False)

    # ---- files ----

    def write_recipe(self):
        """The files that do not change during a run, and the state that it can begin from.

        Before an older run goes, this one shows that it can compute a step.
        """
        if self.folder.replaces:
            self.folder.refuse_to_remove(self.config.data)
            tokens = self.data.batches.take(0, self.sizes[0])          # (B, T+1)
            self.update.rehearse(send(self.team.own(tokens), self.device))
        self.folder.start(None if self.folder.begun else self.state())
        self.folder.write_json("train.json", self.config.to_dict())
        if self.team.first:
            self.data.tokenizer.save(self.folder.path, self.model.config.max_position_embeddings)

    def save(self):
        """state.pt first, then the exports made from it. Raises Diverged for weights not finite."""
        if not all(local(weight).isfinite().all() for weight in self.model.parameters()):
            raise Diverged(f"a weight is not finite, after step {self.step} of seed "
                           f"{self.config.seed}; {ADVICE}")
        self.folder.save_state(self.state())
        self.folder.export(self.model)

    def state(self):
        """Everything that the next step depends on, as tensors and plain values."""
        return {"step": self.step, "seconds": self.seconds, "config": self.config.to_dict(),
                "model_config": self.model.config.to_dict(), "corpus_sha256": self.data.sha256,
                "model": self.model.state_dict(), "average": self.average,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "rng": torch.get_rng_state(), "directory": self.directory}

    def restore(self, state):
        """Continue from a saved state. UserError if the text is not the one it was trained on."""
        if state["corpus_sha256"] != self.data.sha256:
            raise UserError(f"the text {self.config.data!r} has changed since this run began, or "
                            "is another one; bring the old text back, name it with --data, or "
                            "start a new run.")
        self.model.load_state_dict(state["model"])
        try:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except ValueError:
            raise UserError("this run was begun by a version of minidsv3 that groups the weights "
                            "for its optimisers otherwise; go on with that version, or start "
                            "anew.") from None
        for average, saved in zip(self.average, state["average"], strict=True):
            average.copy_(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        torch.set_rng_state(state["rng"])
