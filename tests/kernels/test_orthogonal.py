"""Orthogonal forms by products. Oracles: the SVD, and Remez' exchange for the polynomials."""

import numpy as np
import pytest
import torch

from minidsv3.kernels.orthogonal import POLAR_EXPRESS, orthogonalize, through

LEAST, LOW, HIGH = 3e-3, 0.79, 1.21              # values from LEAST to 1 end in LOW to HIGH

SHAPES = {"tiny": [(96, 192), (192, 96), (256, 96), (192, 192), (512, 192), (16, 192)],
          "small": [(384, 1024), (1024, 384), (1024, 1024)]}


def best_quintic(low, high):
    """a, b, c of the odd quintic that is nearest to 1 on an interval, and its largest error."""
    inner = [low + (high - low) * share for share in (0.3, 0.7)]
    for _ in range(200):
        x = np.array([low, *inner, high])        # where the error is largest, with changing signs
        a, b, c, error = np.linalg.solve(np.stack([x, x**3, x**5, [1, -1, 1, -1]], axis=1),
                                         np.ones(4))
        inner = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a])))
    return (a, b, c), error


def test_each_polynomial_is_the_best_for_what_the_one_before_leaves():
    """Oracle: Remez' exchange on the interval, widened by 1 % at its end."""
    low, high = LEAST, 1.0
    for found in POLAR_EXPRESS:
        expected, error = best_quintic(low, 1.01 * high)
        assert found == pytest.approx(expected, abs=1e-4)
        low, high = 1 - error, 1 + error
    assert low > LOW and high < HIGH


def spectrum(matrices, values, seed=0):
    """U and V of random matrices, and U diag(values) V^T."""
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    return U, Vh, (U * values) @ Vh


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES["tiny"] + [(60, 7)])
def test_singular_values_come_near_one_and_vectors_stay(shape, dtype, monkeypatch):
    """Oracle: the SVD of matrices with singular values from 1 down to 0.0001 of the largest.

    The orthogonal form has the same singular vectors; values that were at least 0.003 times the
    norm come near 1, the others stay below. bfloat16 has 8 bits: 10 % are allowed.
    """
    monkeypatch.setattr("minidsv3.kernels.orthogonal.shortened", lambda x: x.to(dtype))
    torch.manual_seed(0)
    rank = min(shape)
    values = torch.logspace(0, -4, rank, dtype=torch.float64)
    U, Vh, matrices = spectrum(torch.randn(2, *shape, dtype=torch.float64), values)
    seen = U.mT @ orthogonalize(5 * matrices).double() @ Vh.mT         # (2, rank, rank)
    gained = seen.diagonal(dim1=-2, dim2=-1)
    slack = 0.1 if dtype == torch.bfloat16 else 1e-3
    large = values / values.pow(4).sum() ** 0.25 >= LEAST * (1 + slack)
    assert large.sum() >= rank // 2
    assert gained[:, large].min() > LOW - slack and gained.max() < HIGH + slack
    off = seen - torch.diag_embed(gained)
    assert off.abs().max() < {torch.float64: 1e-12, torch.float32: 1e-3}.get(dtype, 0.2)


@pytest.mark.parametrize("shape", SHAPES["tiny"] + SHAPES["small"])
def test_random_matrices_come_near_their_polar_factor(shape):
    """Oracle: U V^T of the SVD; the cosine to it is above 0.985."""
    torch.manual_seed(1)
    matrices = torch.randn(2, *shape)
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    cosine = torch.cosine_similarity(orthogonalize(matrices).float().flatten(1),
                                     (U @ Vh).flatten(1))
    assert cosine.min() > 0.985


def test_many_matrices_are_those_one_by_one():
    """Oracle: each alone; 19 are no multiple of what is taken at once."""
    torch.manual_seed(2)
    matrices = torch.randn(19, 6, 10, dtype=torch.float64)
    alone = torch.stack([orthogonalize(matrix[None])[0] for matrix in matrices])
    assert torch.allclose(orthogonalize(matrices), alone, atol=1e-12)


def test_zero_stays_zero():
    """A gradient of zeros has no direction."""
    assert not orthogonalize(torch.zeros(2, 3, 4)).any()


def test_a_value_on_each_side_of_the_interval_by_hand():
    """Oracle: the polynomials of one number after the other."""
    values = torch.tensor([1.0, 0.5, 0.01], dtype=torch.float64)
    got = through(torch.diag(values)[None], POLAR_EXPRESS)[0].diagonal()
    expected = values / values.pow(4).sum() ** 0.25
    for a, b, c in POLAR_EXPRESS:
        expected = a * expected + b * expected**3 + c * expected**5
    assert torch.allclose(got, expected, atol=1e-12)
