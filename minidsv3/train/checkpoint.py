"""Run folders: what a run writes to disk, complete at every moment.

`state.pt` is enough to resume: weights, moments, averaged weights, step, recipe, generator states.
(A run that began --from another checkpoint needs its own `tokenizer.json` too.) It exists before
the first step. Each new one is written under a temporary name, flushed to the disk and renamed, so
that a kill at any moment leaves the old state or the new one, never half of one. All other files
are exports for others to read:

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json   the released format
    ema.safetensors   averaged weights       train.json     the recipe
    metrics.jsonl     one line per step      summary.json   the run is finished
    loss.png  expert_load.png  sample.txt    written last; a run can do without them
"""

import json
import math
import os
import shutil
from contextlib import suppress
from pathlib import Path

import torch

from .. import hf
from ..command import UserError, script
from ..files import (
    EXPORTS,
    SHARED,
    STATE_FILE,
    make_folder,
    refuse_files,
    replacing,
    write_text,
)

STATE = {"step", "seconds", "config", "model_config", "corpus_sha256", "model", "average",
         "optimizers", "rng"}                    # what a state.pt holds


class Watched:
    """A file for torch.save that keeps the OSError of a write, so that a full disk is told as one.

    The file must be buffered: it then writes everything or raises, which torch does not check.
    """

    def __init__(self, file):
        self.file, self.error = file, None

    def write(self, data):
        """Write all of the data."""
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self):
        """Nothing: `save_state` flushes the file itself."""


class RunFolder:
    """The files of one run.

    Raises UserError (something stands in the way) with one line that says what to do.
    """

    def __init__(self, path, resume=False, overwrite=False):
        self.path = Path(path)
        self.state_path = self.path / STATE_FILE
        self.begun = resume                      # whether the state here is of this run
        refuse_files(self.path)
        finished = (self.path / "summary.json").exists()
        if resume:
            self.require_state()
            if finished:
                raise UserError(f"the run in {self.path} is finished; start another with --out.")
        elif not overwrite:
            self.refuse_to_replace(finished)
        self.replaces = not resume and any(      # an older run, which goes when this one begins
            (self.path / name).exists() for name in (STATE_FILE, SHARED, *EXPORTS))

    def require_state(self):
        """UserError if there is no state to resume from."""
        if self.state_path.is_file():
            return
        if (self.path / SHARED).is_dir():
            raise UserError(f"the run in {self.path} was made by several processes; go on with "
                            f"torchrun --nproc-per-node 1 {script('train_tiny.py')} ..., or more "
                            "of them.")
        raise UserError(f"nothing to resume: {self.state_path} does not exist; leave out "
                        "--resume.")

    def refuse_to_replace(self, finished):
        """UserError if the folder holds a run, or files that have the names of a run's files."""
        present = [name for name in EXPORTS if (self.path / name).exists()]
        what, way = f"{present[0] if present else ''} already", ""
        if finished:
            what = "a finished run"
        elif self.state_path.exists() or (self.path / SHARED).exists():
            what, way = "an unfinished run", "--resume to go on, "
        elif not present:
            return
        raise UserError(f"{self.path} holds {what}; {way}--overwrite to replace it, "
                        "or --out for another folder.")

    def refuse_to_remove(self, text):
        """UserError if the text of a new run is a file of the older run that it replaces."""
        path = Path(text).resolve()
        if path.parent == self.path.resolve() and path.name in EXPORTS:
            raise UserError(f"--data {text} is a file of the run in {self.path}, which goes with "
                            "--overwrite; copy it elsewhere first, or name another folder with "
                            "--out.")

    def start(self, first_state=None):
        """Make the folder and remove what a killed run left half-written.

        A new run gives its first state. An older run is removed only when that state is on disk.
        A run that goes on gives none: its tokenizer may be in this folder alone.
        """
        made = not self.path.exists()
        make_folder(self.path)
        for name in (STATE_FILE, *EXPORTS):
            (self.path / (name + ".tmp")).unlink(missing_ok=True)
        if first_state is None:
            return
        try:
            self.save_state(first_state)
        except BaseException:
            if made:
                with suppress(OSError):
                    self.path.rmdir()
            raise
        self.remove_old_run()
        shutil.rmtree(self.path / SHARED, ignore_errors=True)

    def remove_old_run(self):
        """Remove the exports of an older run, first the file that marks it as finished."""
        for name in ("summary.json", *EXPORTS):
            (self.path / name).unlink(missing_ok=True)
        self.replaces = False

    def save_state(self, state):
        """Replace state.pt in one rename; on any error the old one stays."""
        with replacing(self.state_path) as temporary, temporary.open("wb") as file:
            watched = Watched(file)
            try:
                torch.save(state, watched)
            except RuntimeError as error:        # torch's word for any error of a file
                raise watched.error or error from None
            file.flush()
            os.fsync(file.fileno())

    def load_state(self):
        """state.pt as tensors and plain values on the CPU; UserError if it is damaged."""
        try:
            state = torch.load(self.state_path, map_location="cpu", weights_only=True)
            missing = STATE - state.keys()
        except Exception as error:               # pickle, zip and torch each raise their own
            missing = type(error).__name__
        if missing:
            raise UserError(f"{self.state_path} cannot be read ({missing}); it is damaged or no "
                            "state of this program: start anew with --overwrite.")
        return state

    def complete(self, state, trainer):
        """What `load_state` returned, with the tensors that this trainer needs."""
        return state

    def export(self, model):
        """config.json and the weights in one file, which is replaced whole."""
        hf.save(model, self.path, max_shard_size=math.inf)

    def close(self, model):
        """After the last step. Here all is written already."""

    def write_tensors(self, name, pairs):
        """Write (name, tensor) pairs as a safetensors file, whole or not at all."""
        hf.write_tensors(self.path / name, dict(pairs))

    def write_json(self, name, values):
        """Write a JSON file whole or not at all."""
        write_text(self.path / name, json.dumps(values, indent=2) + "\n")

    def read_metrics(self):
        """The lines of metrics.jsonl as dicts, one for each step that it knows, in order.

        Damaged lines, as after a kill, are left out; of several for one step the last one counts.
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        by_step = {line["step"]: line for line in map(as_metrics, lines) if line}
        return [by_step[step] for step in sorted(by_step)]

    def open_metrics(self, steps):
        """metrics.jsonl to append to, first cut back to the lines up to this step."""
        kept = [line for line in self.read_metrics() if line["step"] <= steps]
        path = self.path / "metrics.jsonl"
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        return path.open("a", encoding="utf-8", newline="\n")


def as_metrics(line):
    """A line of metrics.jsonl as a dict, or None if it is damaged."""
    try:
        metrics = json.loads(line)
        return metrics if isinstance(metrics["step"], int) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
