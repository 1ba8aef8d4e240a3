"""Bits per byte against the position in the text: does a model use a longer context at all?

A token that stands late in a text has a long context, and is predicted a little better for it.
Beyond the window that a model was trained on, plain rotary positions make it worse. This is the
first thing to look at: a model may find notes and still read text badly, or the other way round.

Different places of a text are differently hard. So here the *same* tokens are predicted at every
position: only the number of tokens before them changes.
"""

import math

import torch
import torch.nn.functional as F

from ..device import send
from ..measure import plots
from ..model.layers import at_least_float32

TOKENS_AT_ONCE = 8192
TARGETS = 32                                     # tokens at the end of each text that are predicted


@torch.inference_mode()
def bits_by_position(model, tokenizer, text, positions, texts=48):
    """Bits per byte of tokens that end at each position -> {position: bits per byte}.

    text: ids, an array; from it come `texts` groups of TARGETS tokens, at equal distances, which
    are the same at every position.
    """
    device, text = model.embed_tokens.weight.device, torch.as_tensor(text).long()
    ends = torch.linspace(max(positions) + 1, len(text), texts).long()             # (N,)
    sizes = torch.tensor([len(token) for token in tokenizer.token_bytes])
    size = sizes[text[ends[:, None] - torch.arange(1, TARGETS + 1)]].sum().item()
    return {position: total_bits(model, text, ends, position, device) / size
            for position in positions}


def total_bits(model, text, ends, position, device):
    """Bits of the last TARGETS tokens before each end, with `position` tokens of input in all."""
    ids = text[ends[:, None] - torch.arange(position + 1, 0, -1)]      # (N, position+1)
    bits = []
    for some in ids.split(max(1, TOKENS_AT_ONCE // position)):
        tokens = send(some, device)
        hidden, _ = model.hidden_states(tokens[:, :-1])                # (B, position, C)
        logits = at_least_float32(model.lm_head(hidden[:, -TARGETS:]))     # (B, TARGETS, V)
        bits.append(F.cross_entropy(logits.flatten(0, 1), tokens[:, -TARGETS:].flatten(),
                                    reduction="sum") / math.log(2))
    return sum(torch.stack(bits).tolist())


@plots.style()
def picture(curves, window, title):
    """Bits per byte against position: curves {name: what `bits_by_position` returned}."""
    figure, ax = plots.canvas()
    looks = zip((plots.BLACK, plots.VERMILLION, plots.BLUE, plots.GREEN), "ovsD")
    for (name, curve), (colour, marker) in zip(curves.items(), looks):
        ax.plot(list(curve), list(curve.values()), color=colour, marker=marker, label=name)
    ax.axvline(window, color=plots.BLACK, linestyle=":")
    ax.set_xscale("log", base=2)
    apart = [place for place in curve if place == min(curve) or place / 2 in curve]
    ax.set_xticks(apart, [f"{place:,}" for place in apart])            # whose names do not overlap
    ax.set(xlabel="tokens read, with those predicted [log scale]",
           ylabel="bits per byte of the same tokens")
    ax.set_title(title, loc="left")
    ax.legend()
    return figure
