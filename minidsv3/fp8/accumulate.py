"""Sums in few bits: why partial sums are promoted to float32 (report, sections 3.3.2 and 3.5.2).

A Hopper tensor core adds the products of an FP8 matrix product in steps of 32. In each step all
terms, including the sum so far, are shifted to the largest exponent, and the bits that do not fit
are cut off, not rounded. About 14 bits stay. Long sums therefore lose precision: the larger the sum
has grown, the more bits of each new term are cut off. The remedy is to add the sum to a float32
total after every N_C = 128 products and to start again from zero. This file is for study on small
products: everything is simulated in float64.
"""

import torch

STEP = 32                                        # products in one step of a tensor core
INTERVAL = 128                                   # N_C of the report


def accumulate(a, b, bits=14, interval=None):
    """a (M, K) times b (N, K) transposed -> (M, N), summed with that many bits.

    interval: after how many products the sum is promoted to float32, a multiple of 32; None means
    never. Raises ValueError for any other interval.
    """
    if interval is not None and (interval < STEP or interval % STEP):
        raise ValueError(f"interval={interval} must be a multiple of {STEP}, for instance "
                         f"{INTERVAL}, or None to promote never.")
    a, b = a.cpu().double(), b.cpu().double()    # not every device has float64
    M, K = a.shape
    total = torch.zeros(M, len(b), dtype=torch.float64)
    partial = torch.zeros_like(total)
    for start in range(0, K, STEP):
        products = a[:, None, start:start + STEP] * b[None, :, start:start + STEP]   # (M, N, 32)
        terms = torch.cat([partial[..., None], products], dim=-1)
        partial = cut(terms, bits).sum(dim=-1)
        if interval and (start + STEP) % interval == 0:
            total, partial = (total + partial).float().double(), torch.zeros_like(total)
    return total + partial


def cut(terms, bits):
    """Shift all terms to the largest exponent of their row and cut off what is below `bits` bits.

    terms (..., n) float64 -> the same shape.
    """
    largest = terms.abs().amax(dim=-1, keepdim=True).frexp().exponent  # |terms| < 2^largest
    unit = torch.exp2((largest - bits).double())
    return (terms / unit).trunc() * unit
