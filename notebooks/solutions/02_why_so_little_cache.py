"""Solutions to 02_why_so_little_cache: read them after you have tried."""

import torch


def cache_bytes_per_token(layers, heads, kv_lora_rank, rope_dim, width):
    # Keys and values of every head are made of the same latent, and all heads share one rotary
    # key: the number of heads is not in the answer.
    return layers * (kv_lora_rank + rope_dim) * width


def absorb_query(q_nope, w_uk):
    # Vectors are rows here, so W_UK^T q is q W_UK: (H, T, Dn) @ (H, Dn, Rkv), head by head.
    return q_nope @ w_uk


def keys_of_heads(kv, heads, nope):
    # A head's key and value lie side by side, so divide into heads first and cut inside them.
    by_head = kv.unflatten(-1, (heads, -1))                            # (S, H, Dn+Dv)
    return by_head[..., :nope].transpose(0, 1)                         # (H, S, Dn)


def break_even(kv_lora_rank, nope, value):
    # Per head and cached token, with T queries, the rotary Dr cancels:
    # Rkv (Dn + Dv) + T (Dn + Dv) = T * 2 Rkv. Solve for T.
    return kv_lora_rank * (nope + value) / (2 * kv_lora_rank - nope - value)


def absorbed_attention(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    # Both products with the latents are those of multi-query attention: no key and no value of
    # any head is ever formed.
    T, S = q_nope.shape[1], len(c_kv)
    logits = scale * (q_nope @ w_uk @ c_kv.T + q_rope @ k_rope.T)      # (H, T, S)
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)
    weights = logits.masked_fill(future, float("-inf")).softmax(-1)
    z = weights @ c_kv                                                 # (H, T, Rkv)
    return z @ w_uv.transpose(1, 2)                                    # (H, T, Dv)
