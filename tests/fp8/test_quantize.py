"""FP8 tiles against numbers written down beforehand and a loop over tiles."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidsv3 import fp8
from minidsv3.fp8 import BLOCK, TILE, dequantize, quantize

CODES = [6.5, 7, 1.125, -6.5, -9, -2.75, 6.5, 448]
CODES_POWER_OF_TWO = [3.25, 3.75, 0.625, -3.5, -5, -1.5, 3.5, 240]


def written_down():
    """sin(k+1)(1 + k/16), 128 numbers with one outlier: (1, 128)."""
    x = [math.sin(k + 1) * (1 + k / 16) for k in range(128)]
    x[7] = 60.0
    return torch.tensor([x], dtype=torch.float64).float()


@pytest.mark.parametrize("power_of_two, scale, first, total, error", [
    (False, 0.133928567, CODES, 502.96875, 0.0142339),
    (True, 0.25, CODES_POWER_OF_TWO, 272.546875, 0.0166004)])
def test_one_tile_gives_the_numbers_written_down(power_of_two, scale, first, total, error):
    """Oracle: the scale, eight codes, their sum and the relative error, from another program."""
    x = written_down()
    codes, scales = quantize(x, power_of_two=power_of_two)
    assert scales.shape == (1, 1) and abs(scales.item() / scale - 1) < 1e-7
    assert codes.dtype == torch.float8_e4m3fn and codes.float()[0, :8].tolist() == first
    assert codes.double().sum().item() == total
    back = dequantize(codes, scales)
    assert abs(((back - x).norm() / x.norm()).item() / error - 1) < 1e-4


@pytest.mark.parametrize("tile, scales, total, weighted, last", [
    ((128, 128), [1.3392857, 0.06365031, 0.07505505, 0.08408336], 863.37890625, 34676295.474609375,
     [112, -288, -448, -176, 256, 448, 224, -192]),
    ((1, 128), [0.01930811, 0.02853639, 0.07491554, 0.08408336], 1879.599609375, 22645837.1171875,
     [112, -288, -448, -176, 256, 448, 224, -192]),
    ((128, 1), [0.03602387, 0.03417936, 0.08007101, 0.08215053], 2254.921875, 39185507.60546875,
     [120, -320, -448, -176, 256, 448, 240, -208])])
def test_ragged_matrices_give_the_codes_of_deepgemms_convention(tile, scales, total, weighted,
                                                                last):
    """Oracle: written down from a program in numpy that casts as DeepGEMM's helpers do.

    That is x * (448 / amax), the scale amax / 448; codes there by search among E4M3's numbers. 200
    rows and 192 columns, sin(k+1+3r)(1 + k/16 + r/8), with one outlier of 600.
    """
    x = torch.tensor([[math.sin(k + 1 + 3 * r) * (1 + k / 16 + r / 8) for k in range(192)]
                      for r in range(200)], dtype=torch.float64)
    x[5, 7] = 600
    codes, scale = quantize(x.float(), tile)
    flat, wide = scale.flatten(), codes.double()
    torch.testing.assert_close(flat[[0, 1, -2, -1]], torch.tensor(scales), rtol=1e-6, atol=0)
    assert wide.sum() == total                     # exact: sums of multiples of 2^-9
    assert (wide.flatten() * torch.arange(1, 200 * 192 + 1)).sum() == weighted
    assert wide[5, 7] == 448 and wide[-1, -8:].tolist() == last


def test_rounding_is_half_to_even_and_ends_at_448():
    """Oracle: neighbours of E4M3 by hand; amax 448 makes the scale 1."""
    x = torch.tensor([[448.0, 17, 19, 20, 21, 248, 2.0**-10, 2.0**-9, -17]])
    codes, scale = quantize(x)
    assert scale.item() == 1
    assert codes.float()[0].tolist() == [448, 16, 20, 20, 20, 256, 0, 2.0**-9, -16]


@pytest.mark.parametrize("tile", [TILE, BLOCK, (128, 1), (3, 5)])
@pytest.mark.parametrize("shape", [(1, 1), (130, 257), (128, 256), (576, 130)])
def test_every_tile_has_its_own_scale(shape, tile):
    """Oracle: a loop over the tiles, ragged ones at the edges included."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).exp()
    codes, scale = quantize(x, tile)
    assert scale.shape == tuple(math.ceil(n / t) for n, t in zip(shape, tile, strict=True))
    back = dequantize(codes, scale, tile)
    for r in range(scale.size(0)):
        for c in range(scale.size(1)):
            part = (slice(r * tile[0], (r + 1) * tile[0]), slice(c * tile[1], (c + 1) * tile[1]))
            s = x[part].abs().max() / 448
            assert scale[r, c] == s
            expected = (x[part] / s).clamp(-448, 448).to(torch.float8_e4m3fn)
            assert torch.equal(codes[part].float(), expected.float())
            assert torch.equal(back[part], expected.float() * s)


