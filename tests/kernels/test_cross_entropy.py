"""Cross-entropy in chunks against torch's own, and its gradient against finite differences."""

import pytest
import torch
import torch.nn.functional as F

from minidsv3.kernels.cross_entropy import ROWS, cross_entropy


def example(tokens, dtype, width=6, vocabulary=11):
    """States (N, C), head (V, C), targets (N,); logits of a few nats."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


@pytest.mark.parametrize("tokens", [1, ROWS, 2 * ROWS + 7])
def test_sum_and_gradients_equal_those_of_torch_in_float64(tokens):
    hidden, weight, targets = example(tokens, torch.float64)
    ours = cross_entropy(hidden, weight, targets)
    reference = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    assert abs(ours - reference) <= 1e-12 * reference
    of_ours = torch.autograd.grad(3 * ours, (hidden, weight))
    of_reference = torch.autograd.grad(3 * reference, (hidden, weight))
    for mine, theirs in zip(of_ours, of_reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12 * theirs.abs().max().item())


def test_gradient_equals_finite_differences():
    hidden, weight, targets = example(5, torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: cross_entropy(h, w, targets), (hidden, weight))


def test_bfloat16_states_lose_no_more_than_their_own_rounding():
    hidden, weight, targets = example(ROWS + 1, torch.bfloat16, width=64, vocabulary=200)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    ours = cross_entropy(hidden, weight, targets)
    reference = F.cross_entropy(exact[0] @ exact[1].T, targets, reduction="sum")
    assert ours.dtype == torch.float32 and abs(ours - reference) <= 2e-3 * reference
    ours.backward()
    reference.backward()
    for mine, theirs in zip((hidden, weight), exact, strict=True):
        assert (mine.grad.double() - theirs.grad).norm() <= 1e-2 * theirs.grad.norm()


def test_a_target_that_is_almost_certain_keeps_a_gradient():
    """p rounds to 1 in bfloat16, yet p - 1 does not round to 0."""
    hidden, weight = torch.ones(1, 1, dtype=torch.bfloat16), torch.tensor([[8.0], [0.0]])
    weight.requires_grad_()
    cross_entropy(hidden, weight, torch.tensor([0])).backward()
    expected = -1 / (1 + torch.tensor(8.0).exp())
    assert abs(weight.grad[0, 0] / expected - 1) < 0.01


@pytest.mark.slow
def test_the_gradients_are_the_same_where_torch_compiles_it():
    """Oracle: the uncompiled form. torch 2.11 lost them where the sum was updated in place."""
    found = []
    for function in (cross_entropy, torch.compile(cross_entropy, backend="eager")):
        hidden, weight, targets = example(ROWS + 7, torch.float64)
        found.append(torch.autograd.grad(function(hidden, weight, targets), (hidden, weight)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
