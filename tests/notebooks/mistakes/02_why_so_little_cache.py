"""The typical mistake for each exercise of 02_why_so_little_cache."""


def cache_bytes_per_token(layers, heads, kv_lora_rank, rope_dim, width):
    """no factor 2"""
    return 2 * layers * (kv_lora_rank + rope_dim) * width


def absorb_query(q_nope, w_uk):
    """Sum over Dn"""
    return q_nope @ w_uk.transpose(1, 2)


def keys_of_heads(kv, heads, nope):
    """head by head"""
    return kv[:, :heads * nope].unflatten(-1, (heads, nope)).transpose(0, 1)


def break_even(kv_lora_rank, nope, value):
    """reads the latent twice"""
    return kv_lora_rank * (nope + value) / (kv_lora_rank - nope - value)


def absorbed_attention(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """and no later one"""
    logits = scale * (q_nope @ w_uk @ c_kv.T + q_rope @ k_rope.T)
    return logits.softmax(-1) @ c_kv @ w_uv.transpose(1, 2)
