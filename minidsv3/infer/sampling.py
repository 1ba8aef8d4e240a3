"""From logits to text: greedy or sampled, token by token, over the latent cache.

`stream` yields one token a sequence and step; `generate` collects them. A sequence that has said
EOS is finished: whatever follows it is replaced by EOS. `complete` goes from text to text.
"""

import codecs
import re
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
             "tokens_per_s": int(lengths.sum()) / times[-1], "passes": len(steps),
             "cache_bytes": model.new_cache(len(tokens), tokens.size(1) + len(steps)).nbytes,
             "acceptance": []}                   # of drafted tokens; nothing is drafted here
    return Generation(new, lengths, stats)


@torch.inference_mode()
def stream(model, tokens, max_new_tokens, temperature=0.0, top_k=None, top_p=1.0, seed=0,
           restrict=None):
    """Yield the next token of every sequence, (B,), until all have ended or the length is reached.

    restrict, if given, maps the logits (B, V) of each step to those that are sampled from.
    """
    check_settings(temperature, top_k, top_p, seed)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    if tokens.size(1) < 1:
        raise ValueError("the prompt has no token; begin with EOS to start a new document.")
    limit = model.config.max_position_embeddings
    if tokens.size(1) + max_new_tokens > limit:
        raise ValueError(f"{tokens.size(1)} prompt tokens and max_new_tokens={max_new_tokens} are "
                         f"more than max_position_embeddings={limit}; shorten one of them.")
    generator = torch.Generator(tokens.device).manual_seed(seed)
    cache = model.new_cache(len(tokens), tokens.size(1) + max_new_tokens)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(max_new_tokens):
        logits = model(tokens, cache)[:, -1]                           # (B, V)
        if logits.isnan().any():
            raise ValueError("the model's logits are no numbers: its weights are damaged; copy the "
                             "checkpoint again.")
        if restrict is not None:
            logits = restrict(logits)
        token = sample(logits, temperature, top_k, top_p, generator)   # (B,)
        token = token.masked_fill(ended, model.config.eos_token_id)
        yield token
        ended |= token == model.config.eos_token_id
        if ended.all():
            return
        tokens = token[:, None]                                        # (B, 1)


def check_settings(temperature, top_k, top_p, seed=0):
    """ValueError that names the value and its range."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must not be negative or infinite; "
                         "0 is greedy, 1 as trained.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} is a probability; choose above 0, up to 1 (1 keeps all).")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1; leave it out to keep all.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed} must be between 0 and 2^63 - 1, for instance 0.")


def sample(logits, temperature, top_k=None, top_p=1.0, generator=None):
    """One token from logits (B, V) -> (B,); temperature 0 takes the likeliest."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    scaled = at_least_float32(logits)
    # Before the division the largest becomes 0, so that no temperature can overflow it.
    scaled = (scaled - scaled.amax(dim=-1, keepdim=True)) / max(temperature, 1e-6)
    if top_k is not None and top_k < scaled.size(-1):
        smallest = scaled.topk(top_k, dim=-1).values[:, -1:]           # (B, 1)
        scaled = scaled.masked_fill(scaled < smallest, float("-inf"))
    probabilities = scaled.softmax(dim=-1)                             # (B, V)
    if top_p < 1:
        probabilities = keep_nucleus(probabilities, top_p)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


def keep_nucleus(probabilities, top_p):
    """Zero all but the fewest likeliest tokens that together reach top_p: (B, V) -> (B, V).

    What is kept is not normalised again.
    """
    ordered, index = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered                          # mass of all likelier tokens
    kept = ordered.masked_fill(before >= top_p, 0.0)                   # the first always stays
    return torch.zeros_like(probabilities).scatter(-1, index, kept)


def complete(model, tokenizer, prompt, max_new_tokens, **settings):
    """Yield (token, text it completes) for each new token of one prompt; last (None, the rest).

    The texts, joined, follow the prompt; an empty prompt begins a document. `settings` are those
    of `stream`.
    """
    stem, ending = split_prompt(prompt)
    healing = Healing(tokenizer, ending)
    first = tokenizer.encode_prompt(stem) if prompt else [tokenizer.start_id]
    tokens = torch.tensor([first], device=model.embed_tokens.weight.device)  # (1, T)
    text = TextStream()
    for step in stream(model, tokens, max_new_tokens, restrict=healing.restrict, **settings):
        token = step.item()
        data = b"" if token == model.config.eos_token_id else tokenizer.decode_bytes([token])
        yield token, text.feed(healing.new_part(data))
    yield None, text.feed(b"", final=True)


def split_prompt(prompt, longest=16):
    """Cut off the signs and spaces at the end: "if (x == " -> "if (x", " == ".

    In training they stand in one token with the word behind them (" == None"), so a prompt that
    ends in them ends in the middle of a token.
    """
    signs = re.search(r"[^0-9A-Za-z\x80-\U0010FFFF]*\Z", prompt[-longest:]).group()
    return prompt[:len(prompt) - len(signs)], signs


class Healing:
    """Makes the first new tokens spell again the ending that was cut off a prompt."""

    def __init__(self, tokenizer, ending):
        self.token_bytes, self.ending = tokenizer.token_bytes, ending.encode()

    def restrict(self, logits):
        """-inf for tokens that neither begin with the ending nor are its beginning: (1, V)."""
        if not self.ending:
            return logits
        fits = [bool(data) and (data.startswith(self.ending) or self.ending.startswith(data))
                for data in self.token_bytes]
        return logits.masked_fill(~torch.tensor(fits, device=logits.device), float("-inf"))

    def new_part(self, data):
        """The bytes of a token that come after the ending."""
        spelt = min(len(data), len(self.ending))
        self.ending = self.ending[spelt:]
        return data[spelt:]


class TextStream:
    """Bytes in, text out, never half a character: the rest of one waits for its next token."""

    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, data, final=False):
        """The text that is complete with these bytes; `final` flushes what cannot be completed."""
        return self.decoder.decode(data, final)
