"""Run folders: what a run leaves on disk, whole at every moment.

`state.pt` alone resumes: weights, moments, averaged weights, step, recipe, generator states. It is
written under a temporary name, flushed to the disk and renamed, so that a kill at any moment leaves
the old state or the new one, never half of one. All other files are exports for others to read:

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json   the released format
    ema.safetensors   averaged weights       train.json     the recipe
    metrics.jsonl     one line a step        summary.json   written last: the run is finished
    loss.png  expert_load.png  sample.txt
"""

import json
import os
from pathlib import Path

import torch

EXPORTS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "ema.safetensors",
           "train.json", "metrics.jsonl", "summary.json", "loss.png", "expert_load.png", "sample.txt")


class RunFolder:
    """The files of one run.

    Raises ValueError (something stands in the way) with one line that says what to do.
    """

    def __init__(self, path, resume=False, overwrite=False):
        self.path = Path(path)
        self.state_path = self.path / "state.pt"
        finished = (self.path / "summary.json").exists()
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--out {self.path} is a file; name a folder.")
        if resume:
            if not self.state_path.is_file():
                raise ValueError(f"nothing to resume: {self.state_path} does not exist; leave out --resume.")
            if finished:
                raise ValueError(f"the run in {self.path} is finished; start another with --out.")
        elif not overwrite and (finished or self.state_path.exists()):
            what, way = ("a finished run", "") if finished else ("an unfinished run", "--resume to go on, ")
            raise ValueError(f"{self.path} holds {what}; {way}--overwrite to replace it, "
                             "or --out for another folder.")

    def start(self, fresh):
        """Make the folder, remove what a killed run left half-written and, if fresh, an older run."""
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in self.path.glob("*.tmp"):
            leftover.unlink()
        if fresh:                                # what made the older run a finished one goes first
            for name in ("summary.json", "state.pt", *EXPORTS):
                (self.path / name).unlink(missing_ok=True)

    def save_state(self, state):
        """Replace state.pt in one move; on any error the old one stays."""
        temporary = self.path / "state.pt.tmp"
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.state_path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, RuntimeError):  # torch's word for a write that failed, disk full for one
                raise OSError(f"cannot write {self.state_path}: {str(error).splitlines()[0]}") from error
            raise

    def load_state(self):
        """state.pt as tensors and plain numbers on the CPU; ValueError if it is not one of ours."""
        try:
            return torch.load(self.state_path, map_location="cpu", weights_only=True)
        except Exception as error:               # pickle, zip and torch each have kinds of their own
            raise ValueError(f"{self.state_path} cannot be read ({type(error).__name__}); "
                             "it is damaged or no state of this program.") from None

    def write_json(self, name, values):
        """Write a JSON file whole or not at all."""
        temporary = self.path / (name + ".tmp")
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8", newline="\n")
        temporary.replace(self.path / name)

    def read_metrics(self):
        """The lines of metrics.jsonl as dicts; a last line cut by a kill is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line.endswith("}")]

    def open_metrics(self, steps):
        """metrics.jsonl to append to, first cut back to the given number of steps."""
        kept = self.read_metrics()[:steps]
        temporary = self.path / "metrics.jsonl.tmp"
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8", newline="\n")
        temporary.replace(self.path / "metrics.jsonl")
        return (self.path / "metrics.jsonl").open("a", encoding="utf-8", newline="\n")
