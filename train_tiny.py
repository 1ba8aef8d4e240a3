"""Train a small DeepSeek-V3 from text: `python train_tiny.py`, minutes on a laptop.

The folder it writes is a checkpoint in the released format; `generate.py` speaks with it.
"""

import difflib
import json
import sys
from pathlib import Path

from minidsv3 import ModelConfig, hf
from minidsv3.command import Parser, answer
from minidsv3.device import choose_device
from minidsv3.measure.accounting import count_parameters
from minidsv3.train.checkpoint import RunFolder
from minidsv3.train.recipe import TrainConfig
from minidsv3.train.trainer import Trainer

# Options that are fields of TrainConfig under a shorter name.
RECIPE = ("data", "start", "steps", "seed", "precision", "optimizer", "save_every")


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    what = parser.add_argument_group("what")
    what.add_argument("--preset", help="tiny (laptop, minutes) or small (12 GB GPU, hours) [tiny]")
    what.add_argument("--data", help="a file, a folder, a URL, hf:NAME or [python-stdlib]")
    what.add_argument("--from", dest="start", metavar="DIR", help="a checkpoint to begin with")
    long = parser.add_argument_group("how long")
    long.add_argument("--steps", type=int, help="optimiser steps; the schedules stretch with them")
    long.add_argument("--save-every", type=int, metavar="STEPS", help="steps between checkpoints")
    where = parser.add_argument_group("where")
    where.add_argument("--out", metavar="DIR", help="run folder [runs/PRESET]")
    old = where.add_mutually_exclusive_group()
    old.add_argument("--resume", action="store_true", help="go on with the unfinished run in --out")
    old.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    where.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    how = parser.add_argument_group("how")
    how.add_argument("--precision", help="of activations: fp32, bf16, or auto, bf16 where it is "
                     "faster; or fp8, simulated in attention and FFN, slower than fp32 [auto]")
    how.add_argument("--optimizer", help="muon (matrices; adamw for the rest) or adamw [muon]")
    how.add_argument("--seed", type=int, help="of weights and batches [0]")
    how.add_argument("--compile", action="store_true", help="torch.compile, for long runs on GPUs")
    how.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                     help="any field of ModelConfig or TrainConfig, value as JSON; repeatable")
    return parser.parse_args(arguments)


def read_settings(settings):
    """["key=value", ...] -> changes of the ModelConfig, changes of the TrainConfig."""
    model, recipe = {}, {}
    known = {**dict.fromkeys(TrainConfig.__dataclass_fields__, recipe),
             **dict.fromkeys(ModelConfig.__dataclass_fields__, model)}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "config.py and recipe.py list all."
            raise ValueError(f"--set {setting}: there is no field {key!r}; {hint}")
        if not equals:
            raise ValueError(f"--set {key} has no value; write --set {key}=VALUE.")
        try:
            known[key][key] = json.loads(text)
        except ValueError:
            known[key][key] = text               # a bare word is a text
    return model, recipe


def configure(arguments, saved=None):
    """The two configurations of a run; those of a saved state must not be contradicted."""
    model_changes, recipe_changes = read_settings(arguments.settings)
    for name in RECIPE:
        if getattr(arguments, name) is not None:
            recipe_changes[name] = getattr(arguments, name)
    if saved is None or arguments.preset:
        preset = arguments.preset or "tiny"
        model, recipe = ModelConfig.preset(preset), TrainConfig.preset(preset)
    else:
        model = ModelConfig.from_dict(saved["model_config"])
        recipe = TrainConfig().replace(**saved["config"])
    recipe = recipe.replace(**recipe_changes)
    if recipe.start and saved is None:
        model = hf.stored_config(recipe.start)
    model = model.replace(**model_changes)
    if saved is not None:
        for given, stored in ((model, saved["model_config"]), (recipe, saved["config"])):
            for name, value in given.to_dict().items():
                began = stored.get(name, value)      # an older version had fewer fields
                if value != began:
                    raise ValueError(f"--resume: the run began with {name}={began!r}, not "
                                     f"{value!r}; leave that out, or begin another with --out.")
    depths, limit = model.num_nextn_predict_layers, model.max_position_embeddings
    if not depths < recipe.window <= limit:
        raise ValueError(f"window={recipe.window} must be above num_nextn_predict_layers={depths} "
                         f"and up to max_position_embeddings={limit}; change one of them.")
    return model, recipe


def run(arguments):
    """Train as asked, and say what came of it -> exit code."""
    device = choose_device(arguments.device)
    out = arguments.out or f"runs/{arguments.preset or 'tiny'}"
    folder = RunFolder(out, arguments.resume, arguments.overwrite)
    saved = folder.load_state() if arguments.resume else None
    model_config, recipe = configure(arguments, saved)
    if recipe.start and folder.path.resolve() == Path(recipe.start).resolve():
        raise ValueError(f"--from and --out are both {folder.path}; write to another folder.")
    trainer = Trainer(model_config, recipe, folder, device)
    if saved is not None:
        trainer.restore(saved)
    total, active = count_parameters(trainer.model)
    dtype = str(trainer.model.activation_dtype or "torch.float32").removeprefix("torch.")
    print(f"device {device}, activations {dtype}, {total:,} parameters, {active:,} active, "
          f"{recipe.batch_size * recipe.window:,} tokens a step, {recipe.steps:,} steps")
    after = f" after step {trainer.step}" if saved is not None else ""
    print(f"output in {folder.path}; Ctrl-C saves, --resume goes on{after}", flush=True)
    try:
        summary = trainer.run(compile=arguments.compile)
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


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2, a loss that diverged in 1."""
    return answer(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
