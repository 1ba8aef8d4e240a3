"""FP8 with one scale a tile, as the released checkpoint stores its weights (report, section 3.3.2).

    s = max|x| of a tile / 448          q = E4M3(x / s)          x ~ q * s

E4M3 has 4 exponent and 3 mantissa bits, and ends at 448. A scale for the whole matrix would let one
outlier push all else into the few smallest numbers; a scale a tile confines it. The report takes
128 x 128 blocks of weights and 1 x 128 tiles of activations. Scales are named `weight_scale_inv` in
the release, but multiply all the same.
"""

import torch

from .model.cache import LayerCache

TILE = (1, 128)                                  # of activations: one token, 128 channels
BLOCK = (128, 128)                               # of weights


def quantize(x, tile=TILE, dtype=torch.float8_e4m3fn, power_of_two=False):
    """x (R, C) -> codes (R, C) of an FP8 dtype, scale (ceil(R/tile_r), ceil(C/tile_c)) float32.

    Tiles at the edges may be smaller. A tile of zeros has scale 1. power_of_two rounds the scale up
    to a power of two, so that scaling only moves exponents (report, section 3.3.3).
    Raises ValueError for x that is not a matrix.
    """
    tiles = into_tiles(x.float(), tile)                                # (R', tr, C', tc)
    amax = tiles.abs().amax(dim=(1, 3))                                # (R', C')
    scale = amax / torch.finfo(dtype).max
    if power_of_two:
        scale = scale.log2().ceil().exp2()
    # A scale may underflow to 0 where amax does not; 1 then serves as for zeros.
    scale = torch.where(scale > 0, scale, 1.0)
    limit = torch.finfo(dtype).max               # casts beyond it differ between machines: clamp
    codes = (tiles / scale[:, None, :, None]).clamp(-limit, limit)
    return out_of_tiles(codes, x.shape).to(dtype), scale


def dequantize(codes, scale, tile=TILE):
    """codes (R, C), scale (ceil(R/tile_r), ceil(C/tile_c)) -> x (R, C) float32.

    Raises ValueError where the scale's shape is not the one that the tiles need.
    """
    needed = tuple(-(-size // step) for size, step in zip(codes.shape, tile, strict=True))
    if tuple(scale.shape) != needed:
        raise ValueError(f"scale has shape {tuple(scale.shape)}, but {tuple(codes.shape)} codes in "
                         f"tiles of {tuple(tile)} need {needed}.")
    tiles = into_tiles(codes.float(), tile) * scale.float()[:, None, :, None]
    return out_of_tiles(tiles, codes.shape)


def into_tiles(x, tile):
    """x (R, C) -> (R', tile_r, C', tile_c), zeros added where the last tiles stick out."""
    if x.dim() != 2:
        raise ValueError(f"a matrix is needed, got shape {tuple(x.shape)}; flatten it first.")
    rows, columns = (-size % step for size, step in zip(x.shape, tile, strict=True))
    x = torch.nn.functional.pad(x, (0, columns, 0, rows))
    return x.unflatten(1, (-1, tile[1])).unflatten(0, (-1, tile[0]))


def out_of_tiles(tiles, shape):
    """The inverse of into_tiles: the added zeros are dropped."""
    return tiles.flatten(2, 3).flatten(0, 1)[:shape[0], :shape[1]]


def new_cache(model, batch, max_len):
    """As model.new_cache, with the latents in FP8: 656 bytes a token and layer of V3, not 1,152."""
    cache, rank = model.new_cache(batch, max_len), model.config.kv_lora_rank
    cache.layers = [FP8LayerCache(cache, layer.latents, rank) for layer in cache.layers]
    return cache


class FP8LayerCache(LayerCache):
    """c_kv in E4M3, a scale for 128 channels; k_rope as it is: angles bear no rounding.

    What is read is dequantised again; a kernel on a GPU would multiply the codes as they are.
    """

    def __init__(self, whole, latents, rank):
        self.whole = whole
        c_kv, k_rope = latents.split([rank, latents.size(-1) - rank], dim=-1)
        self.codes = c_kv.to(torch.float8_e4m3fn)                      # (B, max_len, Rkv)
        tiles = -(-rank // TILE[1])
        self.scale = torch.ones(*c_kv.shape[:2], tiles, device=c_kv.device)
        self.k_rope = k_rope.clone()                                   # (B, max_len, Dr)

    def write(self, place, latents):
        """Quantise and store."""
        c_kv, k_rope = latents.split([self.codes.size(-1), self.k_rope.size(-1)], dim=-1)
        codes, scale = quantize(c_kv.flatten(0, -2))
        self.codes[place] = codes.view(c_kv.shape)
        self.scale[place] = scale.view(*c_kv.shape[:-1], -1)
        self.k_rope[place] = k_rope

    def read(self, place):
        """Dequantised, in the dtype of the rotary keys."""
        codes, scale = self.codes[place], self.scale[place]
        c_kv = dequantize(codes.flatten(0, -2), scale.flatten(0, -2)).view(codes.shape)
        return torch.cat([c_kv.to(self.k_rope.dtype), self.k_rope[place]], dim=-1)

    @property
    def parts(self):
        """Codes, scales and rotary keys."""
        return [self.codes, self.scale, self.k_rope]
