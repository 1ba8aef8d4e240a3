"""From logits to text: greedy or sampled, token by token, over the latent cache.

`stream` yields one token a sequence and step; `generate` collects them. A sequence that has said
EOS is finished: whatever follows it is replaced by EOS.
"""

import codecs
import time
from typing import NamedTuple

import torch

from ..model.layers import at_least_float32


class Generation(NamedTuple):
    """What `generate` returns: the new tokens alone."""

    tokens: torch.Tensor                         # (B, N) int64, EOS after a sequence has ended
    lengths: torch.Tensor                        # (B,) new tokens before the EOS
    stats: dict                                  # seconds, tokens per second, cache bytes, ...


def generate(model, tokens, max_new_tokens, temperature=0.0, top_k=None, top_p=1.0, seed=0):
    """Continue tokens (B, T) by up to max_new_tokens each; temperature 0 is greedy.

    Raises ValueError for a setting out of range.
    """
    begin = time.perf_counter()
    steps, times = [], []
    for step in stream(model, tokens, max_new_tokens, temperature, top_k, top_p, seed):
        steps.append(step)
        times.append(time.perf_counter() - begin)
    new = torch.stack(steps, dim=1)                                    # (B, N)
    lengths = (new != model.config.eos_token_id).sum(dim=1)
    stats = {"new_tokens": int(lengths.sum()), "seconds": times[-1], "prefill_s": times[0],
             "tokens_per_s": int(lengths.sum()) / times[-1], "passes": len(steps)}
    return Generation(new, lengths, stats)


@torch.inference_mode()
def stream(model, tokens, max_new_tokens, temperature=0.0, top_k=None, top_p=1.0, seed=0):
    """Yield the next token of every sequence, (B,), until all have ended or the length is reached."""
    check_settings(temperature, top_k, top_p)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    if tokens.size(1) < 1:
        raise ValueError("the prompt has no token; begin with EOS to start a new document.")
    limit = model.config.max_position_embeddings
    if tokens.size(1) + max_new_tokens > limit:
        raise ValueError(f"{tokens.size(1)} prompt tokens and max_new_tokens={max_new_tokens} are more than "
                         f"max_position_embeddings={limit}; shorten one of them.")
    generator = torch.Generator(tokens.device).manual_seed(seed)
    cache = model.new_cache(len(tokens), tokens.size(1) + max_new_tokens)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(max_new_tokens):
        logits = model(tokens, cache)[:, -1]                           # (B, V)
        token = sample(logits, temperature, top_k, top_p, generator)   # (B,)
        token = token.masked_fill(ended, model.config.eos_token_id)
        yield token
        ended |= token == model.config.eos_token_id
        if ended.all():
            return
        tokens = token[:, None]                                        # (B, 1)


def check_settings(temperature, top_k, top_p):
    """ValueError that names the value and its range."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must not be negative; 0 is greedy, 1 as trained.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} is a probability; choose above 0, up to 1 (1 keeps all).")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1; leave it out to keep all.")


def sample(logits, temperature, top_k=None, top_p=1.0, generator=None):
    """One token from logits (B, V) -> (B,); temperature 0 takes the likeliest."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    scaled = at_least_float32(logits) / temperature
    if top_k is not None and top_k < scaled.size(-1):
        smallest = scaled.topk(top_k, dim=-1).values[:, -1:]           # (B, 1)
        scaled = scaled.masked_fill(scaled < smallest, float("-inf"))
    probabilities = scaled.softmax(dim=-1)                             # (B, V)
    if top_p < 1:
        probabilities = keep_nucleus(probabilities, top_p)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


def keep_nucleus(probabilities, top_p):
    """Zero all but the fewest likeliest tokens that together reach top_p: (B, V) -> (B, V), unnormalised."""
    ordered, index = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered                          # mass of all likelier tokens
    kept = ordered.masked_fill(before >= top_p, 0.0)                   # the first always stays
    return torch.zeros_like(probabilities).scatter(-1, index, kept)


class TextStream:
    """Bytes in, text out, never half a character: the rest of one waits for its next token."""

    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, data, final=False):
        """The text that is complete with these bytes; `final` flushes what cannot be completed."""
        return self.decoder.decode(data, final)
