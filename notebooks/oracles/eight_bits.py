"""Oracles of notebook 07: how do you train in 8 bits?"""

import math

import torch


def e4m3_value(code):
    """The number of an E4M3 code, 0 to 255, from its eight bits; 127 and 255 are NaN."""
    letters = f"{code:08b}"
    sign, exponent, mantissa = letters[0], letters[1:5], letters[5:]
    if exponent + mantissa == "1111111":
        return math.nan
    value = sum(0.5 ** place for place, bit in enumerate(mantissa, start=1) if bit == "1")
    power = 0
    for bit in exponent:
        power = 2 * power + (bit == "1")
    value = value * 2.0 ** -6 if power == 0 else (1 + value) * 2.0 ** (power - 7)
    return -value if sign == "1" else value


def round_bits(x, mantissa):
    """Round to `mantissa` bits: count the whole steps in each number, then look at the rest."""
    rounded = []
    for value in x.flatten().tolist():
        size = abs(value)
        step = 2.0 ** (math.floor(math.log2(size)) - mantissa) if size else 1.0
        below = math.floor(size / step)
        left = size / step - below
        if left > 0.5 or (left == 0.5 and below % 2 == 1):
            below += 1
        rounded.append(math.copysign(below * step, value))
    return torch.tensor(rounded, dtype=torch.float64).view(x.shape)


def tile_scales(x, rows, columns):
    """The largest absolute value of each tile divided by 448, found number by number."""
    largest = {}
    for i, row in enumerate(x.tolist()):
        for j, value in enumerate(row):
            place = i // rows, j // columns
            largest[place] = max(largest.get(place, 0.0), abs(value))
    last = max(largest)
    return torch.tensor([[largest[i, j] / 448 or 1.0 for j in range(last[1] + 1)]
                         for i in range(last[0] + 1)], dtype=torch.float64)


def scaled_product(q_x, s_x, q_w, s_w, step):
    """Multiply every number by its own scale, then form the usual matrix product: (N, O)."""
    x = [[q * s_x[n, k // step].item() for k, q in enumerate(row)]
         for n, row in enumerate(q_x.tolist())]
    w = [[q * s_w[o // step, k // step].item() for k, q in enumerate(row)]
         for o, row in enumerate(q_w.tolist())]
    return torch.tensor([[math.fsum(a * b for a, b in zip(row, other)) for other in w]
                         for row in x], dtype=torch.float64)


def block_weights(codes, weight_scale_inv):
    """Every code times the scale of its block of 128 x 128."""
    scale = weight_scale_inv.tolist()
    return torch.tensor([[code * scale[i // 128][j // 128] for j, code in enumerate(row)]
                         for i, row in enumerate(codes.float().tolist())], dtype=torch.float64)


def through_e4m3(x, rows, columns):
    """x after quantising and dequantising: the nearest number of E4M3 to each, ties to even."""
    numbers = [e4m3_value(code) for code in range(127)]              # in order, from 0 to 448
    scale = tile_scales(x, rows, columns)
    back = torch.empty(x.shape, dtype=torch.float64)
    for i, row in enumerate(x.tolist()):
        for j, value in enumerate(row):
            s = scale[i // rows, j // columns].item()
            code = min(range(127), key=lambda c: (abs(numbers[c] - abs(value) / s), c % 2))
            back[i, j] = math.copysign(numbers[code] * s, value)
    return back


def truncated_sum(a, b, bits, interval):
    """The sum of a * b, 32 terms at a time, each cut to `bits` bits below the largest exponent."""
    def cut(value, unit):
        return math.trunc(value / unit) * unit

    total, partial = 0.0, 0.0
    for start in range(0, len(a), 32):
        if interval and start % interval == 0:
            total, partial = total + partial, 0.0
        terms = [partial] + [x * y for x, y in zip(a[start:start + 32], b[start:start + 32])]
        unit = 2.0 ** (math.frexp(max(map(abs, terms)))[1] - bits)
        partial = math.fsum(cut(term, unit) for term in terms)
    return total + partial
