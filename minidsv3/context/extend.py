"""Extend the window of a finished run in two short phases, with YaRN (report, section 4.3).

    python -m minidsv3.context.extend runs/short                 to runs/short-extended
    python -m minidsv3.context.extend runs/short --minutes 10    as many steps as fit
    python -m minidsv3.context.extend runs/short --resume        go on after Ctrl-C

The report grows 4K to 32K and to 128K: 8 times the window, then 4 times that. Each phase has 1,000
steps at the last learning rate of pre-training, with as many tokens a step as before; YaRN is set
once, for both phases. The same ratios are the default here. Weights come from the run; optimisers
begin anew. MTP keeps its late weight, and the router biases stay as they are, as at the end of
pre-training; the report does not say this.

OUT is a run folder like any other, that of the second phase; OUT/phase1 is that of the first.
OUT/lineage.json names the run that they come from, its weights' SHA-256, and the plan.
"""

import hashlib
import json
import math
import sys
import time
from pathlib import Path

from .. import hf
from ..command import Parser, UserError, answer, command_line
from ..config import ModelConfig, RopeScaling
from ..data.foreign import read_tokenizer
from ..device import BEGIN, choose_device, choose_threads
from ..files import replacing
from ..train.checkpoint import RunFolder
from ..train.options import check_minutes, where_it_was
from ..train.owner import owned
from ..train.pace import TooFewMinutes, plan_steps
from ..train.prepare import make_trainer
from ..train.recipe import TrainConfig
from ..train.report import run_and_report

GROWTH = (8, 32)                                 # of the window, after each phase
MARGIN = 40 / 32                                 # of YaRN's factor over the last growth
SHARES = (0.4, 0.6)                              # of --minutes; steps with long windows are slower
STEPS = 200                                      # of each phase; the report: 1,000


def yarn(window, longest):
    """YaRN's settings as in the report, to stretch a window to the longest one [tokens].

    The report stretches 4,096 tokens by 40 to train 32 times as many. This margin helps the last
    positions.
    """
    return RopeScaling(factor=MARGIN * longest / window, original_max_position_embeddings=window,
                       beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0)


