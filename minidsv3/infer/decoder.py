"""Sequences under way: they start together or join later, make a step at a time, and leave.

One step reads the last token of every sequence, and its drafts if there are any, in one pass of the
main model. Plain decoding is the case of no drafts; a batch of equal prompts, one of different
lengths and one that changes while it runs are all the same to it, since the cache knows the length
of each sequence.
"""

import torch

from ..command import UserError
from ..device import send
from .sampling import Sampler, distributions
from .speculative import Drafter, last_of, verify


class Sequence:
    """One text in the making.

    tokens: the prompt, at least one. It ends after max_new_tokens or with a token of `stop`, EOS
    among them. seed is of its own generator.
    """

    def __init__(self, tokens, max_new_tokens, stop, sampler=None, seed=0):
        self.tokens, self.limit, self.stop = list(tokens), max_new_tokens, frozenset(stop)
        self.sampler = (sampler or Sampler()).checked()
        self.generator = torch.Generator().manual_seed(seed)
        self.new, self.ended = [], False

    def restrict(self, row):
        """The logits (V,) of those tokens that may come next; here, of all."""
        return row

    def note(self, token):
        """Take over a token that was chosen."""
        self.new.append(token)
        self.ended = token in self.stop or len(self.new) >= self.limit


class Decoder:
    """A model, its caches, and up to `places` sequences of up to max_len tokens each.

    speculative: tokens to draft in each step; 0 none. accepted and tried count, by position, the
    drafts that were kept and those that the main model came to judge.
    """

    def __init__(self, model, places, max_len, speculative=0):
        self.model, self.sequences, self.passes = model, [], 0
        self.cache = model.new_cache(places, max_len)
        self.cache.lengths = []                  # nobody is in yet
        self.drafter = Drafter(model, places, max_len, speculative) if speculative else None
        self.accepted, self.tried = [0] * speculative, [0] * speculative

    @torch.inference_mode()
    def start(self, sequences):
        """Read the prompts of all sequences in one pass and choose the first token of each.

        -> [new tokens of each], as `step` gives them. Only when nobody is in.
        """
        self.sequences = list(sequences)
        self.cache.lengths = [0] * len(sequences)
        tokens, counts = padded([sequence.tokens for sequence in sequences], self.cache.device)
        hidden = self.read(tokens, counts)                             # (B, T, C)
        new = self.choose(last_of(hidden, counts)[:, None])
        if self.drafter:
            self.drafter.cache.lengths = [0] * len(sequences)
            after = [sequence.tokens[1:] + first for sequence, first in zip(sequences, new)]
            self.drafter.read(hidden, padded(after, tokens.device)[0], counts)
        return new

    @torch.inference_mode()
    def admit(self, sequence, latents, draft_latents=None, state=None):
        """Let a sequence join with what `take` gave of its cache, and the drafter's; see Handover.

        state (1, C): what its next draft is read from.
        """
        self.cache.put(latents)
        self.sequences.append(sequence)
        if self.drafter:
            self.drafter.cache.put(draft_latents)
            states = [] if len(self.sequences) == 1 else [self.drafter.state]
            new = state[None].to(self.cache.device)                    # (1, 1, C)
            self.drafter.state = torch.cat([*states, new])             # (B, 1, C)

    @torch.inference_mode()
    def step(self):
        """One pass for all sequences -> [new tokens of each], one or more."""
        before, guesses, q = list(self.cache.lengths), None, None
        tokens = send(torch.tensor([[sequence.new[-1]] for sequence in self.sequences]),
                      self.cache.device)                               # (B, 1)
        if self.drafter:
            guesses, q = self.drafter.draft(self.sequences)            # (B, k)
            tokens = torch.cat([tokens, guesses], dim=1)               # (B, k+1)
        hidden = self.read(tokens, None)                               # (B, k+1, C)
        new = self.choose(hidden, guesses, q)
        if self.drafter:
            counts = [len(each) for each in new]
            self.cache.crop([length + count for length, count in zip(before, counts)])
            width = max(counts)
            self.drafter.read(hidden[:, :width], padded(new, tokens.device)[0], counts)
        return new

    def read(self, tokens, counts):
        """tokens (B, T) behind what the caches hold -> the main model's states (B, T, C)."""
        self.passes += 1
        return self.model.hidden_states(tokens, self.cache, counts)[0]

    def choose(self, hidden, guesses=None, q=None):
        """What the main model chooses, by its states (B, k+1, C) at last token and guesses (B, k).

        q (B, k, V): what the guesses were drawn from; None where they were the likeliest.
        """
        logits = self.model.lm_head(hidden)                            # (B, k+1, V)
        best, likeliest = logits.max(dim=-1)                           # (B, k+1) each
        # The largest is NaN as soon as one logit is; -1 tells it with the one read that is needed.
        likeliest = likeliest.masked_fill(best.isnan(), -1)
        k = 0 if guesses is None else guesses.size(1)
        read = (likeliest if guesses is None else torch.cat([guesses, likeliest], dim=1)).tolist()
        if any(-1 in row for row in read):
            raise UserError("the model's logits are no numbers: its weights are damaged; copy the "
                            "checkpoint again.")
        new, p = [], distributions(self.sequences, logits)             # (B, k+1, V)
        for row, sequence in enumerate(self.sequences):
            drafts = read[row][:k]
            new.append(verify(sequence, drafts, None if q is None else q[row], logits[row],
                              read[row][k:], None if p is None else p[row]))
            for place, (token, draft) in enumerate(zip(new[-1], drafts)):
                self.tried[place] += 1
                self.accepted[place] += token == draft
        return new

    def leave(self, row):
        """Let a sequence go, ended or not -> it; the last one takes its row."""
        caches = [self.cache] + ([self.drafter.cache] if self.drafter else [])
        for cache in caches:
            cache.drop(row)
        self.sequences[row], self.sequences[-1] = self.sequences[-1], self.sequences[row]
        if self.drafter:
            order = [*range(row), len(self.sequences) - 1, *range(row + 1, len(self.sequences) - 1)]
            self.drafter.state = self.drafter.state[order[:len(self.sequences) - 1]]
        return self.sequences.pop()

    @property
    def nbytes(self):
        """Memory of the caches [bytes]."""
        return self.cache.nbytes + (self.drafter.cache.nbytes if self.drafter else 0)


def padded(rows, device):
    """Rows of different lengths -> (B, T) tokens, filled with 0 behind each, and the lengths."""
    counts = [len(row) for row in rows]
    width = max(counts)
    filled = [list(row) + [0] * (width - len(row)) for row in rows]
    return send(torch.tensor(filled), device), counts
