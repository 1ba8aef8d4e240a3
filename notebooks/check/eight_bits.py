"""Exercises of notebook 07: how do you train in 8 bits? Each has a hint in two steps."""

import oracles
import torch
import torch.utils._python_dispatch

from .verdict import compare, normal

FP8 = torch.float8_e4m3fn, torch.float8_e5m2


class Watch(torch.utils._python_dispatch.TorchDispatchMode):
    """Shows each operation of torch, its arguments and its result to a function."""

    def __init__(self, look):
        super().__init__()
        self.look = look

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.look(result)
        return result


def without_fp8(function):
    """The same function, which ends in an error if torch makes an FP8 number in it."""
    def look(result):
        if torch.is_tensor(result) and result.dtype in FP8:
            raise ValueError("torch's FP8 reads the bits in your place. Compute the number from "
                             "sign, exponent and mantissa")

    def run(*arguments):
        with Watch(look):
            return function(*arguments)
    return run


def e4m3_value(student, hint=1):
    """By hand: 0 0111 000 is 1, 0 0000 011 three times the smallest, 1 1001 010 is -5; then all."""
    def read(bias=7, leading=lambda exponent: exponent > 0, least=1, sign=True):
        def value(code):
            exponent, mantissa = code // 8 % 16, code % 8
            size = 2.0 ** (max(exponent, least) - bias) * (leading(exponent) + mantissa / 8)
            return -size if sign and code >= 128 else size
        return value

    slips = [
        ("You add a leading one to a number with exponent 0, which has none.",
         read(leading=lambda exponent: 1, least=0)),
        ("You add a leading one to a number with exponent 0, which has none.",
         read(leading=lambda exponent: 1)),
        ("Your power is 2^-7 where the exponent is 0. It is 2^-6 there.", read(least=0)),
        ("You forget the sign: codes from 128 on are negative.", read(sign=False)),
        ("You subtract 8 from the exponent. Subtract 7.", read(bias=8)),
        ("You do not subtract 7 from the exponent.", read(bias=0)),
    ]
    by_hand = [0b0_0111_000, 0b0_0000_011, 0b1_1001_010]
    cases = [(code,) for code in (*by_hand, *range(127), *range(128, 255))]
    return compare(without_fp8(student), cases, oracles.e4m3_value, (
        "Take the three parts out of the code first. Which of the two formulae does this exponent "
        "need?",
        "code >> 7 is the sign, code >> 3 & 15 the exponent, code & 7 the mantissa."), hint,
        describe=lambda code: f"code={code}, bits {code >> 7} {code >> 3 & 15:04b} {code & 7:03b}",
        slips=slips)


def steps_of(x, mantissa):
    """Numbers counted in the steps of their octave, and these steps."""
    step = torch.exp2(x.frexp().exponent - 1.0 - mantissa)
    return x / step, step


def round_bits(student, hint=1):
    """By hand: 17, 19 and 21 with three bits behind the leading one."""
    def by(whole, bits=0):
        def slip(x, mantissa):
            count, step = steps_of(x, mantissa + bits)
            return whole(count) * step
        return slip

    slips = [
        ("Your ties all go up. A tie goes to the even neighbour.",
         by(lambda count: (count + 0.5).floor())),
        ("Your ties all go away from zero. A tie goes to the even neighbour.",
         by(lambda count: (count.abs() + 0.5).floor() * count.sign())),
        ("You cut what does not fit. Round to the nearest number.", by(torch.trunc)),
        ("Your steps are too wide by a factor of 2: you keep one bit too few.",
         by(torch.round, -1)),
        ("Your steps are too narrow by a factor of 2: you keep one bit too many.",
         by(torch.round, 1)),
        ("You use one step for all numbers. Each number has the step of its octave.",
         lambda x, mantissa: (x / steps_of(x.abs().max(), mantissa)[1]).round()
         * steps_of(x.abs().max(), mantissa)[1]),
    ]
    cases = [(torch.tensor([17.0, 19, 21, -17, 16.5, 0, 7.25]), 3),
             (torch.tensor([1000.0, -75_000]), 3), (torch.tensor([2.54e-3, -1.2e-3]), 3),
             (torch.arange(1, 400).float() / 64, 2), (normal(5, 7, seed=1) * 1000, 6)]
    return compare(student, cases, oracles.round_bits, (
        "First find the step around each number: 2 around 19, if there are 3 bits. Then count in "
        "whole steps.",
        "x.frexp().exponent is 5 for 19, since 19 = 0.59 * 2^5; the leading 1 is in this 0.59. "
        "torch.round goes to the even neighbour."), hint,
        describe=lambda x, mantissa: (f"x={x.tolist()}" if x.numel() < 9 else
                                      f"x of shape {tuple(x.shape)}") + f", mantissa={mantissa}",
        slips=slips)


