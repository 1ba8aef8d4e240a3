"""What prefill and decode are, apart, and what goes from one to the other (report, section 3.4).

Reading a prompt and writing its continuation want opposite things. Prefill has hundreds of tokens a
pass and is bound by arithmetic; decode has one for each sequence and is bound by memory. Where one
process does both, everybody who is being written to waits while a long prompt is read. So the
report serves them on different machines, and what a prompt has become travels between them:

    requests -> Prefill -> Handover -> Decode -> texts

    Prefill    reads up to `budget` prompt tokens a pass: a long one in pieces, short ones together
    Handover   the sequence, and the latents of all layers: H*(D+Dv) / (Rkv+Dr) times fewer numbers
               than its keys and values (71 times at full size, 3 times in the tiny model)
    Decode     one pass makes a token, or several by drafts, for every sequence that is in; others
               join as soon as one has left (continuous batching)

`serving.py` runs them, in one process or in two. Left out: many machines on each side, experts
spread over them, and caches shared by prompts that begin alike.
"""

import json
from collections import deque
from dataclasses import dataclass

import torch
from safetensors.torch import load, save

from ..command import UserError
from ..infer.decoder import Decoder, Sequence, padded
from ..infer.sampling import Sampler
from ..infer.speculative import last_of


@dataclass
class Handover:
    """A sequence on its way, and what the model remembers of it so far."""

    number: int
    sequence: Sequence
    latents: torch.Tensor                        # (L, length, Rkv+Dr)
    draft_latents: torch.Tensor | None = None    # (1, length, Rkv+Dr) of the MTP module, if used
    state: torch.Tensor | None = None            # (1, C), from which it reads the next draft

    @property
    def nbytes(self):
        """Size of the latents [bytes]."""
        drafting = 0 if self.draft_latents is None else self.draft_latents.nbytes
        return self.latents.nbytes + drafting

    def expanded_nbytes(self, config):
        """Size that the keys (D) and values (Dv) of all heads would have [bytes]."""
        head = config.qk_head_dim + config.v_head_dim
        return (self.nbytes // self.latents.size(-1)) * config.num_attention_heads * head

    def to_bytes(self):
        """Everything, in the safetensors format: nothing is pickled."""
        sequence = self.sequence
        if type(sequence) is not Sequence:
            raise UserError(f"a {type(sequence).__name__} cannot be handed over as bytes, since "
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
        """What `to_bytes` wrote; its tensors are on the CPU."""
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

    budget: token positions in a pass. speculative: above 0, the MTP module reads along.
    """

    def __init__(self, model, budget=256, speculative=0):
        if budget < 1:
            raise UserError(f"budget={budget} must be at least 1 token a pass, for instance 256.")
        self.model, self.budget, self.speculative = model, budget, speculative
        self.queue, self.added = deque(), 0

    def add(self, sequence):
        """Queue a sequence; its handover is numbered by the order of these calls."""
        config = self.model.config
        length, most = len(sequence.tokens) + sequence.limit, config.max_position_embeddings
        if not sequence.tokens or length > most:
            raise UserError(f"request {self.added} has {len(sequence.tokens)} prompt tokens and "
                            f"asks for {sequence.limit}; give at least 1, and no more than "
                            f"max_position_embeddings={most} together.")
        width = config.kv_lora_rank + config.qk_rope_head_dim
        nothing = [torch.empty(config.num_hidden_layers, 0, width)]
        if self.speculative:
            nothing += [torch.empty(1, 0, width), torch.empty(1, config.hidden_size)]
        self.queue.append(Handover(self.added, sequence, *nothing))
        self.added += 1

    @torch.inference_mode()
    def step(self):
        """One pass over the next prompt tokens -> the handovers that it completed."""
        batch, pieces = self.next_pieces()
        if not batch:
            return []
        room = max(part.latents.size(1) for part in batch) + max(map(len, pieces))
        reader = Decoder(self.model, len(batch), room, self.speculative)
        for part in batch:
            reader.admit(part.sequence, part.latents, part.draft_latents, part.state)
        tokens, counts = padded(pieces, reader.cache.device)                   # (B, T)
        hidden = reader.read(tokens, counts)                                   # (B, T, C)
        end, prompt = batch[0].latents.size(1) + counts[0], batch[0].sequence.tokens
        if end < len(prompt):                    # cut, and therefore alone
            follows = [[prompt[end]]]
        else:
            follows = reader.choose(last_of(hidden, counts)[:, None])
        if self.speculative:
            after = [piece[1:] + token for piece, token in zip(pieces, follows)]
            reader.drafter.read(hidden, padded(after, tokens.device)[0], counts)
        for row, part in enumerate(batch):
            part.latents = reader.cache.take(row)
            if self.speculative:
                part.draft_latents = reader.drafter.cache.take(row)
                part.state = reader.drafter.state[row]
        return [] if end < len(prompt) else [self.queue.popleft() for _ in batch]

    def next_pieces(self):
        """Who is read in this pass, and the tokens of each.

        Either one prompt is cut, or all that fit are read to their ends. Filling counts too, since
        it takes as much time as tokens do.
        """
        batch, pieces = [], []
        for part in self.queue:
            begin, tokens = part.latents.size(1), part.sequence.tokens
            piece = tokens[begin:] if batch else tokens[begin:begin + self.budget]
            if max(map(len, [*pieces, piece])) * (len(batch) + 1) > self.budget:
                break
            batch.append(part)
            pieces.append(piece)
        return batch, pieces


class Decode:
    """Writes up to `places` texts at a time, of up to max_len tokens with prompt and drafts."""

    def __init__(self, model, places, max_len, speculative=0):
        self.decoder, self.speculative = Decoder(model, places, max_len, speculative), speculative
        self.waiting = deque()

    @property
    def is_idle(self):
        """Whether nobody is in and nobody waits."""
        return not self.waiting and not self.decoder.sequences

    def admit(self, handover):
        """Let a sequence join as soon as there is a place. UserError if it will never fit."""
        sequence, cache = handover.sequence, self.decoder.cache
        needed = len(sequence.tokens) + sequence.limit + self.speculative
        if needed > cache.max_len:
            raise UserError(f"handover {handover.number} needs room for {needed} tokens (prompt, "
                            f"new ones, drafts), but max_len={cache.max_len}; make the engine "
                            "with a larger max_len.")
        if self.speculative and handover.state is None:
            raise UserError(f"handover {handover.number} has no latents of the MTP module, with "
                            f"which speculative={self.speculative} drafts; prefill with it too.")
        self.waiting.append(handover)

    def step(self):
        """Fill the free places and make one pass for all -> the sequences that have ended."""
        decoder = self.decoder
        while self.waiting and len(decoder.sequences) < decoder.cache.places:
            part = self.waiting.popleft()
            decoder.admit(part.sequence, part.latents, part.draft_latents, part.state)
        ended = self.let_go()                    # some end with the token that prefill chose
        if decoder.sequences:
            decoder.step()
        return ended + self.let_go()

    def let_go(self):
        """Remove all sequences that have ended -> them."""
        rows = [row for row, sequence in enumerate(self.decoder.sequences) if sequence.ended]
        return [self.decoder.leave(row) for row in reversed(rows)]
