"""What a model remembers of the text so far: one latent vector per token and layer.

MLA needs no keys and values per head. The normed latent c_kv and the rotated key k_rope, together
kv_lora_rank + qk_rope_head_dim numbers (576 at full size), are enough to form all of them again, or
to attend to directly. Memory for max_len tokens is allocated once; the sequences of a batch may
differ in length, be cut back, leave and join. The decoder decides which of that happens.

    cache = model.new_cache(batch, max_len)
    with torch.no_grad():                        a cache is not for training
        model(tokens, cache)                     appends T tokens to every sequence
    cache.crop([7, 12])                          forgets the tokens after these lengths

One forward pass uses it in three steps, always in this order: `make_room` (positions and mask of
the new tokens), `append` in every layer (their latents), `advance` (the new lengths).
"""

import torch

from ..device import send
from ..kernels.attention import last_queries
from .rope import rope_table


class LayerCache:
    """The latents of one layer: (B, max_len, Rkv+Dr), of which each sequence fills a beginning."""

    def __init__(self, whole, latents):
        self.whole, self.latents = whole, latents

    def append(self, new):
        """Write new (B, T, Rkv+Dr) at each sequence's end -> all latents (B, S, Rkv+Dr)."""
        batch, end = len(new), self.whole.length + new.size(1)
        if self.whole.is_even:
            self.write((slice(batch), slice(self.whole.length, end)), new)
        else:
            self.write((self.whole.rows, self.whole.positions), new)
        return self.read((slice(batch), slice(end)))

    def write(self, place, latents):
        """Store latents at (rows, positions).

        Subclasses that store latents differently override `write`, `read` and `parts`.
        """
        self.latents[place] = latents

    def read(self, place):
        """The latents at (rows, positions)."""
        return self.latents[place]

    @property
    def parts(self):
        """The tensors that hold the latents, (B, max_len, ...) each."""
        return [self.latents]

    @property
    def visible(self):
        """What each new token may see, (T, S) or (B, 1, T, S); None: the causal mask."""
        return self.whole.visible


class LatentCache:
    """One LayerCache for each layer of the main model, and the tokens that each sequence holds.

    lengths: a list of B numbers, one for each sequence in use; there is memory for `batch` of them.
    """

    def __init__(self, config, batch, max_len, dtype, device, layers=None):
        width = config.kv_lora_rank + config.qk_rope_head_dim
        layers = config.num_hidden_layers if layers is None else layers
        # Zeros, not old memory: a position that is masked has weight 0, and 0 * NaN is NaN.
        self.layers = [LayerCache(self, torch.zeros(batch, max_len, width, dtype=dtype,
                                                    device=device)) for _ in range(layers)]
        self.places, self.max_len, self.device = batch, max_len, device
        self.rope = rope_table(config, torch.arange(max_len, device=device))   # (max_len, Dr/2)
        self.lengths = [0] * batch
        self.positions = self.rows = self.visible = None

    @property
    def length(self):
        """Tokens of the longest sequence."""
        return max(self.lengths, default=0)

    @property
    def is_even(self):
        """Whether all sequences are equally long: then appending is one copy, and needs no mask."""
        return all(length == self.lengths[0] for length in self.lengths)

    @property
    def nbytes(self):
        """Memory held, filled or not [bytes]."""
        return sum(part.nbytes for layer in self.layers for part in layer.parts)

    def make_room(self, new):
        """Prepare for `new` tokens per sequence -> their rope table, (T, Dr/2), or (B, T, Dr/2) if
        their positions differ. Raises ValueError when the memory is full; nothing is written then.
        """
        end, device = self.length + new, self.device
        if end > self.max_len:
            raise ValueError(f"the cache holds max_len={self.max_len} tokens but {end} are needed; "
                             "make it with a larger max_len.")
        if self.is_even:
            self.visible = last_queries(new, end, device) if 1 < new < end else None
            return self.rope[end - new:end]
        lengths = send(torch.tensor(self.lengths), device)[:, None]            # (B, 1)
        self.positions = lengths + torch.arange(new, device=device)            # (B, T)
        self.rows = torch.arange(len(self.lengths), device=device)[:, None]    # (B, 1)
        seen = torch.arange(end, device=device) <= self.positions[..., None]   # (B, T, S)
        self.visible = seen[:, None]
        return self.rope[self.positions]

    def advance(self, counts):
        """Count the tokens just written: so many of each sequence are real, the rest is padding."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def crop(self, lengths):
        """Forget all after these lengths, one per sequence, as after rejected drafts."""
        if len(lengths) != len(self.lengths):
            raise ValueError(f"{len(lengths)} lengths for {len(self.lengths)} sequences; give one "
                             "for each.")
        for row, (length, held) in enumerate(zip(lengths, self.lengths, strict=True)):
            if not 0 <= length <= held:
                raise ValueError(f"sequence {row} holds {held} tokens and cannot be cut to "
                                 f"{length}; choose 0 to {held}.")
        self.lengths = list(lengths)

    def take(self, row):
        """A copy of a sequence's latents, to be handed over: (L, length, Rkv+Dr)."""
        return torch.stack([layer.read((row, slice(self.lengths[row]))) for layer in self.layers])

    def put(self, latents):
        """Add a sequence that `take` gave, after those in use. ValueError if there is no place."""
        row, length = len(self.lengths), latents.size(1)
        if row == self.places or length > self.max_len:
            raise ValueError(f"the cache has places for {self.places} sequences of up to max_len="
                             f"{self.max_len} tokens; there is none for number {row + 1} with "
                             f"{length}.")
        for layer, of_layer in zip(self.layers, latents, strict=True):
            layer.write((row, slice(length)), of_layer)
        self.lengths.append(length)

    def drop(self, row):
        """Remove a sequence; the last one takes its place, so that those in use stay together."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if row != last:
            for part in (part for layer in self.layers for part in layer.parts):
                part[row, :length] = part[last, :length]
            self.lengths[row] = length
