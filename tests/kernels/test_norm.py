"""The fused norm is the plain formula, and computes in float32 or wider."""

import pytest
import torch

from minidsv3.kernels.norm import rms_norm


@pytest.mark.parametrize("dtype, tolerance", [
    (torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_it_is_the_plain_formula(dtype, tolerance):
    """Oracle: the formula in float64, line by line; bfloat16 is rounded once, at the end."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, 7).to(dtype), torch.randn(7)
    wide = x.double()
    expected = weight.double() * wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    got = rms_norm(x, weight, 1e-3)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, atol=0, rtol=tolerance)


def test_its_gradients_are_those_of_finite_differences():
    """Oracle: central differences in float64."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-3), (x, weight))
