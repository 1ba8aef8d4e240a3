"""Prefill and decoding on the CPU: ours, plain and with drafts, beside transformers.

    python benchmarks/decode.py                    the tiny model; some ten minutes on a laptop

All contenders have the same weights (ours in float32, saved and loaded into transformers) and the
same prompts. Prompts are windows of validation texts, because the acceptance of drafts depends on
the text. Decoding is greedy and ignores the end of text, so every run generates --new-tokens. In a
round each contender runs once in each cell (batch, context). The order rotates, so that a machine
that slows down slows all of them. Figures are medians over rounds; ratios are taken within a round,
and above 1 is faster.

Ours is what `generate` runs, with its bookkeeping. Prefill ends with the first token; it includes
allocating the cache and, with drafts, the MTP module's reading of the prompt. transformers gets a
bare loop over its model, without the overhead of its `generate`, and in each cell the fastest of
its settings, found by trial for prefill and decoding separately. use_mtp is its `generate`, which
drafts one token per module for a single sequence; its MTP layer is loaded once here, not in every
call.

Left out are compiled models, which need a compiler, static caches, which serve those, and GPUs.
"Same text" counts texts equal to those of ours without drafts; in float32 a near tie may be decided
either way. Beyond the window of its training (256 for tiny) a model's text gets worse, and fewer
drafts are accepted; the time of a pass does not change.
At the end, the absorption rule of `model/mla.py` is compared with measured times.
"""

import json
import random
import sys
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch
import transformers
from absorbing import MIDDLE, absorbing
from decoders import fastest, load_theirs, run_ours, run_theirs, run_with_mtp
from tqdm import tqdm
from train import machine, paired_ratio

from minidsv3 import hf
from minidsv3.command import Parser, UserError, answer
from minidsv3.data import corpus
from minidsv3.data.foreign import read_tokenizer
from minidsv3.device import choose_threads
from minidsv3.files import make_folder, refuse_files, write_text
from minidsv3.measure import plots
from minidsv3.measure.cost import cache_bytes

HERE = Path(__file__).resolve().parent
OURS, THEIRS, USE_MTP = "ours", "transformers", "transformers, use_mtp"
LOOKS = [(plots.GREEN, "s", "--"), (plots.PURPLE, "D", "-."), (plots.VERMILLION, "v", ":")]


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    many = {"type": int, "nargs": "+", "metavar": "N"}
    what = parser.add_argument_group("what")
    what.add_argument("--model", metavar="DIR", default=HERE.parent / "checkpoints/tiny",
                      help="checkpoint folder, with its tokenizer [checkpoints/tiny]")
    what.add_argument("--data", default="python-stdlib", metavar="SOURCE",
                      help="text whose validation part gives the prompts [python-stdlib]")
    what.add_argument("--contexts", default=[64, 2048], help="tokens per prompt [64 2048]", **many)
    what.add_argument("--batches", default=[1, 8], help="sequences at once [1 8]", **many)
    what.add_argument("--drafts", default=[1, 2], help="tokens that ours drafts [1 2]", **many)
    what.add_argument("--growth", default=[128, 512, 1024, 2048], help="contexts of one sequence, "
                      "to see how the time per token grows [128 512 1024 2048]", **many)
    how = parser.add_argument_group("how")
    how.add_argument("--rounds", type=int, default=5,
                     help="measured rounds, after one to warm up [5]")
    how.add_argument("--new-tokens", type=int, default=64, help="tokens after each prompt [64]")
    how.add_argument("--threads", type=int, help="CPU threads [torch's own choice]")
    how.add_argument("--seed", type=int, default=0, help="chooses the prompts [0]")
    how.add_argument("--out", default=HERE / "results", metavar="DIR",
                     help="folder for decode.json and decode.png [benchmarks/results]")
    return parser.parse_args(arguments)


def check(arguments, config):
    """Raise UserError now for settings that would fail only after minutes."""
    for name, given in vars(arguments).items():
        least = {"new_tokens": 2, "seed": 0}.get(name, 1)
        for number in given if isinstance(given, list) else [given]:
            if isinstance(number, int) and number < least:
                raise UserError(f"--{name.replace('_', '-')} must be at least {least}, "
                                f"got {number}.")
    config.check_length(max(arguments.contexts + arguments.growth) + arguments.new_tokens)
    refuse_files(Path(arguments.out))


