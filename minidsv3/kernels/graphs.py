"""What torch.compile must leave as it is."""

import torch

from . import cross_entropy, grouped


def keep_out_of_graphs():
    """Exclude two functions from torch.compile; to be called before it.

    It supports grouped_linear in bfloat16 only. The gradients of CrossEntropy became zero in torch
    2.11. Decorators would load the compiler in every program, compiled or not, which takes 2 s.
    """
    grouped.grouped_linear = torch.compiler.disable(grouped.grouped_linear)
    loss = cross_entropy.CrossEntropy
    loss.apply = torch.compiler.disable(loss.apply)
