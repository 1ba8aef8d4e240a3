"""The options of train_tiny.py, and the two configurations that they define."""

import difflib
import json
from pathlib import Path

from .. import hf
from ..command import Parser, UserError, notice
from ..config import ModelConfig
from .recipe import PRESETS, TrainConfig

MOST_MINUTES = 10_000                            # a week

# Fields of TrainConfig that may differ when a run goes on. The place of its text does not define
# the run; the hash of the text does, and is compared later.
FREE = ("data", "micro_batch", "recompute", "eval_every", "save_every")

# Options that are fields of TrainConfig under a shorter name.
RECIPE = ("data", "start", "steps", "seed", "precision", "optimizer", "save_every")


def parse_arguments(arguments=None, description=None):
    """The command line."""
    parser = Parser(prog="train_tiny.py", description=description)
    what = parser.add_argument_group("what")
    what.add_argument("--preset", help="tiny (laptop, minutes), short (the same, to be extended), "
                      "or small (12 GB GPU, hours) [tiny]")
    what.add_argument("--data", help="a file, a folder, a URL, hf:NAME, python-packages (all that "
                      "are installed) or [python-stdlib]")
    what.add_argument("--from", dest="start", metavar="DIR", help="a checkpoint to begin with")
    long = parser.add_argument_group("how long")
    either = long.add_mutually_exclusive_group()
    either.add_argument("--steps", type=int,
                        help="optimiser steps; the schedules stretch with them")
    either.add_argument("--minutes", type=float, metavar="M", help="as many steps as this machine "
                        "makes in about M minutes, from the start to the end of the evaluation")
    long.add_argument("--save-every", type=int, metavar="STEPS", help="steps between checkpoints")
    where = parser.add_argument_group("where")
    where.add_argument("--out", metavar="DIR", help="run folder [runs/PRESET]")
    old = where.add_mutually_exclusive_group()
    old.add_argument("--resume", action="store_true", help="go on with the unfinished run in --out")
    old.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    where.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    where.add_argument("--threads", type=int, metavar="N", help="CPU threads; 1 is best beside "
                       "another busy program [one per core]")
    where.add_argument("--parallel", metavar="PLAN", help="divide the run over the processes of "
                       "torchrun, for instance ep=2,fsdp=2: experts over 2, all else over 4; see "
                       "docs/multi-gpu.md [fsdp over all of them]")
    how = parser.add_argument_group("how")
    how.add_argument("--precision", help="of activations: fp32, bf16, or auto, bf16 where it is "
                     "faster; or fp8, simulated in attention and FFN, slower than fp32 [auto]")
    how.add_argument("--optimizer", help="muon (matrices; adamw for the rest) or adamw [muon]")
    how.add_argument("--seed", type=int, help="of weights and batches [0]")
    how.add_argument("--compile", action="store_true", help="torch.compile, for long runs on GPUs")
    how.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                     help="any field of ModelConfig or TrainConfig, value as JSON; repeatable")
    parsed = parser.parse_args(arguments)
    if parsed.resume and parsed.minutes is not None:
        raise UserError("--minutes plans a new run, and --resume goes on with the steps that were "
                        "planned; leave one of them out.")
    check_minutes(parsed.minutes)
    if parsed.minutes is not None and any(each.startswith("steps=") for each in parsed.settings):
        raise UserError("--minutes plans the steps, and --set steps=... names them; leave one of "
                        "them out.")
    return parsed


def check_minutes(minutes):
    """UserError if --minutes was given and is out of range."""
    if minutes is not None and not 0 < minutes <= MOST_MINUTES:
        raise UserError(f"--minutes {minutes:g} must be above 0 and up to {MOST_MINUTES:,}, for "
                        "instance 5.")


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
            raise UserError(f"--set {setting}: there is no field {key!r}; {hint}")
        if not equals:
            raise UserError(f"--set {key} has no value; write --set {key}=VALUE.")
        try:
            known[key][key] = json.loads(text)
        except ValueError:
            known[key][key] = text               # a word without quotes
    return model, recipe


