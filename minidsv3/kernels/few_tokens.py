"""The routed experts for very few tokens, where sorting and gathering would take longer."""

import torch
import torch.nn.functional as F


def one_by_one(x, weights, experts, gate_up_proj, down_proj):
    """Sum over the chosen experts of weight * expert(x), token by token (eq. 12).

    x (N, C), weights and experts (N, K), gate_up_proj (E, 2F, C), down_proj (E, C, F) -> (N, C).
    The host reads which experts are chosen.
    """
    y = []
    for row, gates, chosen in zip(x.split(1), weights.to(x.dtype).split(1), experts.tolist()):
        outputs = []
        for expert in chosen:
            gate, up = F.linear(row, gate_up_proj[expert].to(x.dtype)).chunk(2, dim=-1)
            outputs.append(F.linear(F.silu(gate) * up, down_proj[expert].to(x.dtype)))
        y.append(gates @ torch.cat(outputs))                           # (1, C)
    return torch.cat(y)                                                # (N, C)
