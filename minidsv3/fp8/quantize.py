"""FP8 with one scale a tile, as the released checkpoint stores its weights (report, section 3.3.2).

    s = max|x| of a tile / 448          q = E4M3(x / s)          x ~ q * s

E4M3 has 4 exponent and 3 mantissa bits, and ends at 448. A scale for the whole matrix would let one
outlier push all else into the few smallest numbers; a scale a tile confines it. The report takes
128 x 128 blocks of weights and 1 x 128 tiles of activations. Scales are named `weight_scale_inv` in
the release, but multiply all the same.
"""

from typing import NamedTuple

import torch

from ..command import UserError


class Format(NamedTuple):
    """A small floating-point format: its bits, and its largest number; no infinity."""

    exponent: int
    mantissa: int
    largest: float


FORMATS = {torch.float8_e4m3fn: Format(4, 3, 448.0), torch.float8_e5m2: Format(5, 2, 57344.0)}

# What the input of the linear after attention is cached in (report, section 3.3.3): 12 bits, for
# which torch has no dtype. Of the top exponent, as in E5M2, nothing is used.
E5M6 = Format(5, 6, 65024.0)

TILE = (1, 128)                                  # of activations: one token, 128 channels
BLOCK = (128, 128)                               # of weights


def quantize(x, tile=TILE, dtype=torch.float8_e4m3fn, power_of_two=False):
    """x (R, C) -> codes (R, C) of an FP8 dtype, scale (ceil(R/tile_r), ceil(C/tile_c)) float32.

    dtype: torch.float8_e4m3fn, torch.float8_e5m2, or a Format, whose codes are float32 numbers that
    it could hold. Tiles at the edges may be smaller; None is one tile for the whole matrix. A tile
    of zeros has scale 1, one with NaN or infinity a scale that is not finite. power_of_two rounds
    the scale up to a power of two, so that scaling only moves exponents (report, section 3.3.3);
    what lies within 4 % of float32's largest number may then come back as infinity. Raises
    UserError for x that is not a matrix.
    """
    tiles, scale = scaled_tiles(x, tile, dtype, power_of_two)
    codes = out_of_tiles(tiles, x.shape)
    return round_to(codes, dtype) if isinstance(dtype, Format) else codes.to(dtype), scale


def rounded(x, tile=TILE, dtype=torch.float8_e4m3fn, power_of_two=False):
    """x (R, C) float32 as its codes would give it back, exactly; quicker, as none are made."""
    tiles, scale = scaled_tiles(x, tile, dtype, power_of_two)
    tiles = round_to(tiles, FORMATS.get(dtype, dtype)).mul_(scale[:, None, :, None])
    return out_of_tiles(tiles, x.shape)


def scaled_tiles(x, tile, dtype, power_of_two):
    """x / scale within the range of the format (R', tile_r, C', tile_c), scale (R', C')."""
    largest = FORMATS.get(dtype, dtype).largest
    tiles = into_tiles(x.float(), tile)
    amax = tiles.abs().amax(dim=(1, 3))                                # (R', C')
    scale = amax / largest
    # A scale may underflow to 0 where amax does not; 1 then serves as for zeros.
    scale = scale.masked_fill(scale == 0, 1.0)
    if power_of_two:
        mantissa = scale.frexp().mantissa                              # 0.5 <= mantissa < 1
        scale = torch.where(mantissa == 0.5, scale, scale / mantissa)
    # Casts beyond the largest number differ between machines: clamp first.
    return (tiles / scale[:, None, :, None]).clamp_(-largest, largest), scale


def round_to(x, kind):
    """The nearest numbers that a Format holds, ties to even mantissas; subnormals included.

    x float32, within the range of the Format. A float32 has 23 bits behind its leading one. Once
    1.5 * 2^(23 - mantissa) times the power of two in |x| is added, only `mantissa` bits of x find
    room, and the processor rounds to them, half to even; then the large number is taken off again.
    """
    lowest = 2.0 ** (2 - 2 ** (kind.exponent - 1))                     # of normal numbers
    bits = x.contiguous().view(torch.int32)
    power = (bits & 0x7F800000).view(torch.float32)                    # 2^floor(log2 |x|)
    large = power.clamp_(min=lowest).mul_(1.5 * 2.0 ** (23 - kind.mantissa))
    return (x + large).sub_(large)


def dequantize(codes, scale, tile=TILE):
    """codes (R, C), scale (ceil(R/tile_r), ceil(C/tile_c)) -> x (R, C) float32.

    Raises UserError where the scale's shape is not the one that the tiles need.
    """
    tile = tile or whole(codes)
    needed = tuple(-(-size // step) for size, step in zip(codes.shape, tile, strict=True))
    if tuple(scale.shape) != needed:
        raise UserError(f"scale has shape {tuple(scale.shape)}, but {tuple(codes.shape)} codes in "
                        f"tiles of {tuple(tile)} need {needed}.")
    tiles = into_tiles(decode(codes), tile) * scale.float()[:, None, :, None]
    return out_of_tiles(tiles, codes.shape)


def decode(codes):
    """Codes as float32. On CPUs a table of all 256 is several times faster than torch's cast."""
    if codes.dtype not in FORMATS:
        return codes.float()
    table = torch.arange(256, dtype=torch.uint8, device=codes.device).view(codes.dtype).float()
    return table.index_select(0, codes.view(torch.uint8).flatten().int()).view(codes.shape)


def into_tiles(x, tile):
    """x (R, C) -> (R', tile_r, C', tile_c), zeros added where the last tiles stick out."""
    if x.dim() != 2:
        raise UserError(f"a matrix is needed, got shape {tuple(x.shape)}; flatten it first.")
    tile = tile or whole(x)
    rows, columns = (-size % step for size, step in zip(x.shape, tile, strict=True))
    x = torch.nn.functional.pad(x, (0, columns, 0, rows))
    return x.unflatten(1, (-1, tile[1])).unflatten(0, (-1, tile[0]))


def out_of_tiles(tiles, shape):
    """The inverse of into_tiles: the added zeros are dropped."""
    return tiles.flatten(2, 3).flatten(0, 1)[:shape[0], :shape[1]]


def whole(x):
    """The one tile that covers a matrix."""
    return tuple(max(1, size) for size in x.shape)
