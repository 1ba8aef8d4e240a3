"""Sums in few bits against a loop over single sums, and against exact ones."""

import math

import pytest
import torch

from minidsv3.fp8 import accumulate


def by_a_loop(a, b, bits, interval):
    """One sum at a time, with Python's own numbers."""
    def cut(x, unit):
        return math.trunc(x / unit) * unit

    total, partial = 0.0, 0.0
    for start in range(0, len(a), 32):
        terms = [partial] + [x * y for x, y in zip(a[start:start + 32], b[start:start + 32])]
        largest = max(map(abs, terms))
        unit = 2.0 ** (math.frexp(largest)[1] - bits)
        partial = sum(cut(term, unit) for term in terms)
        if interval and (start + 32) % interval == 0:
            total, partial = torch.tensor(total + partial).float().item(), 0.0
    return total + partial


@pytest.mark.parametrize("interval", [None, 32, 128])
@pytest.mark.parametrize("bits", [8, 14])
def test_a_product_is_its_sums_one_by_one(bits, interval):
    """Oracle: the loop; 200 products, so that the last step is ragged."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(rows, 200, generator=generator) for rows in (3, 5))
    got = accumulate(a, b, bits, interval)
    for m in range(3):
        for n in range(5):
            expected = by_a_loop(a[m].tolist(), b[n].tolist(), bits, interval)
            assert got[m, n].item() == pytest.approx(expected, rel=1e-12)


def test_with_many_bits_it_is_the_exact_product():
    """Oracle: torch's product in float64."""
    a, b = torch.rand(4, 256), torch.rand(3, 256)
    torch.testing.assert_close(accumulate(a, b, bits=50), a.double() @ b.double().T,
                               rtol=1e-12, atol=0)


def test_promotion_saves_a_long_sum():
    """Oracle: the exact product of 4,096 positive numbers: per cents are lost, then almost none."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(8, 4096, generator=generator).to(torch.float8_e4m3fn).float()
            for _ in range(2))
    exact = a.double() @ b.double().T
    never, promoted = (((accumulate(a, b, interval=interval) - exact) / exact).abs().max().item()
                       for interval in (None, 128))
    assert 0.02 < never < 0.1 and promoted < 1e-3


@pytest.mark.parametrize("interval", [0, 16, 100])
def test_an_interval_between_steps_is_refused(interval):
    """Oracle: the value and the remedy."""
    with pytest.raises(ValueError, match=f"interval={interval} must be a multiple of 32"):
        accumulate(torch.ones(1, 64), torch.ones(1, 64), interval=interval)
