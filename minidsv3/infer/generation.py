"""Generate tokens for one prompt or many, of any lengths, with or without drafts."""

import time
from typing import NamedTuple

import torch

from ..command import UserError
from .decoder import Decoder, Sequence
from .sampling import Sampler

MOST_DRAFTS = 16                                 # so many are never all accepted


class Generation(NamedTuple):
    """The result of `generate`, without the prompts."""

    tokens: torch.Tensor                         # (B, N) int64, EOS (or 0) after the end of a text
    lengths: torch.Tensor                        # (B,) new tokens before EOS; a stop token counts
    stats: dict                                  # seconds, tokens per second, cache bytes, ...


def generate(model, tokens, max_new_tokens, temperature=0.0, top_k=None, top_p=1.0, min_p=0.0,
             speculative=0, seed=0, stop=()):
    """Continue tokens (B, T), or a list of 1-D tensors, by up to max_new_tokens each.

    temperature 0 is greedy. speculative: tokens that the MTP module drafts per step; this changes
    the speed, not the text (greedy) or its distribution (sampling), except by rounding. Sequence i
    has a generator of its own, with seed + i or seed[i], so its text does not depend on the other
    sequences, except by rounding. stop: tokens that end a text, besides those of config.json.
    Raises UserError for a setting out of range.
    """
    begin = time.perf_counter()
    prompts = [row.tolist() for row in tokens]
    seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    sampler = Sampler(temperature, top_k, top_p, min_p)
    decoder, sequences = begin_all(model, prompts, max_new_tokens, sampler, speculative, seeds,
                                   stop)
    decoder.start(sequences)
    prefill = time.perf_counter() - begin
    while advance(decoder):
        pass
    seconds = time.perf_counter() - begin
    ends = model.config.end_ids
    width = max(len(sequence.new) for sequence in sequences)
    new = torch.full((len(sequences), width), ends[0] if ends else 0)  # (B, N)
    for row, sequence in zip(new, sequences):
        row[:len(sequence.new)] = torch.tensor(sequence.new)
    lengths = torch.tensor([sum(token not in ends for token in sequence.new)
                            for sequence in sequences])                # (B,)
    device = model.embed_tokens.weight.device
    return Generation(new.to(device), lengths.to(device),
                      {"prefill_s": prefill, **statistics(decoder, int(lengths.sum()), seconds)})


def begin_all(model, prompts, max_new_tokens, sampler, speculative, seeds, stop, kind=Sequence):
    """A Decoder with room for all prompts, and the sequences to start.

    kind: the class of the sequences. Raises UserError for a setting out of range.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    if not 0 <= speculative <= MOST_DRAFTS:
        raise UserError(f"speculative={speculative} must be 0 (no drafts) to {MOST_DRAFTS}; 1 or "
                        "2 pay most.")
    if not prompts or not all(prompts):
        raise UserError("the prompt has no token; begin with EOS to start a new document.")
    if len(seeds) != len(prompts):
        raise UserError(f"seed={seeds} has {len(seeds)} numbers for {len(prompts)} sequences; "
                        "give one number, or one for each.")
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise UserError(f"seed={seed} must be between 0 and 2^63 - 1, for instance 0.")
    length = max(map(len, prompts)) + max_new_tokens
    model.config.check_length(length)
    stops = {*model.config.end_ids, *stop}
    sequences = [kind(prompt, max_new_tokens, stops, sampler, seed)
                 for prompt, seed in zip(prompts, seeds)]
    # The last drafts may reach beyond the end of the text.
    return Decoder(model, len(prompts), length + speculative, speculative), sequences


def advance(decoder):
    """Remove ended sequences and make a step for the others -> whether there were others."""
    for row in reversed(range(len(decoder.sequences))):
        if decoder.sequences[row].ended:
            decoder.leave(row)
    if decoder.sequences:
        decoder.step()
    return bool(decoder.sequences)


def statistics(decoder, new_tokens, seconds):
    """The figures of a finished generation; `acceptance` is a rate for each position of a draft."""
    return {"new_tokens": new_tokens, "seconds": seconds, "tokens_per_s": new_tokens / seconds,
            "cache_bytes": decoder.nbytes, "passes": decoder.passes,
            "acceptance": [round(kept / max(1, tried), 4)
                           for kept, tried in zip(decoder.accepted, decoder.tried)]}
