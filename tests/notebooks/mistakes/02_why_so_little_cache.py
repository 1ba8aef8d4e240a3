"""Typical mistakes for the exercises of 02_why_so_little_cache; some earn words of their own."""

import torch


def cache_bytes_per_token(layers, heads, kv_lora_rank, rope_dim, width):
    """You count keys and values apart"""
    return 2 * layers * (kv_lora_rank + rope_dim) * width


def cache_bytes_per_token__with_heads(layers, heads, kv_lora_rank, rope_dim, width):
    """You multiply by the heads."""
    return layers * heads * (kv_lora_rank + rope_dim) * width


def cache_bytes_per_token__key_per_head(layers, heads, kv_lora_rank, rope_dim, width):
    """You keep a decoupled key for each head."""
    return layers * (kv_lora_rank + heads * rope_dim) * width


def cache_bytes_per_token__latent_alone(layers, heads, kv_lora_rank, rope_dim, width):
    """You forget the decoupled key"""
    return layers * kv_lora_rank * width


def cache_bytes_per_token__numbers(layers, heads, kv_lora_rank, rope_dim, width):
    """expected 8, got 4. You count numbers, not bytes."""
    return layers * (kv_lora_rank + rope_dim)


def absorb_query(q_nope, w_uk):
    """not transposed"""
    return q_nope @ w_uk.transpose(1, 2)


def absorb_query__one_matrix(q_nope, w_uk):
    """All your heads use the matrix of head 0."""
    return q_nope @ w_uk[0]


def absorb_query__sum(q_nope, w_uk):
    """You add up the heads."""
    return torch.einsum("htn,hnr->tr", q_nope, w_uk)


def keys_of_heads(kv, heads, nope):
    """These are the first H * Dn numbers of a row."""
    return kv[:, :heads * nope].unflatten(-1, (heads, nope)).transpose(0, 1)


def keys_of_heads__values(kv, heads, nope):
    """These are the values."""
    return kv.unflatten(-1, (heads, -1))[..., nope:].transpose(0, 1)


def keys_of_heads__reshape(kv, heads, nope):
    """which mixes tokens and heads"""
    return kv.unflatten(-1, (heads, -1))[..., :nope].reshape(heads, len(kv), nope)


def break_even(kv_lora_rank, nope, value):
    """Your absorbed query reads the latent once."""
    return kv_lora_rank * (nope + value) / (kv_lora_rank - nope - value)


def break_even__free_queries(kv_lora_rank, nope, value):
    """Your expanded queries cost nothing."""
    return (nope + value) / 2


def break_even__keys(kv_lora_rank, nope, value):
    """You form the keys only"""
    return kv_lora_rank * nope / (2 * kv_lora_rank - nope - value)


def absorbed_attention(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """Your queries also see later positions"""
    logits = scale * (q_nope @ w_uk @ c_kv.T + q_rope @ k_rope.T)
    return logits.softmax(-1) @ c_kv @ w_uv.transpose(1, 2)


def masked(logits, diagonal):
    """Minus infinity right of a diagonal."""
    hidden = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(diagonal)
    return logits.masked_fill(hidden, float("-inf"))


def absorbed_attention__not_itself(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """Your queries do not see their own position."""
    logits = scale * (q_nope @ w_uk @ c_kv.T + q_rope @ k_rope.T)
    weights = masked(logits, len(c_kv) - q_nope.shape[1]).softmax(-1)
    return weights @ c_kv @ w_uv.transpose(1, 2)


def absorbed_attention__at_the_beginning(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """Your queries stand at the beginning of the text."""
    logits = scale * (q_nope @ w_uk @ c_kv.T + q_rope @ k_rope.T)
    return masked(logits, 1).softmax(-1) @ c_kv @ w_uv.transpose(1, 2)


def absorbed_attention__no_position(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """Your logits lack the product of q_rope and k_rope."""
    logits = masked(scale * (q_nope @ w_uk @ c_kv.T), len(c_kv) - q_nope.shape[1] + 1)
    return logits.softmax(-1) @ c_kv @ w_uv.transpose(1, 2)


def absorbed_attention__half_a_scale(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """Your scale multiplies only one of the two products."""
    logits = scale * q_nope @ w_uk @ c_kv.T + q_rope @ k_rope.T
    logits = masked(logits, len(c_kv) - q_nope.shape[1] + 1)
    return logits.softmax(-1) @ c_kv @ w_uv.transpose(1, 2)


def absorbed_attention__no_scale(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """Your logits are not multiplied by scale."""
    logits = masked(q_nope @ w_uk @ c_kv.T + q_rope @ k_rope.T, len(c_kv) - q_nope.shape[1] + 1)
    return logits.softmax(-1) @ c_kv @ w_uv.transpose(1, 2)


def absorbed_attention__expands(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """it computes keys, a product of shape"""
    keys = c_kv @ w_uk.transpose(1, 2)                                 # (H, S, Dn)
    logits = scale * (q_nope @ keys.transpose(1, 2) + q_rope @ k_rope.T)
    weights = masked(logits, len(c_kv) - q_nope.shape[1] + 1).softmax(-1)
    return weights @ (c_kv @ w_uv.transpose(1, 2))


def absorbed_attention__forms_values(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """it computes values of cached tokens"""
    logits = scale * (q_nope @ w_uk @ c_kv.T + q_rope @ k_rope.T)
    weights = masked(logits, len(c_kv) - q_nope.shape[1] + 1).softmax(-1)
    return weights @ (c_kv @ w_uv.transpose(1, 2))