def test_tiles_of_zeros_and_of_the_smallest_numbers():
    """Oracle: scale 1 and zeros back; nothing becomes NaN."""
    x = torch.zeros(2, 256)
    x[1, 128:] = torch.finfo(torch.float32).tiny / 1000
    codes, scale = quantize(x)
    assert scale[0].tolist() == [1, 1] and scale[1, 0] == 1
    assert torch.isfinite(dequantize(codes, scale)).all()
    assert torch.equal(dequantize(codes, scale)[0], x[0])


def test_e5m2_reaches_57344():
    """Oracle: the largest number of the format, which a cast would turn into infinity."""
    codes, scale = quantize(torch.tensor([[1e30, 1.0]]), dtype=torch.float8_e5m2)
    assert codes.float()[0, 0] == 57344
    assert abs(scale.item() * 57344 / 1e30 - 1) < 1e-6


def test_relative_error_stays_within_half_a_step():
    """Oracle: 3 mantissa bits round by at most 1/16 of a number that is no subnormal."""
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    codes, scale = quantize(x)
    normal = x.abs() >= 2.0**-6 * scale
    error = (dequantize(codes, scale) - x).abs() / x.abs()
    assert error[normal].max() <= 1 / 16


@pytest.mark.parametrize("broken", ["divides", "transposed"])
def test_these_oracles_notice(monkeypatch, broken):
    """Oracle: the one above must fail when the scale divides, or tiles are mixed up."""
    right = fp8.dequantize
    wrong = {"divides": lambda codes, scale, tile=TILE: right(codes, 1 / scale, tile),
             "transposed": lambda codes, scale, tile=TILE: right(codes, scale.flip(1), tile)}
    monkeypatch.setitem(globals(), "dequantize", wrong[broken])
    with pytest.raises(AssertionError):
        test_every_tile_has_its_own_scale((130, 257), TILE)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, fp8.E5M6])
