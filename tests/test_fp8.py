"""FP8 tiles against numbers written down beforehand and a loop over tiles."""

import math

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig, fp8
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


@pytest.mark.parametrize("call, words", [
    (lambda: quantize(torch.ones(3)), r"a matrix is needed, got shape \(3,\)"),
    (lambda: dequantize(torch.ones(3, 200).to(torch.float8_e4m3fn), torch.ones(3, 1)),
     r"scale has shape \(3, 1\), but \(3, 200\) codes in tiles of \(1, 128\) need \(3, 2\)")])
def test_bad_shapes_are_named(call, words):
    """Oracle: both shapes."""
    with pytest.raises(ValueError, match=words):
        call()


def test_a_cache_in_fp8_holds_656_bytes_a_token_and_layer_of_v3():
    """Oracle: 512 codes, 4 scales of 4 bytes, 64 rotary numbers of 2; bfloat16 has 1,152."""
    v3 = ModelConfig.preset("v3-671b")
    few = ModelConfig.preset("tiny").replace(
        kv_lora_rank=v3.kv_lora_rank, qk_rope_head_dim=v3.qk_rope_head_dim)
    model = DeepSeekV3(few).bfloat16()
    assert fp8.new_cache(model, 3, 5).nbytes == 4 * 3 * 5 * (512 + 4 * 4 + 64 * 2)
    assert model.new_cache(3, 5).nbytes == 4 * 3 * 5 * 1152


def test_a_cache_in_fp8_reads_what_quantising_left():
    """Oracle: attention over latents quantised by hand, in a plain cache; in chunks, and cut."""
    torch.manual_seed(0)
    model = DeepSeekV3(ModelConfig.preset("tiny").replace(initializer_range=0.1)).eval()
    tokens = torch.randint(2048, (2, 9))
    cache, plain = fp8.new_cache(model, 2, 12), model.new_cache(2, 12)
    rank = model.config.kv_lora_rank
    for layer in plain.layers:
        def append(new, layer=layer, append=layer.append):
            c_kv = dequantize(*quantize(new[..., :rank].flatten(0, 1))).view(2, -1, rank)
            return append(torch.cat([c_kv, new[..., rank:]], dim=-1))
        layer.append = append
    with torch.no_grad():
        for chunk in tokens.split([5, 3, 1], dim=1):
            assert torch.equal(model(chunk, cache), model(chunk, plain))
        for each in (cache, plain):
            each.crop([4, 7])
        again = [model(tokens[:, :1], each) for each in (cache, plain)]
        assert torch.equal(*again)
        exact = model(tokens)[:, -1]
        assert not torch.equal(model(tokens, fp8.new_cache(model, 2, 9))[:, -1], exact)
