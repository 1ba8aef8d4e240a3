"""Traces: which experts a model chose for which tokens, recorded from outside.

    with record(model) as trace:                 off by default; the model does not know of it
        model(tokens)                            training, evaluation or generation
    trace.read()                                 (N, layers, K): one read from the device

    python -m minidsv3.serve.traces checkpoints/tiny        runs/traces/tiny.npz

The command records the trained model on three kinds of text, all from the standard library of your
Python: code, prose (help texts and docstrings) and tables (of character sets). Experts specialise,
so their loads differ between kinds of text; `study/redundancy.py` moves from one to the other.
"""

import ast
import sys
import sysconfig
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from .. import hf
from ..command import Parser, UserError, answer, check_out
from ..data.foreign import read_tokenizer
from ..files import replacing
from ..model.moe import Router

KINDS = ("code", "prose", "tables")


class Trace:
    """The experts that routers chose, in the order of the passes; still on the device."""

    def __init__(self, layers, experts):
        self.experts = experts
        self.chosen = [[] for _ in range(layers)]          # of each sparse block: [(N, K), ...]

    def read(self):
        """All of it as one array (N, layers, K) on the CPU; the trace begins anew.

        MTP modules see fewer positions of each sequence than the main model; the last ones of the
        others are cut off.
        """
        layers = [torch.cat(passes) for passes in self.chosen if passes]
        self.chosen = [[] for _ in self.chosen]
        length = min(map(len, layers), default=0)
        stacked = torch.stack([layer[:length] for layer in layers], dim=1) if layers else (
            torch.zeros(0, 0, 0, dtype=torch.long))
        return stacked.cpu().numpy().astype(np.uint8 if self.experts <= 256 else np.uint16)


@contextmanager
def record(model):
    """A Trace of all routers while this lasts. Blocks that are computed again count once."""
    routers = [module for module in model.modules() if isinstance(module, Router)]
    trace = Trace(len(routers), model.config.n_routed_experts)

    def hook(index):
        def note(module, inputs, output):
            if torch._C._current_graph_task_id() == -1:    # not inside a backward pass
                trace.chosen[index].append(output[1].experts.flatten(0, -2))
        return note

    handles = [router.register_forward_hook(hook(index)) for index, router in enumerate(routers)]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def loads(trace, experts, tokens=None):
    """Tokens of each expert: a trace (N, layers, K) -> (layers, E).

    tokens: count every so many tokens apart -> (steps, layers, E).
    """
    if tokens:
        whole = trace[:len(trace) // tokens * tokens].reshape(-1, tokens, *trace.shape[1:])
        return np.stack([loads(step, experts) for step in whole])
    return np.stack([np.bincount(trace[:, layer].ravel(), minlength=experts)
                     for layer in range(trace.shape[1])])


def read_trace(path):
    """What the command has written -> {kind: (N, layers, K)}, number of experts."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {kind: stored[kind] for kind in KINDS}, int(stored["experts"])
    except (ValueError, TypeError, KeyError, EOFError, BadZipFile):    # another file, or half of it
        raise UserError(f"{path} holds no traces; make it with python -m minidsv3.serve.traces "
                        "DIR --out FILE.") from None


# ---- three kinds of text ----

def text_of(kind):
    """Text of that kind from the standard library; the same on every machine with this Python."""
    library = Path(sysconfig.get_paths()["stdlib"])
    if kind == "tables":
        return "".join(source(path) for path in sorted((library / "encodings").glob("cp*.py")))
    modules = [path for folder in ("asyncio", "json", "email", "http", "unittest")
               for path in sorted((library / folder).glob("*.py"))]
    if kind == "code":
        return "".join(source(path) for path in modules)
    topics = source(library / "pydoc_data/topics.py")
    texts = ast.literal_eval(ast.parse(topics).body[0].value)
    return "\n\n".join(texts[name] for name in sorted(texts))


def source(path):
    """A file of the standard library as text."""
    return path.read_text(encoding="utf-8", errors="replace")


def windows_of(model, tokenizer, kind, tokens):
    """So many tokens of one kind of text, less what does not fill a window: (N/T, T)."""
    window = min(256, model.config.max_position_embeddings)
    if tokens < window:
        raise UserError(f"--tokens {tokens} is less than one window of {window}; give more.")
    ids = tokenizer.encode(text_of(kind)[:8 * tokens])
    if len(ids) < tokens:
        raise UserError(f"--tokens {tokens} is more than the {len(ids)} tokens of {kind} in the "
                        "standard library; give fewer.")
    return torch.tensor(ids[:tokens // window * window]).view(-1, window)


def trace_of(model, tokenizer, kind, tokens):
    """The trace of so many tokens of one kind of text: (N, layers, K)."""
    return trace_windows(model, windows_of(model, tokenizer, kind, tokens))


@torch.inference_mode()
def trace_windows(model, windows):
    """The trace of windows (N/T, T): (N, layers, K)."""
    with record(model) as trace:
        for batch in windows.split(16):
            model.hidden_states(batch)
    return trace.read()


# ---- the command ----

def run(arguments):
    """Record the three kinds -> exit code."""
    parser = Parser(prog="python -m minidsv3.serve.traces", description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="a run or checkpoint")
    parser.add_argument("--tokens", type=int, default=32_768, help="of each kind [32768]")
    parser.add_argument("--out", type=Path, help="[runs/traces/NAME.npz]")
    options = parser.parse_args(arguments)
    if options.tokens < 1:
        raise UserError(f"--tokens {options.tokens} must be at least 1.")
    folder = hf.locate(options.folder)
    out = options.out or Path("runs/traces") / f"{folder.resolve().name}.npz"
    check_out(out, ".npz")
    model = hf.load(folder)
    if not model.config.num_moe_layers:
        raise UserError(f"{folder} has no experts to record; choose a model with sparse blocks.")
    tokenizer = read_tokenizer(folder, model.config)
    # All texts before the first pass: one of them may be too short.
    windows = {kind: windows_of(model, tokenizer, kind, options.tokens) for kind in KINDS}
    found = {kind: trace_windows(model, each) for kind, each in windows.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, experts=model.config.n_routed_experts, **found)
    for kind, trace in found.items():
        share = loads(trace, model.config.n_routed_experts)
        worst = (share.max(axis=1) / share.mean(axis=1)).round(2)
        print(f"{kind:7} {len(trace):,} tokens; busiest expert over the mean, by layer: "
              f"{', '.join(f'{x:.2f}' for x in worst)}")
    print(f"wrote {out}")


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