@pytest.mark.parametrize("tile", [TILE, BLOCK, (128, 1), None])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_rounded_is_what_the_codes_give_back(kind, tile, power_of_two):
    """Oracle: quantize and dequantize, bit for bit, over 60 powers of two and ragged edges."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 257, generator=generator)
    x *= torch.exp2(torch.randint(-30, 30, x.shape, generator=generator).float())
    expected = dequantize(*quantize(x, tile, kind, power_of_two), tile)
    assert torch.equal(fp8.rounded(x, tile, kind, power_of_two), expected)
    assert torch.equal(fp8.rounded(x.T, tile, kind), fp8.rounded(x.T.contiguous(), tile, kind))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_all_256_codes_are_decoded_as_torch_does(dtype):
    """Oracle: torch's cast; NaN and E5M2's infinities included."""
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).view(2, 128)
    got = dequantize(codes, torch.ones(2, 1))
    assert torch.equal(got.nan_to_num(nan=-1), codes.float().nan_to_num(nan=-1))


def test_a_power_of_two_is_never_below_the_scale():
    """Oracle: doubling from far below until amax / 448 is reached; also a hair above a power."""
    for amax in (448.0, 448.0 * (1 + 2**-22), 447.9, 1e-20, 3.1e30, 448 * 2.0**-60):
        x = torch.tensor([[amax, 0.0]])
        plain, scale = quantize(x)[1].item(), quantize(x, power_of_two=True)[1].item()
        expected = 2.0**-126
        while expected < plain:
            expected *= 2
        assert scale == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(bad):
    """Oracle: its tile alone has no finite scale, and nothing of it comes back as a number."""
    x = torch.ones(2, 256)
    x[1, 130] = bad
    scale = quantize(x)[1]
    assert scale.isfinite().tolist() == [[True, True], [True, False]]
    assert not fp8.rounded(x)[1, 128:].isfinite().any() and fp8.rounded(x)[0].isfinite().all()


@pytest.mark.parametrize("call, words", [
    (lambda: quantize(torch.ones(3)), r"a matrix is needed, got shape \(3,\)"),
    (lambda: dequantize(torch.ones(3, 200).to(torch.float8_e4m3fn), torch.ones(3, 1)),
     r"scale has shape \(3, 1\), but \(3, 200\) codes in tiles of \(1, 128\) need \(3, 2\)")])
def test_bad_shapes_are_named(call, words):
    """Oracle: both shapes."""
    with pytest.raises(ValueError, match=words):
        call()


FORMATS = {torch.float8_e4m3fn: (4, 3, 448.0), torch.float8_e5m2: (5, 2, 57344.0),
           fp8.E5M6: (5, 6, 65024.0)}


def every_number(exponent, mantissa, largest):
    """All numbers of a format that are not negative, from its bits, in float64."""
    bias, steps = 2 ** (exponent - 1) - 1, 2**mantissa
    found = [m / steps * 2.0 ** (1 - bias) for m in range(steps)]
    found += [(1 + m / steps) * 2.0 ** (e - bias) for e in range(1, 2**exponent)
              for m in range(steps)]
    return torch.tensor([x for x in found if x <= largest], dtype=torch.float64)


def nearest(x, numbers):
    """The nearest of all numbers by search, ties to the even one of the list (its mantissa)."""
    above = torch.searchsorted(numbers, x.abs()).clamp(max=len(numbers) - 1)
    below = (above - 1).clamp(min=0)
    high, low = numbers[above], numbers[below]
    gap = (high - x.abs()) - (x.abs() - low)
    take_low = (gap > 0) | ((gap == 0) & (below % 2 == 0))
    return torch.where(take_low, low, high) * x.sign()


@pytest.mark.parametrize("dtype", FORMATS, ids=["E4M3", "E5M2", "E5M6"])
def test_codes_are_the_nearest_numbers_of_the_format(dtype):
    """Oracle: a search among all numbers of the format, built from its bits in float64.

    A million values over all exponents, outliers and the middles between neighbours among them; a
    tile of each begins with the largest number, so that its scale is 1.
    """
    numbers = every_number(*FORMATS[dtype])
    largest = numbers[-1].item()
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(1_000_000, generator=generator) * torch.exp2(
        24 * torch.rand(1_000_000, generator=generator) - 14)
    middles = ((numbers[1:] + numbers[:-1]) / 2).float()
    x = torch.cat([spread, middles, -middles, numbers.float()]).clamp(-largest, largest)
    x = torch.nn.functional.pad(x, (0, -len(x) % 127)).view(-1, 127)
    x = torch.cat([torch.full((len(x), 1), largest), x], dim=1)        # (R, 128)
    codes, scale = quantize(x, dtype=dtype)
    assert (scale == 1).all()
    assert torch.equal(codes.double(), nearest(x.double(), numbers))


TILES = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40)


@given(TILES, st.integers(-20, 20))
@pytest.mark.parametrize("dtype", FORMATS, ids=["E4M3", "E5M2", "E5M6"])
def test_a_power_of_two_changes_the_scale_alone(dtype, values, power):
    """Oracle: the codes before; amax is kept away from where a float32 scale would be subnormal."""
    x = torch.tensor([[*values, 1.0]])
    codes, scale = quantize(x, dtype=dtype)
    again, rescaled = quantize(x * 2.0**power, dtype=dtype)
    assert torch.equal(codes.float(), again.float())
    assert torch.equal(scale * 2.0**power, rescaled)


@given(TILES)
@pytest.mark.parametrize("dtype", FORMATS, ids=["E4M3", "E5M2", "E5M6"])
def test_with_scales_of_powers_of_two_quantising_again_changes_nothing(dtype, values):
    """Oracle: what came out the first time; with other scales the division may round."""
    x = torch.tensor([[*values, 1.0]])
    once = dequantize(*quantize(x, dtype=dtype, power_of_two=True))
    assert torch.equal(dequantize(*quantize(once, dtype=dtype, power_of_two=True)), once)


@given(TILES)
@pytest.mark.parametrize("dtype", FORMATS, ids=["E4M3", "E5M2", "E5M6"])
def test_the_error_is_at_most_half_a_step(dtype, values):
    """Oracle: half the distance of neighbours at that size, and one rounding of the scale."""
    exponent, mantissa, _ = FORMATS[dtype]
    x = torch.tensor([[*values, 1.0]])
    codes, scale = quantize(x, dtype=dtype)
    size = (x / scale).abs().double().clamp(min=2.0 ** (2 - 2 ** (exponent - 1)))
    half = torch.exp2(size.log2().floor() - mantissa) / 2 * scale.item()
    error = (dequantize(codes, scale).double() - x.double()).abs()
    assert (error <= half + 2.0**-22 * x.abs().double()).all()
