"""How good a model is: bits per byte on unseen text, and how evenly its experts are loaded.

    python -m minidsv3.measure.evaluate runs/tiny                  the run's own validation text
    python -m minidsv3.measure.evaluate DIR --data my_texts/       all of another text
    python -m minidsv3.measure.evaluate DIR --tasks FILE.yaml      a task of lm-evaluation-harness
"""

import ast
import json
import math
import re
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .. import hf
from ..command import Parser, UserError, answer, notice
from ..data import corpus
from ..data.batches import IGNORE, raw_bytes, validation_windows
from ..data.foreign import read_tokenizer
from ..device import choose_device, send
from ..files import SHARED, STATE_FILE
from ..infer.text import complete
from ..model.layers import at_least_float32
from ..model.moe import hits
from .harness import run_tasks

TOKENS_AT_ONCE = 4096                            # per pass; no default window is longer


class Evaluation(NamedTuple):
    """Figures of a model over a set of windows."""

    bits_per_byte: float
    max_vio: list                                # per sparse block over all windows, MTP last
    mtp_agreement: float | None                  # share of drafts that are the main choice


@torch.inference_mode()
def evaluate(model, inputs, targets, raw_bytes, batch=None):
    """All figures of a model -> Evaluation.

    inputs, targets (W, T), with -100 where there is no target; raw_bytes is the size of the text
    that the targets cover.
    """
    device = model.embed_tokens.weight.device
    nats, agreed, compared = [], [], []          # one of each per batch, read once at the end
    loads = torch.zeros(len(model.routers()), model.config.n_routed_experts, dtype=torch.long,
                        device=device)                                 # (layers, E)
    for x, y in in_batches(inputs, targets, batch, device):
        hidden, routings = model.hidden_states(x)
        logits = model.lm_head(hidden)                                 # (B, T, V)
        nats.append(nats_of(logits, y))
        states, mtp_routings = model.mtp_states(hidden, x)
        seen = y != IGNORE                                             # the last window is padded
        # Depth k at index i predicts the token that the main model predicts at i+k.
        for k, state in enumerate(states, start=1):
            same = model.lm_head(state).argmax(-1) == logits[:, k:].argmax(-1)
            agreed.append((same & seen[:, k:]).sum())
            compared.append(seen[:, k:].sum())
        for load, routing in zip(loads, routings + mtp_routings, strict=True):
            k = seen.size(1) - routing.experts.size(1)
            load += (hits(routing.experts, len(load)) * seen[:, k:, None]).sum(dim=(0, 1))
    nats, agreed, compared = map(total, (nats, agreed, compared))
    return Evaluation(nats / math.log(2) / raw_bytes,
                      [round(v, 4) for v in max_violation(loads).tolist()],
                      round(agreed / compared, 4) if compared else None)


def max_violation(load):
    """MaxVio: the busiest expert's load over the mean, less 1: (..., E) -> (...), on the CPU.

    0 is balance.
    """
    load = load.cpu().double()
    mean = load.mean(dim=-1).clamp(min=1e-12)
    return load.amax(dim=-1) / mean - 1


@torch.inference_mode()
def bits_per_byte(model, inputs, targets, raw_bytes, batch=None):
    """The first figure of `evaluate`, computed without running the MTP modules."""
    device = model.embed_tokens.weight.device
    return total([nats_of(model(x), y) for x, y in in_batches(inputs, targets, batch, device)]
                 ) / math.log(2) / raw_bytes


