"""Typical mistakes for the exercises of 07_how_do_you_train_in_8_bits."""

import torch


def e4m3_value(code):
    """code=3, bits 0 0000 011: expected 0.005859375, got 0.01074219. You add a leading one to a
    number with exponent 0, which has none."""
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    return (-1) ** sign * 2.0 ** (exponent - 7) * (1 + mantissa / 8)


def e4m3_value__power_of_the_subnormal(code):
    """Your power is 2^-7 where the exponent is 0. It is 2^-6 there."""
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    return (-1) ** sign * 2.0 ** (exponent - 7) * ((exponent > 0) + mantissa / 8)


def e4m3_value__no_sign(code):
    """You forget the sign"""
    exponent, mantissa = code >> 3 & 15, code & 7
    return 2.0 ** (max(exponent, 1) - 7) * ((exponent > 0) + mantissa / 8)


def e4m3_value__other_bias(code):
    """You subtract 8 from the exponent. Subtract 7."""
    return e4m3_value__no_sign(code) / 2 * (-1) ** (code >> 7)


def e4m3_value__no_bias(code):
    """You do not subtract 7 from the exponent."""
    return e4m3_value__no_sign(code) * 2**7 * (-1) ** (code >> 7)


def e4m3_value__read_by_torch(code):
    """torch's FP8 reads the bits in your place"""
    return torch.tensor([code], dtype=torch.uint8).view(torch.float8_e4m3fn).float().item()


def round_bits(x, mantissa):
    """x=[17.0, 19.0, 21.0, -17.0, 16.5, 0.0, 7.25], mantissa=3: expected [16, 20, 20, -16, 16, 0,
    7], got [18, 20, 22, -16, 16, 0, 7.5]. Your ties all go up."""
    step = torch.exp2(x.frexp().exponent - 1.0 - mantissa)
    return (x / step + 0.5).floor() * step


def round_bits__away_from_zero(x, mantissa):
    """Your ties all go away from zero. A tie goes to the even neighbour."""
    step = torch.exp2(x.frexp().exponent - 1.0 - mantissa)
    return x.sign() * (x.abs() / step + 0.5).floor() * step


def round_bits__cut(x, mantissa):
    """You cut what does not fit."""
    step = torch.exp2(x.frexp().exponent - 1.0 - mantissa)
    return x - x.fmod(step)


def round_bits__without_the_leading_one(x, mantissa):
    """Your steps are too wide by a factor of 2"""
    step = torch.exp2(x.frexp().exponent - float(mantissa))
    return (x / step).round() * step


def round_bits__one_step_for_all(x, mantissa):
    """You use one step for all numbers."""
    step = 2.0 ** (x.abs().max().log2().floor() - mantissa)
    return (x / step).round() * step


def round_bits__limits_of_e4m3(x, mantissa):
    """x=[1000.0, -75000.0], mantissa=3: expected [1024, -73728]"""
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def tiles_of(x, rows, columns):
    return [row.split(columns, dim=1) for row in x.split(rows, dim=0)]


def tile_scales(x, rows, columns):
    """x=[[448.0, -896.0, 0.0], [1.0, 2.0, -3.0]], tiles of 1 x 2: expected [2, 1, 0.004464286,
    0.006696429], got [2, 0, 0.004464286, 0.006696429]. The scale of a tile of zeros is 1"""
    return torch.tensor([[tile.abs().max() / 448 for tile in row]
                         for row in tiles_of(x, rows, columns)])


def tile_scales__largest_number(x, rows, columns):
    """You take the largest number."""
    return torch.tensor([[tile.max() / 448 if tile.any() else 1.0 for tile in row]
                         for row in tiles_of(x, rows, columns)])


def tile_scales__inverse(x, rows, columns):
    """You divide 448 by the maximum."""
    return torch.tensor([[448 / tile.abs().max() if tile.any() else 1.0 for tile in row]
                         for row in tiles_of(x, rows, columns)])