def tile_scales(student, hint=1):
    """By hand: two tiles per row, the second one ragged, one of them all zeros."""
    def scales(of_tile, cut=lambda x, rows, columns: x):
        def slip(x, rows, columns):
            x = cut(x, rows, columns)
            parts = [[of_tile(tile) for tile in row.split(columns, dim=1)]
                     for row in x.split(rows, dim=0)]
            return torch.tensor(parts)
        return slip

    def usual(tile):
        return tile.abs().max() / 448 if tile.any() else 1.0

    slips = [
        ("The scale of a tile of zeros is 1, because x / s must not be 0/0.",
         scales(lambda tile: tile.abs().max() / 448)),
        ("You take the largest number. Take the largest absolute value.",
         scales(lambda tile: tile.max() / 448 if tile.any() else 1.0)),
        ("You divide 448 by the maximum. A scale is the maximum divided by 448.",
         scales(lambda tile: 448 / tile.abs().max() if tile.any() else 1.0)),
        ("You drop the smaller tiles at the edges, but they count.",
         scales(usual, lambda x, rows, columns: x[:len(x) // rows * rows,
                                                  :x.shape[1] // columns * columns])),
        ("You exchanged rows and columns.",
         lambda x, rows, columns: scales(usual)(x, columns, rows)),
    ]
    by_hand = torch.tensor([[448.0, -896, 0], [1, 2, -3]])
    ragged = normal(5, 7, seed=1) * normal(5, 1, seed=2).exp() * 1000
    cases = [(by_hand, 1, 2), (ragged, 1, 4), (ragged, 2, 3), (ragged, 4, 1), (by_hand, 2, 3),
             (ragged / 1e6, 1, 4)]
    return compare(student, cases, oracles.tile_scales, (
        "Two loops with split are enough. What about a tile at the edge, and one that is all zero?",
        "x.split(rows, dim=0) gives the strips, strip.split(columns, dim=1) the tiles; the last "
        "ones are smaller. Collect tile.abs().max() / 448, or 1 if this is 0."), hint,
        describe=lambda x, rows, columns: (f"x={x.tolist()}" if x.numel() < 9 else
                                           f"x of shape {tuple(x.shape)}")
        + f", tiles of {rows} x {columns}", slips=slips)


def scaled_product(student, hint=1):
    """By hand: one token, two tiles of two; then sizes that differ."""
    def by_tiles(scale):
        def slip(q_x, s_x, q_w, s_w, step):
            return sum((x @ w.T) * scale(s_x[:, b, None], s_w[:, b].repeat_interleave(step), step)
                       for b, (x, w) in enumerate(zip(q_x.split(step, 1), q_w.split(step, 1))))
        return slip

    slips = [
        ("You add the tiles first and then multiply by the scales of the first tile. Each partial "
         "sum meets its own two scales before the tiles are added.",
         lambda q_x, s_x, q_w, s_w, step: (q_x @ q_w.T) * s_x[:, :1]
         * s_w[:, 0].repeat_interleave(step)),
        ("You multiply by the scales of x only.", by_tiles(lambda s_x, s_w, step: s_x)),
        ("You multiply by the scales of the weight only.", by_tiles(lambda s_x, s_w, step: s_w)),
        ("You forget both scales.", by_tiles(lambda s_x, s_w, step: 1)),
        ("A scale of the weight serves `step` outputs that follow each other: repeat_interleave, "
         "not repeat.",
         by_tiles(lambda s_x, s_w, step: s_x * s_w[::step].repeat(step))),
    ]
    by_hand = (torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[1.0, 0.5]]),
               torch.tensor([[1.0, 1, 1, 1], [2, 0, 0, 2]]), torch.tensor([[1.0, 10]]), 2)
    random = [(normal(N, K, seed=N), normal(N, K // step, seed=K).exp(), normal(O, K, seed=O),
               normal(O // step, K // step, seed=step).exp(), step)
              for N, K, O, step in [(5, 6, 4, 2), (2, 9, 6, 3)]]
    # Beyond float32 are 448e37, but not 448 - 448: who scales the codes first gets no number.
    huge = (torch.tensor([[448.0, 448, 1, 2]]), torch.tensor([[1e37, 1.0]]),
            torch.tensor([[1.0, -1, 3, 4], [2, -2, 1, 1]]), torch.tensor([[1.0, 1]]), 2)
    return compare(as_the_chip(student), [by_hand, *random, huge], oracles.scaled_product, (
        "Loop over the K/step tiles. In each, multiply codes with codes. Which two scales does "
        "this partial sum need?",
        "For tile b the codes are q_x.split(step, dim=1)[b] and q_w.split(step, dim=1)[b], and the "
        "scales s_x[:, b, None] and s_w[:, b].repeat_interleave(step)."), hint,
        describe=lambda q_x, s_x, q_w, s_w, step: f"N={len(q_x)}, K={q_x.shape[1]}, "
        f"O={len(q_w)}, step={step}", slips=slips)


def as_the_chip(function):
    """The same function, which ends in an error if codes are multiplied by their scales."""
    def run(q_x, s_x, q_w, s_w, step):
        wide = s_w.repeat_interleave(step, dim=0)
        forbidden = []
        for codes, scale in ((q_x, s_x), (q_w, wide)):
            whole = codes * scale.repeat_interleave(step, dim=1)
            parts = zip(whole.split(step, dim=1), codes.split(step, dim=1))
            forbidden += [(whole, codes), *parts]

        def look(result):
            if not torch.is_tensor(result) or not result.is_floating_point():
                return
            for scaled, codes in forbidden:
                if (result.numel() == scaled.numel() and not torch.allclose(scaled, codes)
                        and torch.allclose(in_order(result), in_order(scaled))):
                    raise ValueError("it multiplies codes by their scales before the product. The "
                                     "chip multiplies codes with codes, and scales the partial "
                                     "sums")

        with Watch(look):
            return function(q_x, s_x, q_w, s_w, step)
    return run


def in_order(x):
    """The numbers of a tensor, sorted, so that a transposed matrix is the same."""
    return x.float().flatten().sort().values


def block_weights(student, hint=1):
    """By hand: codes of 1, so that a weight is its block's scale; 130 rows are 128 and 2."""
    def codes(rows, columns):
        return (100 * normal(rows, columns, seed=rows)).clamp(-448, 448).to(torch.float8_e4m3fn)

    def with_scales(spread, apply=torch.mul):
        def slip(q, scale):
            return apply(q.float(), spread(q, scale)[:q.size(0), :q.size(1)])
        return slip

    def usual(q, scale):
        return scale.repeat_interleave(128, dim=0).repeat_interleave(128, dim=1)

    def from_shapes(q, scale):
        for dim in (0, 1):
            scale = scale.repeat_interleave(-(-q.size(dim) // scale.size(dim)), dim=dim)
        return scale

    slips = [
        ("The height of your blocks comes from the shapes. A block always has 128 rows and 128 "
         "columns; only the last one is smaller.", with_scales(from_shapes)),
        ("You divide by weight_scale_inv. In spite of its name it is a factor.",
         with_scales(usual, torch.div)),
        ("You repeat the scales as a pattern. Each scale serves 128 rows that follow each other: "
         "repeat_interleave, not repeat.", with_scales(lambda q, scale: scale.repeat(128, 128))),
        ("You forget the scales.", lambda q, scale: q.float()),
    ]
    cases = [(torch.ones(130, 2), torch.tensor([[0.5], [2.0]])),
             (codes(256, 128), torch.tensor([[0.5], [0.01]])),
             (codes(300, 200), normal(3, 2, seed=1).exp())]
    return compare(student, cases, oracles.block_weights, (
        "576 = 4 * 128 + 64 makes five blocks. Which height of a block does the loader "
        "compute?",
        "Repeat each scale 128 times along both dimensions, then drop what reaches beyond the "
        "matrix."), hint,
        describe=lambda q, scale: f"codes of shape {tuple(q.shape)}, scales of shape "
        f"{tuple(scale.shape)}", slips=slips)