def in_batches(inputs, targets, batch, device):
    """Pairs of (B, T) inputs and targets on the device; batch None: about TOKENS_AT_ONCE tokens."""
    batch = batch or max(1, TOKENS_AT_ONCE // inputs.size(1))
    for i in range(0, len(inputs), batch):
        yield send(inputs[i:i + batch], device), send(targets[i:i + batch], device)


def nats_of(logits, targets):
    """Summed -log p of the targets (B, T) under logits (B, T, V)."""
    return F.cross_entropy(at_least_float32(logits).flatten(0, 1), targets.flatten(),
                           ignore_index=IGNORE, reduction="sum")


def total(numbers):
    """The sum of one-element tensors, read from the device once."""
    return sum(torch.stack(numbers).tolist()) if numbers else 0


def parses_to_last_statement(text):
    """Whether Python text is valid up to its last complete top-level statement.

    A statement counts as complete if another one begins after it in the first column. The rest was
    cut off by the length limit and is not judged. False if no statement is complete.
    """
    lines = text.split("\n")
    for end in reversed(statement_starts(lines)[1:]):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")        # about invalid escapes in strings
                return bool(ast.parse("\n".join(lines[:end])).body)
        except SyntaxError as error:
            # A string or bracket is still open here: lines[end] continues it and is no start.
            if "triple-quoted" not in str(error) and "never closed" not in str(error):
                return False
        except (ValueError, RecursionError, MemoryError):      # a NUL; nested too deeply
            return False
    return False


def statement_starts(lines):
    """Indices of lines that may begin a top-level statement.

    Left out are lines that continue one, such as `else` and `)`, and the line after a decorator.
    """
    starts, decorated = [], False
    for i, line in enumerate(lines):
        if line[:1].strip() and line[0] not in ")]}#":
            word = re.match(r"\w*", line).group()
            if not decorated and word not in ("else", "elif", "except", "finally"):
                starts.append(i)
            decorated = line[0] == "@"
    return starts


# ---- the command ----

DEFAULT_DATA = "python-stdlib"


def share_that_parses(model, tokenizer, samples, length, prompt="def "):
    """The share of sampled completions (seeds 0, 1, ...) that `parses_to_last_statement`."""
    good = 0
    for seed in range(samples):
        pieces = complete(model, tokenizer, prompt, length, temperature=0.7, top_p=0.95, seed=seed)
        good += parses_to_last_statement(prompt + "".join(piece.text for piece in pieces))
    return good / samples


def documents_of(folder, data):
    """The documents to evaluate on, and a name for them.

    Of the text that the run was trained on, only the validation part; any other text is used whole.
    The text is known by its hash. A notice says if one of the same name has another, if the hash
    is not known, or if the text may hold a part of that other text.
    """
    recipe = folder / "train.json"
    trained_on = hf.read_json(recipe).get("data", "") if recipe.is_file() else ""
    if not isinstance(trained_on, str):
        raise UserError(f"{recipe} names data={trained_on!r}, which is not a text; add --data.")
    data = data or trained_on or DEFAULT_DATA
    loaded = corpus.load(data)
    known = hash_of_text(folder)
    named = trained_on and Path(data).resolve() == Path(trained_on).resolve()
    if named and known not in (None, loaded.sha256):
        notice(f"{data} is not the text that this model was trained on: its SHA-256 is another, "
               "so the model may have been trained on a part of these documents.")
        return corpus.split(loaded.documents)[1], f"validation part of {data}, not as in training"
    if named and known is None:
        notice(f"whether {data} is still the text that this model was trained on is not known: "
               f"neither summary.json nor {STATE_FILE} in {folder} has its SHA-256.")
    elif trained_on and known != loaded.sha256 and overlap(data, trained_on):
        notice(f"{data} has documents in common with {trained_on}, which this model was trained "
               "on; its figure may be too good.")
    if named or data == DEFAULT_DATA or known == loaded.sha256:
        return corpus.split(loaded.documents)[1], f"validation part of {data}"
    return loaded.documents, f"all of {data}"


def overlap(data, trained_on):
    """Whether one of two texts is a part of the other, by their names."""
    if {data, trained_on} == {"python-stdlib", "python-packages"}:
        return True
    one, other = Path(data).resolve(), Path(trained_on).resolve()
    return one.exists() and other.exists() and (one in other.parents or other in one.parents)


def hash_of_text(folder):
    """SHA-256 of the text that a run was trained on, or None if its folder does not tell."""
    shared = sorted((folder / SHARED).glob("step-*/run.json"))
    for path in (folder / "summary.json", *shared[-1:]):
        if path.is_file() and (known := hf.read_json(path).get("corpus_sha256")):
            return known
    with suppress(Exception):                    # there is no state, or none that can be read
        return torch.load(folder / STATE_FILE, weights_only=True, mmap=True)["corpus_sha256"]
    return None


def measure(arguments):
    """All figures of the checkpoint named on the command line, as a dict."""
    device = choose_device(arguments.device)
    folder = hf.locate(arguments.folder)
    model = hf.load(folder, device=device)
    window = arguments.window or min(TOKENS_AT_ONCE, model.config.max_position_embeddings)
    model.config.check_length(window)
    tokenizer = read_tokenizer(folder, model.config)
    documents, name = documents_of(folder, arguments.data)
    inputs, targets = validation_windows(documents, tokenizer, window)
    size = raw_bytes(documents)
    result = evaluate(model, inputs, targets, size)
    figures = {"data": name, "bytes": size, "tokens": int((targets != -100).sum()),
               "window": window, "dtype": str(model.norm.weight.dtype)[6:],
               "bits_per_byte": round(result.bits_per_byte, 4), "max_vio": result.max_vio,
               "mtp_agreement": result.mtp_agreement}
    if arguments.samples:
        figures["share_that_parses"] = share_that_parses(
            model, tokenizer, arguments.samples, arguments.length)
    return figures


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(prog="python -m minidsv3.measure.evaluate", description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="run or checkpoint, or a name on the hub")
    parser.add_argument("--data", metavar="PATH", help="a file, a folder, a URL or hf:NAME "
                        "[the validation part of the text that the run was trained on]")
    parser.add_argument("--tasks", type=Path, metavar="FILE.yaml", help="evaluate this task by "
                        "the lm-evaluation-harness, in place of the figures of minidsv3")
    parser.add_argument("--window", type=int, metavar="TOKENS",
                        help="longest context of a prediction [the window that the model was "
                        f"trained on, at most {TOKENS_AT_ONCE:,}]")
    parser.add_argument("--samples", type=int, default=20, metavar="N",
                        help="completions of \"def \" to parse as Python; 0: none [20]")
    parser.add_argument("--length", type=int, default=200, metavar="TOKENS",
                        help="length of each completion [200]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parsed = parser.parse_args(arguments)
    for name, least in (("window", 2), ("samples", 0), ("length", 1)):
        value = getattr(parsed, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value} must be at least {least}.")
    if parsed.tasks and parsed.data:
        raise UserError(f"--data {parsed.data}: the file of --tasks names the text; leave --data "
                        "out.")
    return parsed


def run(arguments):
    """Print the figures of a checkpoint -> exit code."""
    if arguments.tasks:
        results, table = run_tasks(hf.locate(arguments.folder), arguments.tasks,
                                   choose_device(arguments.device), arguments.window)
        print(json.dumps(results) if arguments.json else table)
        return 0
    figures = measure(arguments)
    if arguments.json:
        print(json.dumps(figures))
        return 0
    labels = {"bits_per_byte": "bits per byte", "max_vio": "MaxVio by layer",
              "mtp_agreement": "MTP draft = main choice", "share_that_parses": "samples that parse"}
    for key, value in figures.items():
        if value is None:                        # no drafts: 0 would say that they are bad
            continue
        text = f"{value:,}" if isinstance(value, int) else str(value).strip("[]")
        print(f"{labels.get(key, key):25}{text}")
    return 0


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
