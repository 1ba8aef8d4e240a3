"""Train a small DeepSeek-V3 from text: `python train_tiny.py`, minutes on a laptop.

The folder it writes is a checkpoint in the released format; `generate.py` speaks with it.
"""

import sys
import time
from pathlib import Path

from minidsv3.command import UserError, answer
from minidsv3.device import BEGIN, choose_device, choose_threads, send
from minidsv3.train import options
from minidsv3.train.checkpoint import RunFolder
from minidsv3.train.optim import make_optimizers
from minidsv3.train.options import configure
from minidsv3.train.pace import plan_steps
from minidsv3.train.prepare import make_model, read_text
from minidsv3.train.trainer import Trainer


def parse_arguments(arguments=None):
    """The command line."""
    return options.parse_arguments(arguments, __doc__)


def make_trainer(model_config, recipe, folder, device, saved=None):
    """The text, a model, its optimisers, and the run that trains it, from a saved state or new."""
    # A run --from a checkpoint has its own copy of the tokenizer, and its weights in the state.
    start = recipe.start and (folder.path if saved else recipe.start)
    data = read_text(recipe, model_config, start)
    model = make_model(model_config, recipe, device, "" if saved else start)
    trainer = Trainer(model, make_optimizers(model, recipe), data, recipe, folder)
    if saved:
        trainer.restore(saved)
    return trainer


def run(arguments, begin):
    """Train as asked, and say what came of it -> exit code."""
    device = choose_device(arguments.device)
    choose_threads(arguments.threads)
    out = arguments.out or f"runs/{arguments.preset or 'tiny'}"
    folder = RunFolder(out, arguments.resume, arguments.overwrite)
    saved = folder.load_state() if arguments.resume else None
    model_config, recipe = configure(arguments, saved)
    if recipe.start and folder.path.resolve() == Path(recipe.start).resolve():
        raise UserError(f"--from and --out are both {folder.path}; write to another folder.")
    trainer = make_trainer(model_config, recipe, folder, device, saved)
    if arguments.compile:
        trainer.update.compile(send(trainer.data.batches.take(0, recipe.micro_batch), device))
    if arguments.minutes is not None:
        print("measuring some steps, which do not count ...", flush=True)
        recipe = recipe.replace(steps=plan_steps(trainer, arguments.minutes, begin))
        trainer.set_recipe(recipe)
    total, active = trainer.model.count_parameters()
    dtype = str(trainer.model.activation_dtype).removeprefix("torch.")
    print(f"device {device}, activations {dtype}, {total:,} parameters, {active:,} active, "
          f"{recipe.batch_size * recipe.window:,} tokens per step, {recipe.steps:,} steps")
    after = f" after step {trainer.step}" if saved is not None else ""
    print(f"output in {folder.path}; Ctrl-C saves, --resume goes on{after}", flush=True)
    try:
        summary = trainer.run()
    except KeyboardInterrupt:
        print("\nstopped at once; --resume goes on from the last checkpoint")
        return 130
    except FloatingPointError as error:   # Diverged, or a layer in 8 bits
        print(f"error: {error}", file=sys.stderr)
        return 1
    if summary is None:
        print(f"stopped after step {trainer.step} and saved; go on with: "
              f"python train_tiny.py --out {folder.path} --resume")
        return 130
    print(f"\n{(folder.path / 'sample.txt').read_text(encoding='utf-8')}\n")
    print(f"validation: {summary['val_bits_per_byte']:.4f} bits per byte "
          f"({summary['val_bits_per_byte_ema']:.4f} averaged weights), MaxVio by layer "
          f"{', '.join(f'{v:.2f}' for v in summary['max_vio'])}; {summary['seconds']:.0f} s of "
          f"training, {summary['tokens_per_s']:,.0f} tokens/s")
    if memory := summary.get("memory"):
        print("a backward pass keeps {kept:,} bytes (bfloat16: {kept_in_bf16:,}), the optimisers' "
              "moments {moments:,} (float32: {moments_in_fp32:,})".format(**memory))
    print(f"wrote {folder.path}: a checkpoint, metrics.jsonl, summary.json, loss.png, ...")
    print(f'next: python generate.py --model {folder.path} --prompt "def "')
    return 0


def main(arguments=None, begin=None):
    """Run; bad input ends in one line and exit code 2, a loss that diverged in 1.

    begin: when the program began, by time.perf_counter; None: now.
    """
    begin = time.perf_counter() if begin is None else begin
    return answer(lambda: run(parse_arguments(arguments), begin))


if __name__ == "__main__":
    sys.exit(main(begin=BEGIN))