def windows(documents, context, seed):
    """All whole windows of the documents, shuffled: (N, context). UserError if there is none."""
    found = [tokens[start:start + context] for tokens in documents
             for start in range(0, len(tokens) - context + 1, context)]
    if not found:
        raise UserError(f"no validation text has {context} tokens, the longest has "
                        f"{max(map(len, documents))}; shorten --contexts and --growth.")
    return torch.tensor(random.Random(seed).sample(found, len(found)))


def measure(cells, prompts, rounds, new):
    """{(batch, context): {name: contender}} -> the same keys, with a list of one Run per round."""
    runs = {cell: {name: [] for name in entries} for cell, entries in cells.items()}
    for number in tqdm(range(-1, rounds), desc="rounds", dynamic_ncols=True):
        for (batch, context), entries in cells.items():
            rows = torch.arange(number * batch, (number + 1) * batch) % len(prompts[context])
            first = number % len(entries)
            for name in [*entries, *entries][first:first + len(entries)]:
                run = entries[name](prompts[context][rows], new)
                if number >= 0:                  # the round before warms up
                    runs[batch, context][name].append(run)
    return runs


def figures(runs, name, batch, new):
    """The figures of one contender in a cell; runs has the runs of all contenders there."""
    mine = runs[name]
    steps = [run.decode / (new - 1) for run in mine]

    def faster_than(other, half):
        return round(paired_ratio([getattr(run, half) for run in runs[other]],
                                  [getattr(run, half) for run in mine]), 3)

    kept, tried = ([sum(column) for column in zip(*(getattr(run, what) for run in mine))]
                   for what in ("accepted", "tried"))
    return {
        "prefill_ms": round(1000 * median(run.prefill for run in mine), 3),
        "prefill_to_transformers": faster_than(THEIRS, "prefill"),
        "ms_per_token": round(1000 * median(steps), 4),
        "tokens_per_s": round(batch / median(steps), 1),
        "to_transformers": faster_than(THEIRS, "decode"), "to_plain": faster_than(OURS, "decode"),
        "cache_bytes": mine[0].cache,
        "tokens_per_pass": round(len(mine) * (new - 1) / sum(run.passes for run in mine), 3),
        "acceptance": [round(k / max(1, t), 4) for k, t in zip(kept, tried)],
        "same_text": sum(text == plain for run, other in zip(mine, runs[OURS])
                         for text, plain in zip(run.texts, other.texts)),
        "texts": batch * len(mine), "rounds_ms_per_token": [round(1000 * s, 4) for s in steps]}


def table(cells):
    """The figures of all cells as an aligned table."""
    rows = [["batch", "context", "", "prefill ms", "to tr.", "ms/token", "tokens/s", "to tr.",
             "to plain", "cache kB", "tokens/pass", "accepted", "same text"]]
    for (batch, context), cell in cells.items():
        for name, f in cell.items():
            rows.append([
                f"{batch}", f"{context:,}", name, f"{f['prefill_ms']:,.1f}",
                f"{f['prefill_to_transformers']:.2f}", f"{f['ms_per_token']:.2f}",
                f"{f['tokens_per_s']:,.0f}", f"{f['to_transformers']:.2f}", f"{f['to_plain']:.2f}",
                f"{f['cache_bytes'] / 1000:,.0f}", f"{f['tokens_per_pass']:.2f}",
                " ".join(f"{share:.0%}" for share in f["acceptance"]) or "-",
                f"{f['same_text']}/{f['texts']}"])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(f"{text:{'<' if i == 2 else '>'}{widths[i]}}"
                               for i, text in enumerate(row)) for row in rows)


def remarks(results):
    """Yield the results that are not in the table, line by line."""
    contexts, growth = results["growth"]["contexts"], results["growth"]["percent"]
    yield (f"time per token, from context {contexts[0]:,} to {contexts[-1]:,}: "
           + "; ".join(f"{name} {percent:+.0f} %" for name, percent in growth.items()))
    size = results["cache_bytes_per_token"]
    yield (f"cache per token [bytes]: {size['mla']:,}, with drafts {size['mla_with_mtp']:,}, "
           f"expanded it would be {size['expanded']:,}")
    for name, f in results["absorbing"].items():
        pairs = zip(f["new_tokens"], f["absorbed_ms"], f["expanded_ms"])
        yield (f"attention of {name}, {f['cached']:,} cached, absorbed / expanded [ms]: "
               + ", ".join(f"T={T} {a:.2f} / {e:.2f}" for T, a, e in pairs)
               + f"; expanding wins from T={f['by_clock']} by the clock, {f['by_count']} by count")


