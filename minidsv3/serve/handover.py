"""Prefill and decode as two engines, and what one hands to the other (report, section 3.4).

The two phases of generation need different things from a machine. A prefill pass reads hundreds of
prompt tokens and is limited by arithmetic. A decode pass reads one token per sequence and is
limited by memory bandwidth. Where one process does both, every sequence that is being decoded waits
while a long prompt is read. The report therefore runs the two phases on different machines, and
sends what the model remembers of a prompt from the first to the second:

    requests -> Prefill -> Handover -> Decode -> texts

    Prefill    reads up to `budget` prompt tokens per pass: it cuts long prompts and batches short
               ones
    Handover   a sequence and its latents of all layers: H*(D+Dv) / (Rkv+Dr) times fewer numbers
               than keys and values (71 times at full size, 3 times in the tiny model)
    Decode     one pass makes one token, or several with drafts, for every sequence; a new sequence
               can join as soon as another one has ended (continuous batching)

No latents pile up between the two: the caller tells Prefill how many prompts it may work on, and
Decode says by `free` how many sequences can join. The other requests wait as tokens, not yet read.

`serving.py` runs both engines, in one process or in two. Left out: several machines on each side,
experts spread over them, and prefix caching (one cache for prompts that begin alike).
"""

import json
from collections import deque
from dataclasses import dataclass
from itertools import islice

import torch
from safetensors.torch import load, save

from ..command import UserError
from ..infer.decoder import Decoder, Sequence, padded
from ..infer.sampling import Sampler
from ..infer.speculative import last_of


@dataclass
class Handover:
    """A sequence, and what the model remembers of the tokens read so far."""

    number: int
    sequence: Sequence
    latents: torch.Tensor                        # (L, length, Rkv+Dr)
    draft_latents: torch.Tensor | None = None    # (1, length, Rkv+Dr) of the MTP module, if used
    state: torch.Tensor | None = None            # (1, C), for the next draft

    @property
    def nbytes(self):
        """Size of the latents [bytes]."""
        drafting = 0 if self.draft_latents is None else self.draft_latents.nbytes
        return self.latents.nbytes + drafting

    def expanded_nbytes(self, config):
        """Size of the same tokens as keys (D) and values (Dv) of all heads [bytes]."""
        head = config.qk_head_dim + config.v_head_dim
        return (self.nbytes // self.latents.size(-1)) * config.num_attention_heads * head

    def to_bytes(self):
        """All of it in the safetensors format, so that nothing is pickled; see `from_bytes`.

        Raises ValueError for a kind of sequence that these bytes cannot describe.
        """
        sequence = self.sequence
        if type(sequence) is not Sequence:
            raise ValueError(f"a {type(sequence).__name__} cannot be handed over as bytes, since "
                             "what it adds would be lost; use a plain Sequence.")
        about = {"number": self.number, "tokens": sequence.tokens, "new": sequence.new,
                 "limit": sequence.limit, "stop": sorted(sequence.stop),
                 "sampler": list(sequence.sampler)}
        tensors = {"latents": self.latents, "generator": sequence.generator.get_state(),
                   "about": torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)}
        if self.state is not None:
            tensors |= {"draft_latents": self.draft_latents, "state": self.state}
        return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})

    @classmethod
    def from_bytes(cls, data):
        """The handover that `to_bytes` wrote; its tensors are on the CPU."""
        tensors = load(data)
        about = json.loads(bytes(tensors["about"].tolist()))
        sequence = Sequence(about["tokens"], about["limit"], about["stop"],
                            Sampler(*about["sampler"]))
        sequence.generator.set_state(tensors["generator"])
        for token in about["new"]:
            sequence.note(token)
        return cls(about["number"], sequence, tensors["latents"], tensors.get("draft_latents"),
                   tensors.get("state"))


