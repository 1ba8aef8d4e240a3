"""What does extending the window gain, and which part of it? The report's section 4.3, in small.

    python -m minidsv3.study.long_context --seeds 3 --jobs 2    all of it, hours
    python -m minidsv3.study.long_context --reduced             one seed, no ablations: 15 minutes

For each seed a model of preset `short` is trained with a window of 64 tokens, and extended to 512
and then to 2,048 tokens (`context/extend.py`). Four models are measured:

    before            trained at 64 tokens, plain rotary positions
    yarn_untrained    the same weights, with YaRN switched on
    phase1, phase2    after training with 512, and then with 2,048 tokens

Measured are notes found (`context/needle.py`), bits per byte of the validation text in windows of
64 tokens, and bits per byte of the same tokens after contexts of 64 to 2,560 tokens
(`context/position.py`). Four ablations, of the first seed alone, leave out one part each:

    plain             both phases without YaRN
    one_phase         2,048 tokens at once, as many steps as both phases together
    no_notes          both phases without retrieval text
    no_mscale         YaRN without its temperature

Models are run folders in --models; a model that is finished is not trained again. Figures are files
in OUT/runs; those that exist are kept. So an interrupted study can be continued, with equal steps,
trials and text.
"""

import json
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from .. import hf
from ..command import Parser, UserError, answer
from ..config import ModelConfig
from ..context import needle, position
from ..context.extend import GROWTH, STEPS, phase_recipe, yarn
from ..context.needle import LENGTHS
from ..data import corpus
from ..data.batches import raw_bytes, validation_windows
from ..data.foreign import read_tokenizer
from ..device import choose_threads
from ..files import write_text
from ..measure.evaluate import bits_per_byte
from ..model.transformer import DeepSeekV3
from ..train.recipe import TrainConfig
from .compare import claim
from .long_context_results import ABLATIONS, HARD, MAIN, as_markdown, draw, summarise
from .pool import run_all, train

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


# ---- training ----

def train_phases(start, folders, growths, steps, scaled=yarn, **changes):
    """Extend the model in `start`, one folder for each growth of its window.

    scaled: makes the YaRN setting from (window, longest); changes: of the recipe.
    """
    config, recipe = hf.read_config(start), TrainConfig(**hf.read_json(start / "train.json"))
    window = recipe.window
    scaling = scaled(window, growths[-1] * window)
    for folder, growth in zip(folders, growths, strict=True):
        longer = config.replace(rope_scaling=scaling, max_position_embeddings=growth * window)
        phase = phase_recipe(recipe, growth * window, steps).replace(start=str(start), **changes)
        train(longer, phase, folder)
        start = folder


def without_mscale(window, longest):
    """YaRN's frequencies without its temperature."""
    # Equal weights cancel on cos and sin, and one so small does nothing to the softmax.
    return replace(yarn(window, longest), mscale=1e-9, mscale_all_dim=1e-9)


def train_short(seed, steps, models, threads):
    """The model of a seed before extension."""
    choose_threads(threads)
    recipe = TrainConfig.preset("short").replace(seed=seed, steps=steps)
    train(ModelConfig.preset("short"), recipe, models / f"short-{seed}")


def extend_and_measure(name, seed, steps, trials, tasks, models, out, threads):
    """One task of the second round: the main models of a seed, or an ablation -> files in OUT/runs.

    steps: of each phase.
    """
    choose_threads(threads)
    short, place = models / f"short-{seed}", models / f"{name}-{seed}"
    folders = [place / "phase1", place]
    match name:
        case "main" | "plain" | "no_mscale":
            scaled = {"main": yarn, "plain": no_scaling, "no_mscale": without_mscale}[name]
            train_phases(short, folders, GROWTH, steps, scaled)
        case "one_phase":
            train_phases(short, folders[1:], GROWTH[1:], 2 * steps)
        case "no_notes":
            train_phases(short, folders, GROWTH, steps, retrieval=0.0)
    sources = {"before": short, "yarn_untrained": short, "phase1": place / "phase1"}
    for each, path in files_of(name, seed, out).items():
        if not path.exists():
            source = sources.get(each, place)
            model = hf.load(source)
            if each == "yarn_untrained":
                model = with_yarn(model)
            hard = each in HARD and not seed
            figures = measure(model, source, trials, tasks if hard else tasks[:1])
            trained = hf.read_json(source / "summary.json")
            write_text(path, json.dumps({"model": each, "seed": seed, **figures, "trained_s":
                                         0 if each == "yarn_untrained" else trained["seconds"],
                                         "steps": trained["steps"]}) + "\n")


def files_of(name, seed, out):
    """{model: the file of its figures} of one task of the second round."""
    return {each: out / "runs" / f"{each}-{seed}.json"
            for each in (MAIN if name == "main" else [name])}


def no_scaling(window, longest):
    """Plain rotary positions, as before extension."""
    return None


