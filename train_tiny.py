"""Train a small DeepSeek-V3 from text: `python train_tiny.py`, minutes on a laptop.

The folder it writes is a checkpoint in the released format; `generate.py` speaks with it.
"""

import os
import sys
import time
from pathlib import Path

from minidsv3.command import UserError, answer, command_line, script
from minidsv3.device import BEGIN, choose_device, choose_threads, send
from minidsv3.train import options
from minidsv3.train.checkpoint import RunFolder
from minidsv3.train.options import configure
from minidsv3.train.owner import owned
from minidsv3.train.pace import plan_steps
from minidsv3.train.prepare import make_trainer
from minidsv3.train.report import run_and_report
from minidsv3.train.team import ALONE


def parse_arguments(arguments=None):
    """The command line."""
    return options.parse_arguments(arguments, __doc__)


def run(arguments, begin):
    """Train as asked, in one process or as one of several -> exit code."""
    device = choose_device(arguments.device)
    choose_threads(arguments.threads)
    if not arguments.parallel and "TORCHELASTIC_RUN_ID" not in os.environ:     # torchrun's
        return own_and_train(arguments, begin, device, RunFolder, ALONE)
    from minidsv3.scale import team as several  # loads torch's distributed parts: 1 s
    from minidsv3.scale.checkpoint import SharedFolder
    with several.losing_a_process_is_one_line(), several.only_first_speaks():
        for name in ("minutes", "compile"):
            if getattr(arguments, name):
                raise UserError(f"--{name} works in a single process only; leave it out"
                                + (", and give --steps." if name == "minutes" else "."))
        command = command_line(script("train_tiny.py"), *sys.argv[1:])
        team, device = several.join(arguments.parallel, device, command)
        return own_and_train(arguments, begin, device, SharedFolder, team)


def own_and_train(arguments, begin, device, folder_type, team):
    """Train in a folder that no other run uses meanwhile -> exit code."""
    out = arguments.out or f"runs/{arguments.preset or 'tiny'}"
    with owned(out, team):
        folder = folder_type(out, arguments.resume, arguments.overwrite)
        return train(arguments, begin, device, folder, team)


def train(arguments, begin, device, folder, team):
    """Train as asked, and say what came of it -> exit code."""
    saved = folder.load_state() if arguments.resume else None
    model_config, recipe = configure(arguments, saved)
    if recipe.start and saved is None and folder.path.resolve() == Path(recipe.start).resolve():
        raise UserError(f"--from and --out are both {folder.path}; write to another folder.")
    team.check(model_config, recipe)
    trainer = make_trainer(model_config, recipe, folder, device, saved, team)
    if arguments.compile:
        trainer.update.compile(send(trainer.data.batches.take(0, recipe.micro_batch), device))
    if arguments.minutes is not None:
        print("measuring some steps, which do not count ...", flush=True)
        recipe = recipe.replace(steps=plan_steps(trainer, arguments.minutes, begin))
        trainer.set_recipe(recipe)
    total, active = trainer.model.count_parameters()
    dtype = str(trainer.model.activation_dtype).removeprefix("torch.")
    print(f"{team}device {device}, activations {dtype}, {total:,} parameters, {active:,} active, "
          f"{recipe.batch_size * recipe.window:,} tokens per step, {recipe.steps:,} steps")
    after = f" after step {trainer.step}" if saved is not None else ""
    print(f"output in {folder.path}; Ctrl-C saves, --resume goes on{after}", flush=True)
    code = run_and_report(trainer, f"{team.launcher} " + command_line(
        script("train_tiny.py"), "--out", folder.path, "--resume"))
    if code:
        return code
    print(f"wrote {folder.path}: a checkpoint, metrics.jsonl, summary.json, loss.png, ...")
    print("next: " + command_line("python", script("generate.py"), "--model", folder.path,
                                  "--prompt", "def "))
    return 0


def main(arguments=None, begin=None):
    """Run; bad input ends in one line and exit code 2, a loss that diverged in 1.

    begin: when the program began, by time.perf_counter; None: now.
    """
    begin = time.perf_counter() if begin is None else begin
    return answer(lambda: run(parse_arguments(arguments), begin), unread=True)


if __name__ == "__main__":
    sys.exit(main(begin=BEGIN))