class Prefill:
    """Reads prompts in the order in which they were added, and chooses the first token of each.

    budget: token positions per pass. speculative: above 0, the MTP module reads the prompts too.
    """

    def __init__(self, model, budget=256, speculative=0):
        if budget < 1:
            raise UserError(f"budget={budget} must be at least 1 token per pass, for instance 256.")
        self.model, self.budget, self.speculative = model, budget, speculative
        self.queue, self.added = deque(), 0

    def add(self, sequence, number=None):
        """Queue a sequence of at least one token; without a number, the handover gets the next."""
        config = self.model.config
        width = config.kv_lora_rank + config.qk_rope_head_dim
        nothing = [torch.empty(config.num_hidden_layers, 0, width)]
        if self.speculative:
            nothing += [torch.empty(1, 0, width), torch.empty(1, config.hidden_size)]
        number = self.added if number is None else number
        self.queue.append(Handover(number, sequence, *nothing))
        self.added += 1

    def cancel(self, number):
        """Forget a request that waits or is being read -> whether there was one."""
        before = len(self.queue)
        self.queue = deque(handover for handover in self.queue if handover.number != number)
        return len(self.queue) < before

    @torch.inference_mode()
    def step(self, most):
        """One pass over the next prompt tokens -> the handovers that it completed.

        most: how many prompts it may read; 0 makes no pass. Only these have latents afterwards.
        """
        batch, pieces = self.next_pieces(most)
        if not batch:
            return []
        room = max(handover.latents.size(1) for handover in batch) + max(map(len, pieces))
        reader = Decoder(self.model, len(batch), room, self.speculative)
        for handover in batch:
            reader.admit(handover.sequence, handover.latents, handover.draft_latents,
                         handover.state)
        tokens, counts = padded(pieces, reader.cache.device)                   # (B, T)
        hidden = reader.read(tokens, counts)                                   # (B, T, C)
        end, prompt = batch[0].latents.size(1) + counts[0], batch[0].sequence.tokens
        is_cut = end < len(prompt)               # a prompt that is cut is alone in its batch
        if is_cut:
            follows = [[prompt[end]]]
        else:
            follows = reader.choose(last_of(hidden, counts)[:, None])
        if self.speculative:
            after = [piece[1:] + token for piece, token in zip(pieces, follows)]
            reader.drafter.read(hidden, padded(after, tokens.device)[0], counts)
        for row, handover in enumerate(batch):
            handover.latents = reader.cache.take(row)
            if self.speculative:
                handover.draft_latents = reader.drafter.cache.take(row)
                handover.state = reader.drafter.state[row]
        return [] if is_cut else [self.queue.popleft() for _ in batch]

    def next_pieces(self, most):
        """The handovers to work on in this pass, and the prompt tokens to read for each.

        Either one prompt is cut, or all that fit are read to their ends. Padding counts towards the
        budget, since it takes as much time as tokens do.
        """
        batch, pieces = [], []
        for handover in islice(self.queue, most):
            begin, tokens = handover.latents.size(1), handover.sequence.tokens
            piece = tokens[begin:] if batch else tokens[begin:begin + self.budget]
            if max(map(len, [*pieces, piece])) * (len(batch) + 1) > self.budget:
                break
            batch.append(handover)
            pieces.append(piece)
        return batch, pieces


class Decode:
    """Continues up to `places` sequences at a time.

    max_len: tokens of the longest one, its prompt, new tokens and drafts together.
    """

    def __init__(self, model, places, max_len, speculative=0):
        if places < 1:
            raise UserError(f"places={places} must be at least 1 sequence, for instance 16.")
        self.decoder, self.speculative = Decoder(model, places, max_len, speculative), speculative

    @property
    def free(self):
        """How many sequences can join now."""
        return self.decoder.cache.places - len(self.decoder.sequences)

    @property
    def is_idle(self):
        """Whether no sequence is being decoded."""
        return not self.decoder.sequences

    def admit(self, handover):
        """Let a sequence join, which needs a free place.

        Raises ValueError if its text could never fit, or if it lacks latents for the MTP module.
        """
        sequence, cache = handover.sequence, self.decoder.cache
        needed = len(sequence.tokens) + sequence.limit + self.speculative
        if needed > cache.max_len:
            raise ValueError(f"handover {handover.number} needs room for {needed} tokens (prompt, "
                             f"new ones, drafts), but max_len={cache.max_len}; make the engine "
                             "with a larger max_len.")
        if self.speculative and handover.state is None:
            raise ValueError(f"handover {handover.number} has no latents of the MTP module, with "
                             f"which speculative={self.speculative} drafts; prefill with it too.")
        self.decoder.admit(sequence, handover.latents, handover.draft_latents, handover.state)

    def cancel(self, sequence):
        """Remove a sequence before its end, which frees its place."""
        self.decoder.leave(self.decoder.sequences.index(sequence))

    def step(self):
        """One pass for all sequences -> those that have ended, which leave."""
        ended = self.remove_ended()              # some end with the token that prefill chose
        if self.decoder.sequences:
            self.decoder.step()
        return ended + self.remove_ended()

    def remove_ended(self):
        """Remove all sequences that have ended -> them."""
        rows = [row for row, sequence in enumerate(self.decoder.sequences) if sequence.ended]
        return [self.decoder.leave(row) for row in reversed(rows)]