def with_yarn(model):
    """The same weights under the YaRN setting of both phases."""
    window = model.config.max_position_embeddings
    stretched = DeepSeekV3(model.config.replace(rope_scaling=yarn(window, GROWTH[-1] * window),
                                                max_position_embeddings=GROWTH[-1] * window))
    stretched.load_state_dict(model.state_dict())
    return stretched.eval()


# ---- measuring ----

def measure(model, folder, trials, tasks):
    """All figures of a model: maps, bits per byte inside the window, bits by position."""
    begin, tokenizer = time.perf_counter(), read_tokenizer(folder, model.config)
    yarn_setting = model.config.rope_scaling
    window = (yarn_setting.original_max_position_embeddings if yarn_setting
              else ModelConfig.preset("short").max_position_embeddings)
    documents = needle.unseen_documents()
    text = needle.ids_of(documents, tokenizer)
    lengths = [times * window for times in LENGTHS]
    inputs, targets = validation_windows(documents, tokenizer, window)
    return {"window": window, "lengths": lengths, "depths": DEPTHS, "trials": trials,
            "maps": {task: needle.grid(model, tokenizer, lengths, DEPTHS, trials, 0, task, text)
                     for task in tasks},
            "bits_per_byte_inside": bits_per_byte(model, inputs, targets, raw_bytes(documents)),
            "bits_by_position": position.bits_by_position(model, tokenizer, text, lengths),
            "measured_s": round(time.perf_counter() - begin, 1), "torch": torch.__version__,
            "python": platform.python_version()}


# ---- the command ----

def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(prog="python -m minidsv3.study.long_context", description=__doc__)
    parser.add_argument("--seeds", type=int, help="models of each kind [3]")
    parser.add_argument("--steps", type=int, help="before extension [that of preset short]")
    parser.add_argument("--phase-steps", type=int, help=f"of each phase [{STEPS}]")
    parser.add_argument("--trials", type=int, help="of each cell of a map [20]")
    parser.add_argument("--reduced", action="store_true", help="one seed, half the steps of a "
                        "phase and half the trials, one task, no ablations")
    parser.add_argument("--out", type=Path, help="results [studies/long-context; reduced: "
                        "runs/long-context-reduced]")
    parser.add_argument("--models", type=Path, help="run folders [runs/long-context; reduced: "
                        "runs/long-context-reduced/models]")
    parser.add_argument("--jobs", type=int, help="models at once; with more "
                        "than one, each has one thread [1]")
    parsed = parser.parse_args(arguments)
    share = 2 if parsed.reduced else 1
    for name, usual in (("seeds", 3), ("steps", TrainConfig.preset("short").steps),
                        ("phase_steps", STEPS // share), ("trials", 20 // share), ("jobs", 1)):
        if getattr(parsed, name) is None:
            setattr(parsed, name, usual)
        if getattr(parsed, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(parsed, name)} must be at "
                            "least 1.")
    reduced = Path("runs/long-context-reduced")
    if parsed.out is None:
        parsed.out = reduced if parsed.reduced else Path("studies/long-context")
    if parsed.models is None:
        parsed.models = reduced / "models" if parsed.reduced else Path("runs/long-context")
    return parsed


def run(arguments):
    """Train, measure, and write results.json and the pictures -> exit code."""
    seeds, ablations, tasks = range(arguments.seeds), ABLATIONS, needle.TASKS
    if arguments.reduced:
        seeds, ablations, tasks = range(1), (), needle.TASKS[:1]
    training = {"steps": arguments.steps, "phase_steps": arguments.phase_steps,
                "corpus_sha256": corpus.load(TrainConfig.preset("short").data).sha256}
    claim(arguments.out, training | {"trials": arguments.trials})
    (arguments.out / "runs").mkdir(exist_ok=True)
    asked = [("main", seed) for seed in seeds] + [(name, 0) for name in ablations]
    extensions = [each for each in asked
                  if not all(path.exists() for path in files_of(*each, arguments.out).values())]
    print(f"{len(extensions)} of {len(asked)} extensions are missing in {arguments.out}",
          flush=True)
    if extensions:
        claim(arguments.models, training, "--models")
    threads = 1 if arguments.jobs > 1 else None
    run_all(train_short, [(seed, arguments.steps, arguments.models, threads)
                          for seed in sorted({seed for _, seed in extensions})], arguments.jobs)
    run_all(extend_and_measure, [(*each, arguments.phase_steps, arguments.trials, tasks,
                                  arguments.models, arguments.out, threads)
                                 for each in extensions],
            arguments.jobs)
    runs = {}
    for path in sorted((arguments.out / "runs").glob("*.json")):
        figures = hf.read_json(path)
        runs[figures["model"], figures["seed"]] = figures
    results = summarise(runs)
    write_text(arguments.out / "results.json", json.dumps(results, indent=1) + "\n")
    draw(runs, results, arguments.out)
    print(as_markdown(results))
    print(f"wrote {arguments.out}: runs/, results.json, maps.png, position.png")
    return 0


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(parse_arguments(arguments)), unread=True)


if __name__ == "__main__":
    sys.exit(main())
