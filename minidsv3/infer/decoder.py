"""Decode a batch of sequences: they start together or join later, and each may leave at any step.

One step reads the last token of every sequence, and its drafts if there are any, in one pass of the
main model. Plain decoding is the case without drafts. The cache knows the length of each sequence,
so prompts of equal length, prompts of different lengths, and a batch that changes while it runs
need no separate code.
"""

import torch

from ..command import UserError
from ..device import send
from .sampling import Sampler, distributions
from .speculative import Drafter, last_of, verify


class Sequence:
    """A prompt and the tokens generated after it so far, in `new`.

    tokens: the prompt, at least one token. The sequence ends after max_new_tokens, or with a token
    of `stop`, which should include EOS. seed: for the generator of this sequence alone.
    """

    def __init__(self, tokens, max_new_tokens, stop, sampler=None, seed=0):
        self.tokens, self.limit, self.stop = list(tokens), max_new_tokens, frozenset(stop)
        self.sampler = (sampler or Sampler()).checked()
        self.generator = torch.Generator().manual_seed(seed)
        self.new, self.ended = [], False

    def restrict(self, row):
        """The logits (V,), -inf for a token that must not come next; here every token may."""
        return row

    def note(self, token):
        """Append a token that was chosen."""
        self.new.append(token)
        self.ended = token in self.stop or len(self.new) >= self.limit


class Decoder:
    """A model, its caches, and up to `places` sequences of up to max_len tokens each.

    speculative: tokens to draft per step; 0 for none. By position of the draft, `tried` counts how
    many drafts the main model verified, and `accepted` how many of them it accepted.
    """

    def __init__(self, model, places, max_len, speculative=0):
        self.model, self.sequences, self.passes = model, [], 0
        self.cache = model.new_cache(places, max_len)
        self.cache.lengths = []                  # no sequence yet
        self.drafter = Drafter(model, places, max_len, speculative) if speculative else None
        self.accepted, self.tried = [0] * speculative, [0] * speculative

    @torch.inference_mode()
    def start(self, sequences):
        """Read the prompts of all sequences in one pass and choose the first token of each.

        -> [new tokens of each], as `step` returns them. Replaces all sequences held before.
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
        """Let a sequence join, with latents (L, length, Rkv+Dr) as `LatentCache.take` returns them.

        draft_latents (1, length, Rkv+Dr) are those of the drafter; state (1, C): its last state,
        for the next draft. Raises ValueError if there is no place.
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
        """One pass for all sequences -> [new tokens of each], at least one per sequence."""
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
        """Append tokens (B, T) to the main model's cache -> its states (B, T, C)."""
        self.passes += 1
        return self.model.hidden_states(tokens, self.cache, counts)[0]

    def choose(self, hidden, guesses=None, q=None):
        """Verify drafts by the main model's states (B, k+1, C) -> [new tokens of each sequence].

        The states are those of the last token and of the drafts `guesses` (B, k). q (B, k, V): the
        distributions of the drafts; None if each is the most likely token.
        """
        logits = self.model.lm_head(hidden)                            # (B, k+1, V)
        best, likeliest = logits.max(dim=-1)                           # (B, k+1) each
        # If any logit is NaN, so is the largest. Marking it with -1 saves a second copy to the CPU.
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
        """Remove a sequence, ended or not -> it; the last one moves into its row."""
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
    """Rows of different lengths -> tokens (B, T), padded with 0 at the end, and the lengths."""
    counts = [len(row) for row in rows]
    width = max(counts)
    filled = [list(row) + [0] * (width - len(row)) for row in rows]
    return send(torch.tensor(filled), device), counts