@plots.style()
def figure(cells):
    """Time per token against context for one sequence, one line per contender."""
    mine = {context: cell for (batch, context), cell in cells.items() if batch == 1}
    contexts, looks, ends = sorted(mine), iter(LOOKS * 9), []
    picture, ax = plots.canvas()
    for name in mine[contexts[0]]:
        known = {OURS: (plots.OURS, "o", "-"), THEIRS: (plots.BASELINE, "^", "-")}
        color, marker, line = known.get(name) or next(looks)
        ends += ax.plot(contexts, [mine[context][name]["ms_per_token"] for context in contexts],
                        color=color, marker=marker, linestyle=line, label=name)
    ax.set_xscale("log", base=2)
    ax.set_xticks(contexts, [f"{context:,}" for context in contexts])
    ax.set_ylim(0, 1.15 * ax.get_ylim()[1])      # space for the labels of lines that end high
    ratio = mine[contexts[-1]][OURS]["to_transformers"]
    ax.set_title(f"At context {contexts[-1]:,} ours decodes {ratio:.1f} times as fast as "
                 "transformers", loc="left")
    ax.set_xlabel("context [tokens, log scale]")
    ax.set_ylabel("decoding [ms per token]")
    plots.label_ends(ax, ends)
    return picture


def prepare(arguments, ours, shapes):
    """Prompts {context: (N, context)}, and {cell: (settings, contenders in the table's order)}."""
    tokenizer = read_tokenizer(hf.locate(arguments.model), ours.config)
    _, validation = corpus.split(corpus.load(arguments.data).documents)
    documents = [tokenizer.encode_prompt(document.text) for document in validation]
    prompts = {context: windows(documents, context, arguments.seed) for _, context in shapes}
    (theirs, module), cells = load_theirs(ours), {}
    for batch, context in tqdm(shapes, desc="settings of transformers", dynamic_ncols=True):
        best = fastest(theirs, prompts[context][:batch], min(8, arguments.new_tokens))
        entries = {OURS: partial(run_ours, ours, 0)}
        for k in arguments.drafts if ours.mtp else []:
            entries[f"{OURS}, {k} draft{'s' * (k > 1)}"] = partial(run_ours, ours, k)
        entries[THEIRS] = partial(run_theirs, theirs, best)
        if module is not None and batch == 1:
            entries[USE_MTP] = partial(run_with_mtp, theirs, module, best)
        cells[batch, context] = best, entries
    return prompts, cells


def in_words(model):
    """The name of a model; inside the repository its path does not show where that is."""
    path, root = Path(model).resolve(), HERE.parent
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(model)


def run(arguments):
    """Measure all cells, print and write the results."""
    check(arguments, hf.stored_config(arguments.model))
    choose_threads(arguments.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    ours, new, rounds = hf.load(arguments.model, torch.float32), arguments.new_tokens, \
        arguments.rounds
    contexts, out = sorted(arguments.growth), Path(arguments.out)
    shapes = sorted({*product(arguments.batches, arguments.contexts), *product([1], contexts)})
    prompts, cells = prepare(arguments, ours, shapes)
    make_folder(out)
    runs = measure({cell: entries for cell, (_, entries) in cells.items()}, prompts, rounds, new)
    found = {cell: {name: figures(runs[cell], name, cell[0], new) for name in runs[cell]}
             for cell in shapes}
    ends = [found[1, context] for context in (contexts[-1], contexts[0])]
    growth = {name: paired_ratio(*(end[name]["rounds_ms_per_token"] for end in ends))
              for name in ends[0]}
    attention = partial(absorbing, cached=max(arguments.contexts), counts=[1, 4, 16, 64, 256],
                        rounds=rounds)
    results = {
        "machine": {**machine(torch.device("cpu")), "transformers": transformers.__version__},
        "command": " ".join(sys.argv), "model": in_words(arguments.model),
        "dtype": "float32",
        "rounds": rounds, "new_tokens": new, "seed": arguments.seed,
        "cells": [{"batch": batch, "context": context, "contenders": found[batch, context],
                   "settings": dict(zip(("prefill", "decode"), cells[batch, context][0]))}
                  for batch, context in shapes],
        "growth": {"contexts": contexts, "percent": {name: round(100 * (ratio - 1), 1)
                                                     for name, ratio in growth.items()}},
        "cache_bytes_per_token": cache_bytes(ours.config, 4),
        "absorbing": {"this model": attention(ours.config), "a middle size": attention(MIDDLE)}}
    write_text(out / "decode.json", json.dumps(results, indent=2) + "\n")
    plots.save(figure(found), out / "decode.png")
    print("", table(found), "", *remarks(results), sep="\n")
    print(f"\nwrote {out / 'decode.json'} and {out / 'decode.png'}")


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
