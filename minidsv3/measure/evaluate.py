"""How good a model is: bits per byte on text it has not seen, and how even its experts work."""

import ast
import math
import re
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..model.layers import at_least_float32
from ..model.moe import max_violation


class Evaluation(NamedTuple):
    """Figures of a model over a set of windows."""

    bits_per_byte: float
    max_vio: list                                # of each sparse block, MTP's last, over all
    mtp_agreement: float                         # share of positions where draft = main choice


@torch.inference_mode()
def evaluate(model, inputs, targets, raw_bytes, batch=16):
    """inputs, targets (W, T), -100 where there is no target; raw_bytes of the text they cover."""
    device = model.embed_tokens.weight.device
    nats, agreed, compared = 0.0, 0, 0
    loads = torch.zeros(len(model.routers()), model.config.n_routed_experts, dtype=torch.long,
                        device=device)                                 # (layers, E)
    for i in range(0, len(inputs), batch):
        x, y = inputs[i:i + batch].to(device), targets[i:i + batch].to(device)
        hidden, routings = model.hidden_states(x)
        logits = model.lm_head(hidden)                                 # (B, T, V)
        nats += F.cross_entropy(at_least_float32(logits).flatten(0, 1), y.flatten(),
                                reduction="sum").item()
        states, mtp_routings = model.mtp_states(hidden, x)
        seen = y != -100                                               # the last window is padded
        # Depth k at index i guesses the token that the main model guesses at i+k.
        for k, state in enumerate(states, start=1):
            same = model.lm_head(state).argmax(-1) == logits[:, k:].argmax(-1)
            agreed += (same & seen[:, k:]).sum().item()
            compared += seen[:, k:].sum().item()
        for load, routing in zip(loads, routings + mtp_routings, strict=True):
            k = seen.size(1) - routing.experts.size(1)
            load += routing.experts[seen[:, k:]].flatten().bincount(minlength=len(load))
    return Evaluation(nats / math.log(2) / raw_bytes,
                      [round(v, 4) for v in max_violation(loads).tolist()],
                      agreed / compared if compared else 0.0)


def parses_to_last_statement(text):
    """Whether Python text is valid up to its last complete top-level statement; False if none.

    A statement counts as complete once another one begins in the first column. What follows the
    last complete one was cut off by the length limit and is not judged.
    """
    lines = text.split("\n")
    for end in reversed(statement_starts(lines)[1:]):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")                        # of odd escapes in strings
                return bool(ast.parse("\n".join(lines[:end])).body)
        except SyntaxError as error:
            # This line stands in a text or a bracket that was never closed: no statement's start.
            if "triple-quoted" not in str(error) and "never closed" not in str(error):
                return False
        except (ValueError, RecursionError, MemoryError):              # NUL; nested too deeply
            return False
    return False


def statement_starts(lines):
    """Lines that may begin a top-level statement: not `else`, not `)`, nothing decorated."""
    starts, decorated = [], False
    for i, line in enumerate(lines):
        if line[:1].strip() and line[0] not in ")]}#":
            word = re.match(r"\w*", line).group()
            if not decorated and word not in ("else", "elif", "except", "finally"):
                starts.append(i)
            decorated = line[0] == "@"
    return starts
