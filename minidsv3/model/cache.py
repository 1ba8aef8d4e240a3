"""What a model remembers of the text so far: one latent vector a token and layer.

MLA needs no keys and values per head. The normed latent c_kv and the rotated key k_rope, together
kv_lora_rank + qk_rope_head_dim numbers (576 at full size), are enough to form all of them again.
Only data and appending live here; when to prefill or crop is decided by who generates.
"""

import torch


class LayerCache:
    """The latents of one layer: memory for `max_len` tokens, the first `length` of them filled."""

    def __init__(self, batch, max_len, width, dtype, device):
        # (B, S, Rkv+Dr)
        self.latents = torch.empty(batch, max_len, width, dtype=dtype, device=device)
        self.length = 0

    def append(self, new):
        """Write new (B, T, Rkv+Dr) behind what is there -> all latents so far (B, S, Rkv+Dr).

        Raises ValueError when the memory is full.
        """
        end = self.length + new.size(1)
        if end > self.latents.size(1):
            raise ValueError(f"the cache holds max_len={self.latents.size(1)} tokens but {end} are "
                             "needed; make it with a larger max_len.")
        self.latents[:, self.length:end] = new
        self.length = end
        return self.latents[:, :end]


class LatentCache:
    """One LayerCache for each layer of the main model."""

    def __init__(self, config, batch, max_len, dtype, device):
        width = config.kv_lora_rank + config.qk_rope_head_dim
        self.layers = [LayerCache(batch, max_len, width, dtype, device)
                       for _ in range(config.num_hidden_layers)]

    @property
    def length(self):
        """Tokens held [tokens]."""
        return self.layers[0].length

    @property
    def nbytes(self):
        """Memory held, filled or not [bytes]."""
        return sum(layer.latents.nbytes for layer in self.layers)
