"""Cross-entropy over a vocabulary, without keeping the large tensors that autograd would keep.

    loss = -log softmax(W h)[target]          d loss / d logits = softmax(W h) - onehot(target)

Autograd would keep the logits of all tokens and their log-softmax, both in float32. The gradient
needs only softmax - onehot. So it is computed in the forward pass, for a few hundred tokens at a
time, and kept in the dtype of the states.
"""

import torch
from torch.autograd.function import once_differentiable

ROWS = 256                                       # tokens at a time: 2 MB of logits in preset tiny


def cross_entropy(hidden, weight, targets):
    """Summed -log p of targets (N,) under logits weight @ hidden; hidden (N, C), weight (V, C)."""
    return CrossEntropy.apply(hidden, weight.to(hidden.dtype), targets)


class CrossEntropy(torch.autograd.Function):
    """The sum in float32 or wider; its gradient is computed together with it."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        """hidden (N, C), weight (V, C) of one dtype, targets (N,) -> sum [nats]."""
        error = hidden.new_empty(len(hidden), len(weight))             # (N, V)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=wide)
        for h, target, e in zip(*(x.split(ROWS) for x in (hidden, targets, error)), strict=True):
            log_p = (h @ weight.T).to(wide).log_softmax(dim=-1)        # (ROWS, V)
            of_target = log_p.gather(-1, target[:, None])              # (ROWS, 1)
            total = total - of_target.sum()      # in place, torch.compile 2.11 loses the gradient
            # p - 1 in full precision: where p is near 1, rounding would lose most of it.
            e.copy_(log_p.exp_().scatter_(-1, target[:, None], of_target.expm1()))
        ctx.save_for_backward(error, hidden, weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """d total / d logits = softmax - onehot, passed on to hidden and weight."""
        error, hidden, weight = ctx.saved_tensors
        grad = grad.to(hidden.dtype)
        return error @ weight * grad, error.T @ hidden * grad, None