def configure(arguments, saved=None):
    """The two configurations of a run; on resuming, options must agree with the saved ones.

    Those in FREE may differ. A run that began --from a checkpoint goes on from its own state, and
    keeps the name of that checkpoint.
    """
    model_changes, recipe_changes = read_settings(arguments.settings)
    for name in RECIPE:
        if getattr(arguments, name) is not None:
            recipe_changes[name] = getattr(arguments, name)
    if saved is None:
        preset = arguments.preset or "tiny"
        model, recipe = ModelConfig.preset(preset), TrainConfig.preset(preset)
    else:
        model = ModelConfig.from_dict(saved["model_config"])
        recipe = TrainConfig().replace(**saved["config"])
        check_preset(arguments.preset, {**model_changes, **recipe_changes}, model, recipe)
        if recipe.start and recipe_changes.pop("start", recipe.start) != recipe.start:
            notice(f"--from {arguments.start} is not read: the run goes on from its own state.")
        recipe_changes.setdefault("data", where_it_was(saved))
    recipe = recipe.replace(**recipe_changes)
    if recipe.start and saved is None:
        model = hf.stored_config(recipe.start)
    written = window_to_write(model, recipe, saved)
    model = model.replace(**{"max_position_embeddings": written, **model_changes})
    if saved is not None:
        for given, stored in ((model, saved["model_config"]), (recipe, saved["config"])):
            # As JSON, which the state of several processes is: a tuple becomes a list.
            given, stored = (json.loads(json.dumps(each)) for each in (given.to_dict(), stored))
            for name, value in given.items():
                began = stored.get(name, value)      # an older run has fewer fields
                if value != began and name not in FREE:
                    refuse(name, began, value)
    depths, limit = model.num_nextn_predict_layers, model.max_position_embeddings
    if recipe.window <= depths:
        raise UserError(f"window={recipe.window} must be above num_nextn_predict_layers={depths}; "
                        "change one of them.")
    if recipe.window > limit:
        raise UserError(f"max_position_embeddings={limit} is below window={recipe.window}; leave "
                        f"it out, or choose at least {recipe.window}.")
    return model, recipe


def refuse(name, began, value):
    """UserError for what a resumed run cannot change."""
    raise UserError(f"--resume: the run began with {name}={began!r}, not {value!r}; leave that "
                    "out, or begin another with --out.")


def check_preset(name, changes, model, recipe):
    """UserError if another preset than the one named, with these changes, is nearer to a saved run.

    The run may have changed any field of its preset, so an exact one cannot be asked for.
    """
    if name is None:
        return
    fields = {**model.to_dict(), **recipe.to_dict()}
    apart = {}
    for preset in dict.fromkeys([name, *PRESETS]):
        its = {**ModelConfig.preset(preset).to_dict(), **TrainConfig.preset(preset).to_dict(),
               **changes}
        apart[preset] = sum(its[field] != value for field, value in fields.items()
                            if field not in (*FREE, "max_position_embeddings"))    # the window
    if min(apart.values()) < apart[name]:
        refuse("preset", min(apart, key=apart.get), name)


def where_it_was(saved):
    """The name of the text of a saved run, also in another working directory than it began in."""
    name = saved["config"]["data"]
    before = Path(saved.get("directory", ""), name)
    moved = before.exists() and before.resolve() != Path(name).resolve()
    return str(before) if moved else name


def window_to_write(model, recipe, saved):
    """The window that config.json will say if --set names none: the trained one.

    A run --from a checkpoint, whose config `model` is, never says less than that does. A resumed
    run says what it began with.
    """
    if saved is not None:
        return saved["model_config"]["max_position_embeddings"]
    before = model.max_position_embeddings if recipe.start else recipe.window
    if recipe.window > before:
        notice(f"window={recipe.window} is longer than the {before:,} tokens that {recipe.start} "
               "was trained on (max_position_embeddings); the new config.json says the longer one.")
    return max(before, recipe.window)
