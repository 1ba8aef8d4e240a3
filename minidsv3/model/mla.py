"""Multi-head Latent Attention (report, section 2.1.1, eq. 1-11).

Every head's keys and values are linear functions of one small latent c_kv, so only that latent is
kept while generating. Rotation cannot be folded into those functions, so position travels in a
separate rotary key, one for all heads.

    c_kv   = norm(W_DKV h)             k_rope = RoPE(W_KR h)        both cached
    k_nope = W_UK c_kv                 v      = W_UV c_kv           expanded per head
    c_q    = norm(W_DQ h)              q      = [W_UQ c_q ; RoPE(W_QR c_q)]
    o      = softmax(q k^T * scale) v  u      = W_O o

The expanded form computes this as it stands: right for training and prefill. While decoding, a few
queries would expand a long cache again and again; there W_UK is absorbed into the query instead,
and W_UV into the output, and attention runs on the latents themselves, one key for all heads:

    q_nope . W_UK c_kv = (W_UK^T q_nope) . c_kv        sum p W_UV c_kv = W_UV sum p c_kv

In: x (B, T, C), normed. Out: (B, T, C).
"""

import torch
from einops import rearrange
from torch import nn

from ..kernels.attention import attend, last_queries
from .layers import Linear, RMSNorm
from .rope import apply_rope, softmax_scale

LATENT_NORM_EPS = 1e-6                                 # of both latents, whatever rms_norm_eps says


