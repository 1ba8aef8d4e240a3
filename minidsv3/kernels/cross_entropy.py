"""Cross-entropy over a vocabulary, without the large tensors it is usually made of.

    loss = -log softmax(W h)[target]          d loss / d logits = softmax(W h) - onehot(target)

Autograd would keep the logits and their log-softmax of all tokens, both float32. The gradient needs
their difference alone, so a few hundred tokens at a time go all the way from states to it, and only
it is kept, in the states' dtype.
"""

import torch
from torch.autograd.function import once_differentiable

ROWS = 256                                       # tokens at a time: 2 MB of logits in preset tiny


def cross_entropy(hidden, weight, targets):
    """Summed -log p of targets (N,) under logits weight @ hidden; hidden (N, C), weight (V, C)."""
    return CrossEntropy.apply(hidden, weight.to(hidden.dtype), targets)


class CrossEntropy(torch.autograd.Function):
    """The sum in float32 or wider; its gradient is at hand when the sum is."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        """hidden (N, C), weight (V, C) of one dtype, targets (N,) -> sum [nats]."""
        error = hidden.new_empty(len(hidden), len(weight))             # (N, V)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=wide)
        for h, target, e in zip(*(x.split(ROWS) for x in (hidden, targets, error)), strict=True):
            log_p = (h @ weight.T).to(wide).log_softmax(dim=-1)        # (ROWS, V)
            of_target = log_p.gather(-1, target[:, None])              # (ROWS, 1)
            total -= of_target.sum()
            # p - 1 before rounding: where p is near 1, little would be left of it.
            e.copy_(log_p.exp_().scatter_(-1, target[:, None], of_target.expm1()))
        ctx.save_for_backward(error, hidden, weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """d total / d logits = softmax - onehot, carried on to hidden and weight."""
        error, hidden, weight = ctx.saved_tensors
        grad = grad.to(hidden.dtype)
        return error @ weight * grad, error.T @ hidden * grad, None