def tile_scales__whole_tiles_only(x, rows, columns):
    """You drop the smaller tiles at the edges, but they count."""
    whole = x[:len(x) // rows * rows, :x.size(1) // columns * columns]
    tiles = whole.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    scale = tiles.abs().amax(dim=(1, 3)) / 448
    return scale.masked_fill(scale == 0, 1)


def tile_scales__rows_for_columns(x, rows, columns):
    """You exchanged rows and columns."""
    return torch.tensor([[tile.abs().max() / 448 if tile.any() else 1.0 for tile in row]
                         for row in tiles_of(x, columns, rows)])


def scaled_product(q_x, s_x, q_w, s_w, step):
    """N=1, K=4, O=2, step=2: expected [38, 42], got [10, 10]. You add the tiles first"""
    return (q_x @ q_w.T) * s_x[:, :1] * s_w[:, 0].repeat_interleave(step)


def scaled_product__before_the_product(q_x, s_x, q_w, s_w, step):
    """it multiplies codes by their scales before the product."""
    x = q_x * s_x.repeat_interleave(step, dim=1)
    w = q_w * s_w.repeat_interleave(step, dim=0).repeat_interleave(step, dim=1)
    return x @ w.T


def scaled_product__before_the_product_of_a_tile(q_x, s_x, q_w, s_w, step):
    """it multiplies codes by their scales before the product."""
    tiles = enumerate(zip(q_x.split(step, dim=1), q_w.split(step, dim=1)))
    return sum((s_x[:, b, None] * x) @ (w.T * s_w[:, b].repeat_interleave(step))
               for b, (x, w) in tiles)


def scaled_product__number_by_number(q_x, s_x, q_w, s_w, step):
    """N=1, K=4, O=2, step=2: expected [11, 3], got [nan, nan]. Loop over the K/step tiles."""
    def scaled(n, o, k):
        return (q_x[n, k] * s_x[n, k // step]) * (q_w[o, k] * s_w[o // step, k // step])

    return torch.stack([torch.stack([sum(scaled(n, o, k) for k in range(q_x.shape[1]))
                                     for o in range(len(q_w))]) for n in range(len(q_x))])


def scaled_product__scales_of_x_only(q_x, s_x, q_w, s_w, step):
    """You multiply by the scales of x only."""
    tiles = enumerate(zip(q_x.split(step, dim=1), q_w.split(step, dim=1)))
    return sum((x @ w.T) * s_x[:, b, None] for b, (x, w) in tiles)


def scaled_product__repeated(q_x, s_x, q_w, s_w, step):
    """A scale of the weight serves `step` outputs that follow each other"""
    tiles = enumerate(zip(q_x.split(step, dim=1), q_w.split(step, dim=1)))
    return sum((x @ w.T) * s_x[:, b, None] * s_w[:, b].repeat(step) for b, (x, w) in tiles)


def block_weights(codes, weight_scale_inv):
    """codes of shape (130, 2), scales of shape (2, 1): right shape, values off by up to 1.5. The
    height of your blocks comes from the shapes."""
    for dim in (0, 1):
        height = -(-codes.size(dim) // weight_scale_inv.size(dim))
        weight_scale_inv = weight_scale_inv.repeat_interleave(height, dim=dim)
    return codes.float() * weight_scale_inv[:codes.size(0), :codes.size(1)]


def block_weights__divided(codes, weight_scale_inv):
    """You divide by weight_scale_inv."""
    scale = weight_scale_inv.repeat_interleave(128, dim=0).repeat_interleave(128, dim=1)
    return codes.float() / scale[:codes.size(0), :codes.size(1)]


def block_weights__as_a_pattern(codes, weight_scale_inv):
    """You repeat the scales as a pattern."""
    scale = weight_scale_inv.repeat(128, 128)[:codes.size(0), :codes.size(1)]
    return codes.float() * scale


def block_weights__no_scales(codes, weight_scale_inv):
    """You forget the scales."""
    return codes.float()
