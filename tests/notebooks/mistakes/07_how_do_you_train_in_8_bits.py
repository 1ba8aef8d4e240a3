"""Typical mistakes for the exercises of 07_how_do_you_train_in_8_bits."""

import torch


def e4m3_value(code):
    """Exponent 0 has no leading one"""
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    return (-1) ** sign * 2.0 ** (exponent - 7) * (1 + mantissa / 8)


def round_bits(x, mantissa):
    """A tie goes to the even neighbour"""
    step = torch.exp2(x.frexp().exponent - 1.0 - mantissa)
    return (x / step + 0.5).floor() * step


def tile_scales(x, rows, columns):
    """A tile of zeros has scale 1"""
    parts = [[tile.abs().max() / 448 for tile in row.split(columns, dim=1)]
             for row in x.split(rows, dim=0)]
    return torch.tensor(parts)


def scaled_product(q_x, s_x, q_w, s_w, step):
    """before the tiles are added"""
    return (q_x @ q_w.T) * s_x[:, :1] * s_w[:, 0].repeat_interleave(step)


def block_weights(codes, weight_scale_inv):
    """128 rows and 128 columns, wherever the matrix ends"""
    for dim in (0, 1):
        height = -(-codes.size(dim) // weight_scale_inv.size(dim))
        weight_scale_inv = weight_scale_inv.repeat_interleave(height, dim=dim)
    return codes.float() * weight_scale_inv[:codes.size(0), :codes.size(1)]
