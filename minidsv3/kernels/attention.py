"""Attention, eq. 10: softmax(q k^T * scale) v, by the kernel that is fastest for these inputs.

torch's fused kernels never hold all scores at once, and they are fast where keys and values have
the same width. In this model values are narrower (128 channels beside 192 in V3), so they are
padded with zeros, which are cut off the result again: one layer of preset small in float32,
2 x 1,024 tokens, forward and backward, takes 463 ms instead of 657 (two cores, Zen 1). Plain
products are used where they are faster, which `device.explicit_attention_is_faster` decides.
"""

import torch
import torch.nn.functional as F

from ..device import explicit_attention_is_faster


def last_queries(T, S, device):
    """The causal mask of T queries that are the last of S positions: (T, S), True where seen."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def attend(q, k, v, scale, visible=None):
    """Causal attention, eq. 10: q (B, H, T, D), k (B, H, S, D), v (B, H, S, Dv) -> (B, H, T, Dv).

    visible: what each query may see, (T, S) or (B, 1, T, S); None: all positions up to its own,
    where the T queries are the last of S positions.
    """
    T, S = q.size(-2), k.size(-2)
    if visible is None and T not in (1, S):
        visible = last_queries(T, S, q.device)
    if explicit_attention_is_faster(q, S):
        seen = last_queries(T, S, q.device) if visible is None else visible
        return attend_explicitly(q, k, v, scale, seen)
    width = v.size(-1)
    if width < q.size(-1):
        v = F.pad(v, (0, q.size(-1) - width))                          # (B, H, S, D)
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale,
                                       is_causal=bool(visible is None and T > 1))
    return o[..., :width]                                              # (B, H, T, Dv)


def attend_explicitly(q, k, v, scale, seen):
    """The same as plain products, in the dtype of q; seen (T, S) or (B, 1, T, S).

    Scores are rounded to that dtype before the softmax, which computes in float32 and rounds again.
    In bfloat16 the error against float64 is 0.4 % of the largest number where scores are a few
    units, and 4 % where they are tens (random inputs; the fused kernel has 0.3 %).
    """
    mask = torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, float("-inf"))
    scores = (q * scale) @ k.transpose(-1, -2) + mask                  # (B, H, T, S)
    return scores.softmax(dim=-1) @ v                                  # (B, H, T, Dv)
