"""The same products on FP8 tensor cores, by torch's scaled matrix product with a scale per tile.

Hopper GPUs have it, with CUDA 12.9 or later. In both operands K, the dimension that is summed over,
comes last: A (M, K) in tiles 1 x 128, B (N, K) in the same tiles or in blocks 128 x 128.
cuBLAS sums 128 products in the tensor core, multiplies by both scales and adds in float32. This is
the promotion of the report's section 3.3.2. With L = K / 128, cuBLAS needs the scales

    of tiles     (M, L)                             column after column in memory
    of blocks    (L rounded up to 4, N / 128)       column after column in memory

Sizes that are not a multiple of the tile are padded with zeros, which change no sum. `usable`
compares two products with the simulation before the tensor cores are used.
"""

import functools

import torch
import torch.nn.functional as F

from ..device import has_scaled_products
from .quantize import BLOCK, TILE, quantize, rounded

TOLERANCE = 1e-3                                 # relative; tensor cores cut sums to 14 bits


@functools.cache
def usable(device):
    """Whether the device has these products and they agree with the simulation; checked once."""
    if not has_scaled_products(device):
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, 400, generator=generator).to(device) for rows in (136, 200))
    try:
        return all(close(product(a, b, tile), rounded(a) @ rounded(b, tile).T)
                   for tile in (TILE, BLOCK))
    except (RuntimeError, ValueError):           # CUDA is older than 12.9
        return False


def close(real, simulated):
    """Whether two products are equal up to the precision of a tensor core's sums."""
    return bool((real - simulated).norm() <= TOLERANCE * simulated.norm())


def grouped_product(rows, weight, runs, power_of_two):
    """Each run of rows times its own matrix: rows (N, K), weight (E, O, K) -> (N, O) float32."""
    y, sizes = rows.new_zeros(len(rows), weight.size(1), dtype=torch.float32), runs.sizes
    for part, matrix, out in zip(rows.split(sizes), weight, y.split(sizes), strict=True):
        if len(part):
            out.copy_(product(part, matrix, BLOCK, power_of_two))
    return y


def product(a, b, tile, power_of_two=False, power_of_two_b=False):
    """a (M, K) in tiles 1 x 128 times b (N, K)^T in such tiles or in blocks -> (M, N) float32."""
    M, N = len(a), len(b)
    # cuBLAS needs M and N in multiples of 16 and K in multiples of 128; blocks of b are whole.
    a, b = fill(a, 16, 128), fill(b, 128, 128)
    codes_a, scale_a = quantize(a, TILE, power_of_two=power_of_two)
    codes_b, scale_b = quantize(b, tile, power_of_two=power_of_two_b)
    kinds, kind_b = F.ScalingType, F.ScalingType.BlockWise1x128
    if tile == BLOCK:
        kind_b, scale_b = kinds.BlockWise128x128, fill(scale_b, 1, 4).T    # (L4, N/128)
    else:
        scale_b = by_columns(scale_b)
    y = F.scaled_mm(codes_a, codes_b.T, by_columns(scale_a), kinds.BlockWise1x128, scale_b, kind_b,
                    output_dtype=torch.float32)
    return y[:M, :N]


def fill(x, rows, columns):
    """Pad with zeros below and to the right, to multiples of rows and columns."""
    return F.pad(x, (0, -x.size(1) % columns, 0, -x.size(0) % rows)).contiguous()


def by_columns(x):
    """The same matrix, stored column after column in memory."""
    return x.T.contiguous().T
