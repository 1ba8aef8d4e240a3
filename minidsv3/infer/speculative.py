"""Drafts by the MTP module, verified by the main model: several tokens a pass, and none of them
another than the main model would have chosen (report, sections 2.2 and 5.4.3).

The module joins the main model's state of position i with token i+1 and guesses token i+2. So once
a token is chosen, its successor can be drafted by one block, and one more by feeding the module its
own state and draft. The main model then reads the chosen token and all drafts in one pass:

    greedy     a draft is kept while it is what the main model chooses
    sampling   draft d ~ q is kept with probability min(1, p(d) / q(d)); the first that is not is
               replaced by a draw from (p - q)+, normalised: together exactly a draw from p

After a rejection both caches are cut back to what was kept.
"""

import torch

from ..command import UserError
from ..device import send
from ..model.cache import LatentCache
from .sampling import distributions, draw


class Drafter:
    """The first MTP module over a latent cache of its own, for a batch of sequences."""

    def __init__(self, model, places, max_len, drafts):
        if not model.mtp:
            raise UserError(f"speculative={drafts} drafts with the MTP module, and this model has "
                            "none (num_nextn_predict_layers=0); leave it out.")
        like = model.embed_tokens.weight
        self.model, self.drafts, self.module = model, drafts, model.mtp[0]
        self.cache = LatentCache(model.config, places, max_len,
                                 model.activation_dtype or like.dtype, like.device, layers=1)
        self.cache.lengths = []
        self.state = None                                              # (B, 1, C)

    def read(self, hidden, after, counts):
        """Join states hidden (B, M, C) with the tokens (B, M) that follow them.

        counts: how many of the M are real, a number for each sequence. What comes out at the last
        real one is the state that the next draft is read from.
        """
        if max(counts) > 1:          # of all but the last position only the latents are needed
            rope = self.cache.make_room(max(counts) - 1)
            self.module.remember(hidden[:, :-1], self.model.embed(after[:, :-1]), rope,
                                 self.cache.layers[0])
            self.cache.advance([count - 1 for count in counts])
        self.state = self.step(last_of(hidden, counts)[:, None], last_of(after, counts)[:, None])

    def step(self, hidden, after):
        """One position of each sequence through the module: hidden (B, 1, C), after (B, 1)."""
        rope = self.cache.make_room(1)
        state, _ = self.module(hidden, self.model.embed(after), rope, self.cache.layers[0])
        self.cache.advance([1] * len(after))
        return state

    def draft(self, sequences):
        """`drafts` tokens for each sequence -> tokens (B, k), and what they were drawn from.

        The latter is (B, k, V) on the CPU, or None for greedy sequences, whose drafts are the
        likeliest; those are not read here.
        """
        held, state = list(self.cache.lengths), self.state
        steps, drawn_from = [], []
        for k in range(self.drafts):
            logits = self.model.lm_head(state[:, 0])                   # (B, V)
            q = distributions(sequences, logits)                       # (B, V)
            if q is None:
                tokens = logits.argmax(-1)                             # (B,)
            else:
                tokens = send(torch.tensor([draw(row, sequence.generator)
                                            for sequence, row in zip(sequences, q)]), state.device)
                drawn_from.append(q)
            steps.append(tokens)
            if k + 1 < self.drafts:
                state = self.step(state, tokens[:, None])
        self.cache.crop(held)                    # these states were the module's, not the model's
        tokens = torch.stack(steps, dim=1)                             # (B, k)
        return tokens, torch.stack(drawn_from, dim=1) if drawn_from else None


def last_of(x, counts):
    """The last real one of each sequence: x (B, M, ...), so many real ones of M -> (B, ...)."""
    last = send(torch.tensor(counts) - 1, x.device)                    # (B,)
    return x[torch.arange(len(counts), device=x.device), last]


def verify(sequence, drafts, q, logits, likeliest, p=None):
    """The tokens that follow, given k drafts: logits (k+1, V) of the main model -> 1 to k+1 tokens.

    q (k, V): what the drafts were drawn from; None where they were the likeliest. likeliest: the
    argmax of each row of logits. p (k+1, V): what the sequence draws from, None if it is greedy.
    Drafts, q, likeliest and p are on the CPU; logits are looked at only where `restrict` changes
    them.
    """
    new = []
    for k, all_logits in enumerate(logits):
        draft = drafts[k] if k < len(drafts) else None                 # none for the last row
        row = sequence.restrict(all_logits)                            # (V,)
        if sequence.sampler.temperature == 0:
            token = likeliest[k] if row is all_logits else int(row.argmax())
        else:
            of_row = p[k] if row is all_logits else sequence.sampler.probabilities(row).cpu()
            token = (draw(of_row, sequence.generator) if draft is None
                     else accept_or_replace(of_row, q[k], draft, sequence.generator))
        new.append(token)
        sequence.note(token)
        if token != draft or sequence.ended:
            break
    return new


def accept_or_replace(p, q, draft, generator):
    """A draw from p (V,), by way of a draft that was drawn from q (V,)."""
    chance = torch.rand((), generator=generator, dtype=torch.float64).item()
    if chance * q[draft].item() < p[draft].item():                     # min(1, p(d) / q(d))
        return draft
    rest = (p - q).clamp(min=0)
    return draw(rest if rest.any() else p, generator)      # p = q but for rounding leaves nothing
