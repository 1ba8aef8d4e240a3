"""The training loop: batches in, a run folder out.

What a step does (`step.py`) depends on (recipe, step) and the weights alone, so a resumed run
repeats an uninterrupted one bit for bit.
"""

import json
import math
import platform
import signal
import sys
import time

import torch
from tqdm import tqdm

from .. import fp8, hf
from ..command import UserError
from ..data.dataset import Dataset
from ..data.foreign import read_tokenizer
from ..device import choose_precision, send
from ..files import write_text
from ..infer.text import complete
from ..measure import plots
from ..measure.evaluate import bits_per_byte, evaluate
from ..measure.memory import saved_by_eight_bits
from ..model.moe import max_violation
from ..model.transformer import DeepSeekV3
from .optim import make_optimizers
from .pace import Pace
from .recipe import batch_size_at
from .step import Step

SAMPLE_PROMPT = "def "


class Diverged(FloatingPointError):
    """The loss is no finite number any more."""


class Trainer:
    """One run, from its first step or from a saved state."""

    def __init__(self, model_config, config, folder, device):
        self.config, self.folder, self.device = config, folder, device
        tokenizer = read_tokenizer(config.start, model_config) if config.start else None
        self.data = Dataset(config.data, model_config.vocab_size, config.window, config.fim_rate,
                            config.seed, tokenizer)
        torch.manual_seed(config.seed)
        self.model = DeepSeekV3(model_config)
        if config.start:
            begin_from(self.model, config.start)
        self.model = self.model.to(device)
        self.model.activation_dtype = choose_precision(config.precision, device)
        self.model.recompute = config.recompute
        if config.precision == "fp8":
            fp8.convert(self.model)
        self.optimizers = make_optimizers(self.model, config)
        self.update = Step(self.model, self.optimizers, config)
        self.average = [p.detach().clone() for p in self.model.parameters()]
        self.step, self.seconds = 0, 0.0
        self.interrupted = False
        self.set_steps(config.steps)

    def set_steps(self, steps):
        """Make it a run of so many steps; all schedules are shares of it."""
        self.config = self.update.recipe = self.config.replace(steps=steps)
        self.sizes = [batch_size_at(self.config, step) for step in range(steps)]

    # ---- one step ----

    def train_step(self):
        """One optimiser step -> the figures of its line in metrics.jsonl."""
        config, size = self.config, self.sizes[self.step]
        done = sum(self.sizes[:self.step])
        tokens = self.data.batches.take(done, size)                    # (B, T+1)
        try:
            figures = self.update(send(tokens, self.device), (done + size) / sum(self.sizes))
            figures = self.update.read(figures)
            if not figures.is_finite:
                raise FloatingPointError(f"the loss is {figures.total} and its gradient "
                                         f"{figures.norm}")
        except FloatingPointError as error:      # nothing of this step is kept from here on
            raise Diverged(f"{error}, at step {self.step + 1} of seed {config.seed}; the last "
                           "checkpoint is kept: try a lower learning_rate, or --precision fp32 "
                           "--device cpu.") from None
        self.update_average()
        self.step += 1
        targets = tokens[:, 1:]                                        # (B, T)
        size_in_bytes = self.data.token_bytes[targets].sum().item()
        loads = figures.loads                                          # (layers, E)
        return {"step": self.step, "tokens": (done + size) * config.window,
                "loss": figures.next_token, "mtp_loss": figures.mtp,
                "balance_loss": figures.balance,
                "bits_per_byte": (figures.next_token / math.log(2) * targets.numel()
                                  / size_in_bytes),
                "lr": self.optimizers[0].param_groups[0]["lr"],
                "max_vio": max_violation(loads).mean().item() if len(loads) else 0.0}, loads

    @torch.no_grad()
    def update_average(self):
        """Averaged weights, kept where the model is; they follow faster while weights are young."""
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        weights = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(self.average, weights, 1 - decay)

    # ---- the run ----

    def run(self):
        """Train to the end, or until Ctrl-C -> the summary, or None if interrupted."""
        self.write_recipe()
        quick, pace = self.data.quick_sample(), Pace(self)
        with self.folder.open_metrics(self.step) as log, CatchInterrupt(self), self.bar() as bar:
            while self.step < self.config.steps and not self.interrupted:
                begin = time.perf_counter()
                line, loads = self.train_step()
                alone = time.perf_counter() - begin
                last = self.step == self.config.steps
                if self.step % self.config.eval_every == 0 and not last:
                    line["val_bits_per_byte"] = self.evaluate(*quick, bits_per_byte)
                if self.step % max(1, self.config.steps // 100) == 0 and len(loads):
                    share = loads / loads.double().mean(dim=1, keepdim=True)  # (layers, E)
                    line["expert_load"] = [[round(x, 3) for x in row] for row in share.tolist()]
                seconds = time.perf_counter() - begin
                self.seconds += seconds
                line["tokens_per_s"] = self.sizes[self.step - 1] * self.config.window / seconds
                log.write(json.dumps(line) + "\n")
                log.flush()
                self.show(bar, line)
                if said := pace.note(alone):
                    bar.write(said, file=sys.stderr)
                if self.step % self.config.save_every == 0 and not last:
                    self.save()
        self.save()
        return None if self.interrupted else self.finish()

    def bar(self):
        """The progress bar, counting tokens."""
        total, done = sum(self.sizes), sum(self.sizes[:self.step])
        return tqdm(total=total * self.config.window, initial=done * self.config.window,
                    unit="tok", unit_scale=True, dynamic_ncols=True, mininterval=0.5,
                    file=sys.stderr)

    def show(self, bar, line):
        """Put the step's figures beside the bar, lightly smoothed."""
        shown = getattr(self, "shown", line)
        self.shown = {name: 0.95 * shown[name] + 0.05 * line[name]
                      for name in ("loss", "bits_per_byte", "max_vio")}
        bar.update(self.sizes[self.step - 1] * self.config.window)
        bar.set_postfix_str("loss {loss:.3f} bits/byte {bits_per_byte:.3f} lr {lr:.1e} "
                            "MaxVio {max_vio:.2f}".format(lr=line["lr"], **self.shown),
                            refresh=False)

    def compile(self):
        """torch.compile the loss; where that fails, say so in one line and go on without."""
        try:
            compiled = torch.compile(self.model.loss)
            batch = self.data.batches.take(0, self.config.micro_batch).to(self.device)
            compiled(batch).total.backward()
            self.update.loss = compiled
        except Exception as error:               # any compiler error; eager mode is always right
            print(f"torch.compile failed ({type(error).__name__}); going on without it.")
        self.model.zero_grad(set_to_none=True)
        for router in self.model.routers():
            router.load.zero_()

    def evaluate(self, inputs, targets, size, measure=evaluate):
        """A figure of measure/evaluate.py in evaluation mode, in which loads are not counted."""
        self.model.eval()
        result = measure(self.model, inputs, targets, size)
        self.model.train()
        return result

    # ---- files ----

    def write_recipe(self):
        """The files that do not change during a run, and the state that it can begin from."""
        self.folder.start(None if self.step else self.state())
        self.folder.write_json("train.json", self.config.to_dict())
        self.data.tokenizer.save(self.folder.path)

    def save(self):
        """state.pt first, then the exports made from it."""
        self.folder.save_state(self.state())
        hf.save(self.model, self.folder.path, max_shard_size=math.inf)  # one file is replaced whole

    def state(self):
        """All that the next step depends on, as tensors and plain values."""
        return {"step": self.step, "seconds": self.seconds, "config": self.config.to_dict(),
                "model_config": self.model.config.to_dict(), "corpus_sha256": self.data.sha256,
                "model": self.model.state_dict(), "average": self.average,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "rng": torch.get_rng_state()}

    def restore(self, state):
        """Continue from a saved state. UserError if the text is not the one it was trained on."""
        if state["corpus_sha256"] != self.data.sha256:
            raise UserError(f"the text {self.config.data!r} has changed since this run began; "
                            "start a new run, or bring the old text back.")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for average, saved in zip(self.average, state["average"], strict=True):
            average.copy_(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        torch.set_rng_state(state["rng"])

    def finish(self):
        """Evaluate raw and averaged weights on all validation text; pictures, sample, summary."""
        everything = (self.data.inputs, self.data.targets, self.data.validation_bytes)
        result = self.evaluate(*everything)
        sample = self.sample()
        raw = [p.detach().clone() for p in self.model.parameters()]
        self.set_weights(self.average)
        averaged = self.evaluate(*everything, bits_per_byte)
        hf.write_tensors(self.folder.path / "ema.safetensors", hf.released_tensors(self.model))
        self.set_weights(raw)
        metrics = self.folder.read_metrics()
        metrics[-1]["val_bits_per_byte"] = result.bits_per_byte
        with self.folder.open_metrics(self.step - 1) as log:
            log.write(json.dumps(metrics[-1]) + "\n")
        plots.save(plots.loss_curve(metrics), self.folder.path / "loss.png")
        looked = [line for line in metrics if "expert_load" in line]
        if looked:
            figure = plots.expert_load([line["expert_load"] for line in looked],
                                       [line["step"] for line in looked])
            plots.save(figure, self.folder.path / "expert_load.png")
        write_text(self.folder.path / "sample.txt", sample)
        summary = self.summary(result, averaged, metrics[-1]["tokens"])
        if self.config.precision == "fp8":
            tokens = self.data.batches.take(0, self.config.micro_batch).to(self.device)
            summary["memory"] = saved_by_eight_bits(self.model, tokens, self.optimizers)
        self.folder.write_json("summary.json", summary)
        return summary

    @torch.no_grad()
    def set_weights(self, weights):
        """Copy a list of tensors into the model's parameters."""
        for parameter, weight in zip(self.model.parameters(), weights, strict=True):
            parameter.copy_(weight)

    def sample(self, length=200):
        """Text that the trained model writes after "def "."""
        length = min(length, self.model.config.max_position_embeddings - len(SAMPLE_PROMPT))
        pieces = complete(self.model, self.data.tokenizer, SAMPLE_PROMPT, length, temperature=0.7,
                          top_p=0.95, seed=self.config.seed)
        return SAMPLE_PROMPT + "".join(piece.text for piece in pieces)

    def summary(self, result, averaged, tokens):
        """The figures of summary.json."""
        total, active = self.model.count_parameters()
        return {"val_bits_per_byte": result.bits_per_byte,
                "val_bits_per_byte_ema": averaged,
                "seconds": round(self.seconds, 1), "steps": self.step, "tokens": tokens,
                "tokens_per_s": round(tokens / self.seconds, 1), "max_vio": result.max_vio,
                "mtp_agreement": round(result.mtp_agreement, 4),
                "parameters": total, "parameters_active": active, "device": str(self.device),
                "dtype": "fp8" if self.config.precision == "fp8" else str(
                    self.model.activation_dtype).removeprefix("torch."),
                "seed": self.config.seed, "torch": torch.__version__,
                "python": platform.python_version(), "corpus_sha256": self.data.sha256,
                "command": " ".join(sys.argv)}


def begin_from(model, folder):
    """Copy the weights of a checkpoint. UserError if they have other shapes than the model."""
    try:
        model.load_state_dict(hf.load(folder, torch.float32).state_dict())
    except RuntimeError as error:                # torch tells all, from the second line on
        first = str(error).splitlines()[1].strip()
        raise UserError(f"--from {folder}: {first} Leave out what --set changes of the "
                        "model.") from None


class CatchInterrupt:
    """Ctrl-C ends the run after the step at hand; a second one ends it at once."""

    def __init__(self, trainer):
        self.trainer = trainer

    def __enter__(self):
        self.previous = signal.signal(signal.SIGINT, self.note)

    def note(self, *_):
        """Remember the first Ctrl-C and give the next one back its usual meaning."""
        self.trainer.interrupted = True
        signal.signal(signal.SIGINT, self.previous)

    def __exit__(self, *_):
        signal.signal(signal.SIGINT, self.previous)
