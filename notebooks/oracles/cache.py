"""Oracles of notebook 02: why does a 671B model need so little cache?"""

import math

import torch


def cache_bytes_per_token(layers, heads, kv_lora_rank, rope_dim, width):
    """Bytes counted one number at a time: each layer keeps a latent and a rotary key."""
    total = 0
    for _ in range(layers):
        for _ in range(kv_lora_rank):
            total += width
        for _ in range(rope_dim):
            total += width
    return total


def absorb_query(q_nope, w_uk):
    """Sum over n of q[h, t, n] W_UK[h, n, r], one product at a time -> (H, T, Rkv)."""
    H, T, Dn = q_nope.shape
    absorbed = torch.zeros(H, T, w_uk.shape[2], dtype=torch.float64)
    for h in range(H):
        for t in range(T):
            for n in range(Dn):
                for r in range(w_uk.shape[2]):
                    absorbed[h, t, r] += q_nope[h, t, n].double() * w_uk[h, n, r].double()
    return absorbed


def keys_of_heads(kv, heads, nope):
    """A token's row has for each head `nope` numbers of its key, then its value -> (H, S, Dn)."""
    each = kv.shape[1] // heads
    keys = torch.zeros(heads, len(kv), nope, dtype=torch.float64)
    for s, row in enumerate(kv.tolist()):
        for place, number in enumerate(row):
            head, channel = divmod(place, each)
            if channel < nope:
                keys[head, s, channel] = number
    return keys


def break_even(kv_lora_rank, nope, value):
    """Queries at the break-even, for one head and per cached token: expanding is paid once."""
    expanding = kv_lora_rank * nope + kv_lora_rank * value
    expanded_query = nope + value                    # the rotary part costs both forms the same
    absorbed_query = kv_lora_rank + kv_lora_rank
    return expanding / (absorbed_query - expanded_query)


def expanded_attention(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """Eq. 2, 4, 5, 9 and 10 for the last T of S positions, each head and pair alone: (H, T, Dv)."""
    q_nope, q_rope, c_kv, k_rope, w_uk, w_uv = (
        x.double() for x in (q_nope, q_rope, c_kv, k_rope, w_uk, w_uv))
    H, T, S = len(w_uk), q_nope.shape[1], len(c_kv)
    outputs = torch.zeros(H, T, w_uv.shape[1], dtype=torch.float64)
    for h in range(H):
        keys = [torch.cat([w_uk[h] @ c_kv[s], k_rope[s]]) for s in range(S)]
        values = [w_uv[h] @ c_kv[s] for s in range(S)]
        for t in range(T):
            query = torch.cat([q_nope[h, t], q_rope[h, t]])
            seen = range(S - T + t + 1)              # itself and all before
            powers = [math.exp(scale * float(query @ keys[s])) for s in seen]
            for s in seen:
                outputs[h, t] += powers[s] / sum(powers) * values[s]
    return outputs