def phase_recipe(recipe, window, steps):
    """The recipe of a phase: longer windows, as many tokens per step, the last learning rate."""
    batch = max(1, recipe.batch_size * recipe.window // window)
    at_once = max(1, recipe.micro_batch * recipe.window // window)
    return recipe.replace(
        window=window, steps=steps, batch_size=batch, batch_start=batch,
        micro_batch=min(batch, at_once),
        learning_rate=recipe.learning_rate * recipe.last_rate,
        muon_learning_rate=recipe.muon_learning_rate * recipe.last_rate,
        warmup=0.0, constant_until=1.0, cosine_until=1.0, last_from=1.0,
        mtp_weight=recipe.mtp_weight_late, gamma=0.0)


# ---- the command ----

def read_run(folder):
    """A finished run that is not extended yet -> its ModelConfig and TrainConfig, or UserError."""
    if not (folder / "summary.json").is_file():
        what = "an unfinished run" if (folder / "state.pt").is_file() else "no run"
        raise UserError(f"{folder} is {what}; give the folder of a finished run of train_tiny.py.")
    config = hf.stored_config(folder)
    if config.rope_scaling is not None:
        raise UserError(f"{folder} is already extended to {config.max_position_embeddings} tokens; "
                        "give the run that it came from.")
    read_tokenizer(folder, config)               # UserError if it belongs to another model
    return config, TrainConfig().replace(**hf.read_json(folder / "train.json"))


def make_plan(arguments):
    """The content of lineage.json; UserError if the run cannot be extended as asked."""
    source = Path(arguments.folder)
    _, recipe = read_run(source)
    window = recipe.window
    windows = arguments.windows or [growth * window for growth in GROWTH]
    if not window < windows[0] < windows[1]:
        raise UserError(f"--windows {windows[0]} {windows[1]} must rise from the run's window of "
                        f"{window}; the report's ratios are {GROWTH[0] * window} "
                        f"{GROWTH[1] * window}.")
    return {"from": str(source), "weights_sha256": fingerprint(source), "window": window,
            "windows": windows, "steps": arguments.steps or STEPS, "minutes": arguments.minutes,
            "data": arguments.data or recipe.data}


def read_plan(arguments, out):
    """The lineage.json of an extension to resume; UserError if something has changed since."""
    path = out / "lineage.json"
    if not path.is_file():
        raise UserError(f"nothing to resume: {path} does not exist; leave out --resume.")
    if (out / "summary.json").exists():
        raise UserError(f"the extension in {out} is finished; make another with --out.")
    plan = hf.read_json(path)
    for name in ("windows", "steps", "minutes"):
        given = getattr(arguments, name)
        if given not in (None, plan[name]):
            raise UserError(f"--resume: the extension began with {name}={plan[name]}, not {given}; "
                            "leave that out, or begin another with --out.")
    if fingerprint(Path(arguments.folder)) != plan["weights_sha256"]:
        raise UserError(f"--resume: the extension in {out} is of {plan['from']}, and the weights "
                        f"in {arguments.folder} are others; name that run as it was, or begin "
                        "anew with --overwrite.")
    # Run and text may have moved: the weights are known by their hash, the text by that of a phase.
    return plan | {"from": arguments.folder, "named": arguments.data,
                   "data": arguments.data or plan["data"]}


def fingerprint(folder):
    """SHA-256 of a run's weights, in hexadecimal. UserError if there are none."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing; give the folder of a finished run of train_tiny.py.")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_phase(plan, number, folder, saved, start, device):
    """The Trainer of phase 1 or 2, from the weights in `start` or from its own saved state."""
    if saved:
        recipe = TrainConfig().replace(**saved["config"])
        recipe = recipe.replace(data=plan["named"] or where_it_was(saved))
        return make_trainer(ModelConfig.from_dict(saved["model_config"]), recipe, folder, device,
                            saved)
    config, recipe = read_run(Path(plan["from"]))
    window = plan["windows"][number - 1]
    config = config.replace(rope_scaling=yarn(plan["window"], plan["windows"][-1]),
                            max_position_embeddings=window)
    recipe = phase_recipe(recipe.replace(data=plan["data"], start=str(start)), window,
                          plan["steps"])
    return make_trainer(config, recipe, folder, device)


def check_text(plan, number, data, start):
    """UserError if the text of a phase is shorter than the longest window, or not that of phase 1.

    start: the folder with the weights that the phase begins with.
    """
    if number == 2 and (
            hf.read_json(Path(start) / "summary.json")["corpus_sha256"] != data.sha256):
        raise UserError(f"the text {plan['data']!r} is not the one of phase 1; bring that back, or "
                        "name it with --data.")
    longest, tokens = plan["windows"][-1], data.batches.tokens_per_epoch
    if tokens < longest:
        raise UserError(f"the training text {plan['data']!r} has about {tokens:,} tokens, fewer "
                        f"than one window of {longest:,}; give more text with --data, or shorter "
                        "--windows.")


def begin_extension(plan, out):
    """Write lineage.json; what an older extension left in OUT goes only now, and before it.

    Otherwise, after a kill, --resume would take an old phase for one of this plan.
    """
    path = out / "lineage.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8", newline="\n")
        for old in (path, out / "summary.json", out / "state.pt"):
            old.unlink(missing_ok=True)


def steps_in_time(trainer, plan, number, begin):
    """How many steps fit into a phase's share of --minutes."""
    share, minutes = SHARES[number - 1], plan["minutes"]
    try:
        return plan_steps(trainer, share * minutes, begin)
    except TooFewMinutes as error:
        raise UserError(f"--minutes {minutes:g} leave no time to train: phase {number} has "
                        f"{share:.0%} of them; give at least "
                        f"{math.ceil(10 * error.least / share) / 10}.") from None


def run_phase(plan, number, folder, start, device, resume, begin):
    """Train phase 1 or 2 in its folder, from the weights in `start` or on -> exit code."""
    resume = resume and (folder / "state.pt").exists()
    if resume and (folder / "summary.json").exists():
        return 0
    out = folder if number == 2 else folder.parent
    run_folder = RunFolder(folder, resume, overwrite=True)
    saved = run_folder.load_state() if resume else None
    trainer = make_phase(plan, number, run_folder, saved, start, device)
    check_text(plan, number, trainer.data, start)
    if plan["minutes"] and not resume:
        steps = steps_in_time(trainer, plan, number, begin)
        trainer.set_recipe(trainer.config.replace(steps=steps))
    if number == 1 and not resume:
        trainer.write_recipe()                   # an older phase 1 goes when this one can begin
        begin_extension(plan, out)
    recipe = trainer.config
    print(f"phase {number} of 2: {recipe.steps:,} steps of {recipe.batch_size} windows of "
          f"{recipe.window:,} tokens; output in {folder}", flush=True)
    return run_and_report(trainer, command_line(
        "python", "-m", "minidsv3.context.extend", plan["from"], "--out", out, "--resume"))


def run(arguments, begin):
    """Both phases, the second from the first, in folders that no other run uses -> exit code."""
    device = choose_device(arguments.device)
    choose_threads(arguments.threads)
    source = Path(arguments.folder)
    out = Path(arguments.out or source.with_name(source.resolve().name + "-extended"))
    folders = [out / "phase1", out]
    if source.resolve() in [folder.resolve() for folder in folders]:
        raise UserError(f"--out {out} would replace the run itself; name another folder.")
    with owned(out), owned(folders[0]):
        return run_phases(arguments, out, folders, device, begin)


def run_phases(arguments, out, folders, device, begin):
    """Train phase 1 in the first folder and phase 2 in the second, or on -> exit code."""
    if arguments.resume:
        plan = read_plan(arguments, out)
    else:
        plan = make_plan(arguments)
        for folder in folders:                   # UserError if one of them holds a run
            RunFolder(folder, overwrite=arguments.overwrite)
    start = plan["from"]
    for number, folder in enumerate(folders, start=1):
        code = run_phase(plan, number, folder, start, device, arguments.resume, begin)
        if code:
            return code
        start, begin = folder, time.perf_counter()
    print("next: " + command_line("python", "-m", "minidsv3.context.needle", out))
    return 0


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(prog="python -m minidsv3.context.extend", description=__doc__)
    parser.add_argument("folder", metavar="RUN_DIR", help="a finished run of train_tiny.py")
    parser.add_argument("--windows", type=int, nargs=2, metavar="TOKENS", help="after each phase "
                        f"[{GROWTH[0]} and {GROWTH[1]} times the run's]")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--steps", type=int, help=f"of each phase [{STEPS}]")
    either.add_argument("--minutes", type=float, metavar="M", help="as many steps as this machine "
                        "makes in about M minutes")
    parser.add_argument("--data", help="other text than the run's, as for train_tiny.py")
    parser.add_argument("--out", metavar="DIR", help="run folder [RUN_DIR-extended]")
    old = parser.add_mutually_exclusive_group()
    old.add_argument("--resume", action="store_true", help="go on with the extension in --out")
    old.add_argument("--overwrite", action="store_true", help="replace the extension in --out")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads [one per core]")
    parsed = parser.parse_args(arguments)
    if parsed.steps is not None and parsed.steps < 1:
        raise UserError(f"--steps {parsed.steps} must be at least 1.")
    check_minutes(parsed.minutes)
    return parsed


def main(arguments=None, begin=None):
    """Run; bad input ends in one line and exit code 2, a loss that diverged in 1."""
    begin = time.perf_counter() if begin is None else begin
    return answer(lambda: run(parse_arguments(arguments), begin), unread=True)


if __name__ == "__main__":
    sys.exit(main(begin=BEGIN))
