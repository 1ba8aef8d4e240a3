"""Sums in few bits: why partial sums are promoted to float32 (report, sections 3.3.2 and 3.5.2).

A Hopper tensor core adds the products of an FP8 matrix product in steps of 32. In a step all terms,
the sum so far among them, are shifted to the largest exponent, and what falls off at the end is
cut, not rounded. About 14 bits stay. Long sums therefore lose: the larger the sum has grown, the
more is cut off whatever is added to it. The remedy is to hand the sum to float32 after every
N_C = 128 and begin anew. For study on small products: everything is simulated in float64.
"""

import torch

from ..command import UserError

STEP = 32                                        # products in one step of a tensor core
INTERVAL = 128                                   # N_C of the report


def accumulate(a, b, bits=14, interval=None):
    """a (M, K) times b (N, K) transposed -> (M, N), with sums of so many bits.

    interval: after how many products a sum is promoted, a multiple of 32; None: never.
    """
    if interval is not None and (interval < STEP or interval % STEP):
        raise UserError(f"interval={interval} must be a multiple of {STEP}, for instance "
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
    """Shift all terms to the largest exponent of their row and cut what lies below `bits` bits."""
    largest = terms.abs().amax(dim=-1, keepdim=True).frexp().exponent  # |terms| < 2^largest
    unit = torch.exp2((largest - bits).double())
    return (terms / unit).trunc() * unit