class MLA(nn.Module):
    """Attention through a low-rank latent, with a rotary key apart."""

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.nope_width, self.rope_width = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.value_width, self.kv_rank = config.v_head_dim, config.kv_lora_rank
        self.scale = softmax_scale(config)

        C, H, Rq, D = config.hidden_size, self.num_heads, config.q_lora_rank, config.qk_head_dim
        if Rq is None:
            self.q_proj = Linear(C, H * D)
        else:
            self.q_a_proj = Linear(C, Rq)                                      # W_DQ
            self.q_a_layernorm = RMSNorm(Rq, LATENT_NORM_EPS)
            self.q_b_proj = Linear(Rq, H * D)                                  # W_UQ, W_QR by head
        self.kv_a_proj_with_mqa = Linear(C, self.kv_rank + self.rope_width)    # W_DKV, W_KR
        self.kv_a_layernorm = RMSNorm(self.kv_rank, LATENT_NORM_EPS)
        self.kv_b_proj = Linear(self.kv_rank, H * (self.nope_width + self.value_width))
        self.o_proj = Linear(H * self.value_width, C)                          # W_O

    def forward(self, x, rope, cache=None):
        """x (B, T, C), rope table of the T positions, the layer's cache or None -> (B, T, C)."""
        q = self.query(x, rope)                                        # (B, H, T, D)
        latents, visible = self.compress(x, rope), None                # (B, T, Rkv+Dr)
        if cache is not None:
            latents, visible = cache.append(latents), cache.visible    # (B, S, Rkv+Dr)
        if cache is not None and self.absorbing_is_cheaper(x.size(1), latents.size(1)):
            o = self.attend_to_latents(q, latents, visible)            # (B, H, T, Dv)  eq. 10
        else:
            k, v = self.expand(latents)                                # (B, H, S, D), (B, H, S, Dv)
            o = attend(q, k, v, self.scale, visible)                   # (B, H, T, Dv)  eq. 10
        return self.o_proj(rearrange(o, "b h t v -> b t (h v)"))       # (B, T, C)      eq. 11

    def absorbing_is_cheaper(self, T, S):
        """Whether T queries over S latents take fewer multiply-adds absorbed, counted per head."""
        Dn, Dr, Dv, R = self.nope_width, self.rope_width, self.value_width, self.kv_rank
        expanded = R * (Dn + Dv) * S + (Dn + Dr + Dv) * T * S          # W_UK, W_UV on all latents
        absorbed = R * (Dn + Dv) * T + (2 * R + Dr) * T * S            # and on all queries
        return absorbed < expanded

    def query(self, x, rope):
        """eq. 6-9: x (B, T, C) -> q (B, H, T, D), of which the last Dr channels are rotated."""
        if hasattr(self, "q_proj"):
            q = self.q_proj(x)
        else:
            c_q = self.q_a_layernorm(self.q_a_proj(x))                 # (B, T, Rq)     eq. 6
            q = self.q_b_proj(c_q)                                     # (B, T, H*D)    eq. 7, 8
        q = rearrange(q, "b t (h d) -> b h t d", h=self.num_heads)
        q_nope, q_rope = q.split([self.nope_width, self.rope_width], dim=-1)
        return torch.cat([q_nope, apply_rope(q_rope, rope.unsqueeze(-3))], dim=-1)     # eq. 9

    def compress(self, x, rope):
        """The latents to cache: x (B, T, C) -> [normed c_kv ; rotated k_rope], (B, T, Rkv+Dr)."""
        c_kv, k_rope = self.kv_a_proj_with_mqa(x).split([self.kv_rank, self.rope_width], dim=-1)
        # The norm is for the latent alone; the rotary key is not normed.
        c_kv, k_rope = self.kv_a_layernorm(c_kv), apply_rope(k_rope, rope)     # eq. 1, 3
        return torch.cat([c_kv, k_rope], dim=-1)

    def expand(self, latents):
        """Keys and values of all heads: latents (B, S, Rkv+Dr) -> (B, H, S, D), (B, H, S, Dv)."""
        c_kv, k_rope = latents.split([self.kv_rank, self.rope_width], dim=-1)
        kv = rearrange(self.kv_b_proj(c_kv), "b s (h d) -> b h s d", h=self.num_heads)
        k_nope, v = kv.split([self.nope_width, self.value_width], dim=-1)      # eq. 2, 5
        k_rope = k_rope[:, None].expand(-1, self.num_heads, -1, -1)    # one for all heads
        return torch.cat([k_nope, k_rope], dim=-1), v                  # (B, H, S, D)   eq. 4

    def attend_to_latents(self, q, latents, visible):
        """The absorbed form: q (B, H, T, D), latents (B, S, Rkv+Dr) -> (B, H, T, Dv).

        No key and no value is formed. All heads share the keys, so heads and queries are the rows
        of one product.
        """
        T, S, H = q.size(2), latents.size(1), self.num_heads
        W = self.kv_b_proj.weight.to(q.dtype).unflatten(0, (H, -1))    # (H, Dn+Dv, Rkv)
        W_UK, W_UV = W.split([self.nope_width, self.value_width], dim=1)       # (H, Dn|Dv, Rkv)
        q_nope, q_rope = q.split([self.nope_width, self.rope_width], dim=-1)
        q = torch.cat([by_head(q_nope, W_UK), q_rope], dim=-1)         # (B, H, T, Rkv+Dr)
        scores = (q.flatten(1, 2) * self.scale) @ latents.mT           # (B, H*T, S)
        if visible is None and T > 1:
            visible = last_queries(T, S, q.device)
        if visible is not None:
            scores = scores.unflatten(1, (H, T)).masked_fill(~visible, float("-inf"))
            scores = scores.flatten(1, 2)
        z = scores.softmax(dim=-1) @ latents[..., :self.kv_rank]       # (B, H*T, Rkv)
        return by_head(z.unflatten(1, (H, T)), W_UV.mT)                # (B, H, T, Dv)


def by_head(x, W):
    """Every head's vectors times its own matrix: x (B, H, T, I), W (H, I, O) -> (B, H, T, O)."""
    y = x.transpose(0, 1).flatten(1, 2) @ W                            # (H, B*T, O)
    return y.unflatten(1, (len(x), -1)).transpose(0, 1)                # (B, H, T, O)
