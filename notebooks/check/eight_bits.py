"""Exercises of notebook 07: how do you train in 8 bits?"""

import oracles
import torch

from .verdict import compare, normal


def e4m3_value(student):
    """By hand: 0 0111 000 is 1, 0 0000 011 three times the smallest, 1 1001 010 is -5; then all."""
    by_hand = [0b0_0111_000, 0b0_0000_011, 0b1_1001_010]
    cases = [(code,) for code in (*by_hand, *range(127), *range(128, 255))]
    return compare(student, cases, oracles.e4m3_value,
                   "Exponent 0 has no leading one: there the number is 2^-6 times M/8.")


def round_bits(student):
    """By hand: 17, 19 and 21 with three bits behind the leading one."""
    cases = [(torch.tensor([17.0, 19, 21, -17, 16.5, 0]), 3),
             (torch.tensor([1000.0, -75_000]), 3), (torch.tensor([2.54e-3, -1.2e-3]), 3),
             (torch.arange(1, 400).float() / 64, 2), (normal(5, 7, seed=1) * 1000, 6)]
    return compare(student, cases, oracles.round_bits,
                   "A tie goes to the even neighbour: 17 lies between 16 and 18, which are 8 and 9 "
                   "steps of 2.")


def tile_scales(student):
    """By hand: two tiles a row, the second one ragged, one of them all zeros."""
    by_hand = torch.tensor([[448.0, -896, 0], [1, 2, -3]])
    ragged = normal(5, 7, seed=1) * normal(5, 1, seed=2).exp() * 1000
    cases = [(by_hand, 1, 2), (ragged, 1, 4), (ragged, 2, 3), (ragged, 4, 1),
             (ragged / 1e6, 1, 4)]
    return compare(student, cases, oracles.tile_scales,
                   "A tile of zeros has scale 1, or else it would be 0/0; and the last tiles may "
                   "be smaller, but they count.")


def scaled_product(student):
    """By hand: one token, two tiles of two; then sizes that differ."""
    by_hand = (torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[1.0, 0.5]]),
               torch.tensor([[1.0, 1, 1, 1], [2, 0, 0, 2]]), torch.tensor([[1.0, 10]]), 2)
    random = [(normal(N, K, seed=N), normal(N, K // step, seed=K).exp(), normal(O, K, seed=O),
               normal(O // step, K // step, seed=step).exp(), step)
              for N, K, O, step in [(5, 6, 4, 2), (2, 9, 6, 3)]]
    return compare(student, [by_hand, *random], oracles.scaled_product,
                   "Each tile's partial product meets its two scales before the tiles are added; a "
                   "scale of the weights serves `step` outputs.")


def block_weights(student):
    """By hand: codes of 1, so that a weight is its block's scale; 130 rows are 128 and 2."""
    def codes(rows, columns):
        return (100 * normal(rows, columns, seed=rows)).to(torch.float8_e4m3fn)

    cases = [(torch.ones(130, 2), torch.tensor([[0.5], [2.0]])),
             (codes(256, 128), torch.tensor([[0.5], [0.01]])),
             (codes(300, 200), normal(3, 2, seed=1).exp())]
    return compare(student, cases, oracles.block_weights,
                   "A block has 128 rows and 128 columns, wherever the matrix ends: only the last "
                   "one is smaller. And the scale multiplies.")
