"""FP8 with one scale per tile, as in the released checkpoint (report, section 3.3.2).

    s = max|x| of a tile / 448          q = E4M3(x / s)          x ~ q * s

E4M3 has 4 exponent bits and 3 mantissa bits; its largest number is 448. With one scale for a whole
matrix, one outlier would push all other numbers down to the few smallest ones. With one scale per
tile, an outlier affects only its own tile. The report uses blocks of 128 x 128 for weights and
tiles of 1 x 128 for activations. The release calls a scale `weight_scale_inv`, but codes are
multiplied by it, not divided.
"""

from typing import NamedTuple

import torch
from einops import rearrange


class Format(NamedTuple):
    """A small floating-point format: exponent bits, mantissa bits, largest number; no infinity."""

    exponent: int
    mantissa: int
    largest: float


FORMATS = {torch.float8_e4m3fn: Format(4, 3, 448.0), torch.float8_e5m2: Format(5, 2, 57344.0)}

# The input of the linear layer after attention is cached in these 12 bits (report, section 3.3.3).
# torch has no dtype for them. As in E5M2, the highest exponent is not used.
E5M6 = Format(5, 6, 65024.0)

TILE = (1, 128)                                  # for activations: one token, 128 channels
BLOCK = (128, 128)                               # for weights


def quantize(x, tile=TILE, dtype=torch.float8_e4m3fn, power_of_two=False):
    """x (R, C) -> codes (R, C) of an FP8 dtype, scale (ceil(R/tile_r), ceil(C/tile_c)) float32.

    dtype is torch.float8_e4m3fn, torch.float8_e5m2 or a Format; codes of a Format are float32
    numbers that it can represent. Tiles at the edges may be smaller; tile=None is one tile for the
    whole matrix. A tile of zeros has scale 1; a tile with NaN or infinity has a scale that is not
    finite. power_of_two rounds the scale up to a power of two, so that scaling changes only
    exponents (report, section 3.3.3); numbers within 4 % of float32's largest may then come back
    as infinity. Raises ValueError if x is not a matrix.
    """
    tiles, scale = scaled_tiles(x, tile, dtype, power_of_two)
    codes = out_of_tiles(tiles, x.shape)
    return round_to(codes, dtype) if isinstance(dtype, Format) else codes.to(dtype), scale


def rounded(x, tile=TILE, dtype=torch.float8_e4m3fn, power_of_two=False):
    """dequantize(quantize(x)) without making codes, which is faster: x (R, C) -> (R, C) float32."""
    tiles, scale = scaled_tiles(x, tile, dtype, power_of_two)
    tiles = round_to(tiles, FORMATS.get(dtype, dtype)).mul_(scale[:, None, :, None])
    return out_of_tiles(tiles, x.shape)


def scaled_tiles(x, tile, dtype, power_of_two):
    """x (R, C) -> x / scale within the format's range (tr, r, tc, c), scale (tr, tc).

    tr and tc count the tiles down and across; r and c are the rows and columns of one tile.
    """
    largest = FORMATS.get(dtype, dtype).largest
    tiles = into_tiles(x.float(), tile)
    amax = tiles.abs().amax(dim=(1, 3))                                # (tr, tc)
    scale = amax / largest
    # A scale may underflow to 0 where amax does not; the scale is then 1, as for zeros.
    scale = scale.masked_fill(scale == 0, 1.0)
    if power_of_two:
        mantissa = scale.frexp().mantissa                              # 0.5 <= mantissa < 1
        scale = torch.where(mantissa == 0.5, scale, scale / mantissa)
    # Clamp first: what a cast does above the largest number differs between machines.
    return (tiles / scale[:, None, :, None]).clamp_(-largest, largest), scale


def round_to(x, kind):
    """The nearest numbers that a Format can represent, ties to even; subnormals included.

    x is float32, within the range of the Format. A float32 has 23 bits after its leading one. When
    1.5 * 2^(23 - mantissa) times the power of two in |x| is added, the sum has room for only
    `mantissa` bits of x, and the processor rounds x to them, half to even. Subtracting the large
    number again leaves the rounded x.
    """
    lowest = 2.0 ** (2 - 2 ** (kind.exponent - 1))                     # smallest normal number
    bits = x.contiguous().view(torch.int32)
    power = (bits & 0x7F800000).view(torch.float32)                    # 2^floor(log2 |x|)
    large = power.clamp_(min=lowest).mul_(1.5 * 2.0 ** (23 - kind.mantissa))
    return (x + large).sub_(large)


def dequantize(codes, scale, tile=TILE):
    """codes (R, C), scale (ceil(R/tile_r), ceil(C/tile_c)) -> x (R, C) float32.

    Raises ValueError if the scale does not have the shape that the tiles need.
    """
    tile = tile or whole(codes)
    needed = tuple(-(-size // step) for size, step in zip(codes.shape, tile, strict=True))
    if tuple(scale.shape) != needed:
        raise ValueError(f"scale has shape {tuple(scale.shape)}, but {tuple(codes.shape)} codes in "
                         f"tiles of {tuple(tile)} need {needed}.")
    tiles = into_tiles(decode(codes), tile) * scale.float()[:, None, :, None]
    return out_of_tiles(tiles, codes.shape)


def decode(codes):
    """Codes as float32. On a CPU, a table of all 256 codes is several times faster than a cast."""
    if codes.dtype not in FORMATS:
        return codes.float()
    table = torch.arange(256, dtype=torch.uint8, device=codes.device).view(codes.dtype).float()
    return table.index_select(0, codes.view(torch.uint8).flatten().int()).view(codes.shape)


def into_tiles(x, tile):
    """x (R, C) -> (tr, r, tc, c), with zeros where the last tiles reach beyond the matrix."""
    if x.dim() != 2:
        raise ValueError(f"a matrix is needed, got shape {tuple(x.shape)}; flatten it first.")
    tile = tile or whole(x)
    rows, columns = (-size % step for size, step in zip(x.shape, tile, strict=True))
    x = torch.nn.functional.pad(x, (0, columns, 0, rows))
    return rearrange(x, "(tr r) (tc c) -> tr r tc c", r=tile[0], c=tile[1])


def out_of_tiles(tiles, shape):
    """The inverse of into_tiles, without the added zeros: (tr, r, tc, c) -> shape (R, C)."""
    return rearrange(tiles, "tr r tc c -> (tr r) (tc c)")[:shape[0], :shape[1]]


def whole(x):
    """The one tile that covers a matrix."""
    return tuple(max(1, size) for size in x.shape)
