"""Speculative decoding: the MTP module drafts tokens, and the main model verifies them in one pass.

The output is exactly what the main model alone would produce: the same text if greedy, the same
distribution if sampled (report, sections 2.2 and 5.4.3).

The module combines the main model's state at position i with token i+1 and predicts token i+2. So
as soon as a token is chosen, one block is enough to draft the next token. For a further draft the
module reads its own state and its own draft. The main model then reads the chosen token and all
drafts in one pass:

    greedy     a draft is accepted if it is the token that the main model chooses
    sampling   a draft d ~ q is accepted with probability min(1, p(d) / q(d)); a rejected one is
               replaced by a draw from (p - q)+, normalised; so each token is exactly a draw from p

Drafts after the first rejected one are discarded, and both caches are cut back.
"""

import torch

from ..command import UserError
from ..device import send
from ..model.cache import LatentCache
from .sampling import distributions, draw


class Drafter:
    """The first MTP module with its own latent cache, for a batch of sequences.

    Raises UserError if the model has no MTP module.
    """

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
        """Read the main model's states hidden (B, M, C), and the tokens after (B, M) that follow.

        counts: how many of the M positions are not padding, for each sequence. The module's state
        at the last of them gives the next draft.
        """
        if max(counts) > 1:          # before the last position only the latents are needed
            rope = self.cache.make_room(max(counts) - 1)
            self.module.remember(hidden[:, :-1], self.model.embed(after[:, :-1]), rope,
                                 self.cache.layers[0])
            self.cache.advance([count - 1 for count in counts])
        self.state = self.step(last_of(hidden, counts)[:, None], last_of(after, counts)[:, None])

    def step(self, hidden, after):
        """Read one position per sequence: hidden (B, 1, C), after (B, 1) -> state (B, 1, C)."""
        rope = self.cache.make_room(1)
        state, _ = self.module(hidden, self.model.embed(after), rope, self.cache.layers[0])
        self.cache.advance([1] * len(after))
        return state

    def draft(self, sequences):
        """Draft k tokens for each sequence -> tokens (B, k), and their distributions q (B, k, V).

        q is on the CPU. It is None if all sequences are greedy: then each draft is the most likely
        token, and the tokens are not copied to the CPU here.
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
        self.cache.crop(held)                    # forget states that came from drafts
        tokens = torch.stack(steps, dim=1)                             # (B, k)
        return tokens, torch.stack(drawn_from, dim=1) if drawn_from else None


def last_of(x, counts):
    """The last position that is not padding: x (B, M, ...), counts of B numbers -> (B, ...)."""
    last = send(torch.tensor(counts) - 1, x.device)                    # (B,)
    return x[torch.arange(len(counts), device=x.device), last]


def verify(sequence, drafts, q, logits, likeliest, p=None):
    """Accept or replace k drafts: logits (k+1, V) of the main model -> the 1 to k+1 new tokens.

    q (k, V): the distributions of the drafts; None if each is the most likely token. likeliest: the
    argmax of each row of logits. p (k+1, V): the distributions of the main model, None if the
    sequence is greedy. Drafts, q, likeliest and p are on the CPU. The logits stay on their device,
    and are used only where `restrict` changes them.
    """
    new = []
    for k, all_logits in enumerate(logits):
        draft = drafts[k] if k < len(drafts) else None                 # the last row has none
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
    """Accept a draft drawn from q (V,), or replace it: the result is a draw from p (V,)."""
    chance = torch.rand((), generator=generator, dtype=torch.float64).item()
    if chance * q[draft].item() < p[draft].item():                     # min(1, p(d) / q(d))
        return draft
    rest = (p - q).clamp(min=0)
    return draw(rest if rest.any() else p, generator)      # if p = q, rounding may leave nothing
