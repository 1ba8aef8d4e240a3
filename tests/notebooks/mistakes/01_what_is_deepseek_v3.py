"""Typical mistakes for the exercises of 01_what_is_deepseek_v3.

Those with a second name are further slips that the checker names.
"""

import math

import torch
import torch.nn.functional as F


def rms_norm(x, gain, eps):
    """You take the mean over all vectors together: each vector has its own, over the last axis
    alone."""
    return gain * x / (x.square().mean() + eps).sqrt()


def rms_norm__no_root(x, gain, eps):
    """x=[3, 4], gain=[1, 2], eps=0: expected [0.8485281, 2.262742], got [0.24, 0.64]. You divide
    by the mean square: its root is missing."""
    return gain * x / (x.square().mean(-1, keepdim=True) + eps)


def rms_norm__length(x, gain, eps):
    """got [0.6, 1.6]. You divide by the length of the vector"""
    return gain * F.normalize(x, dim=-1)


def rms_norm__no_gain(x, gain, eps):
    """The gain is missing."""
    return F.rms_norm(x, x.shape[-1:], eps=eps)


def rms_norm__eps_outside(x, gain, eps):
    """Your eps stands outside the root."""
    return gain * x / (x.square().mean(-1, keepdim=True).sqrt() + eps)


def rms_norm__no_eps(x, gain, eps):
    """Your eps is missing."""
    return gain * x / x.square().mean(-1, keepdim=True).sqrt()


def rms_norm__layer_norm(x, gain, eps):
    """You subtract the mean first, as LayerNorm does."""
    return F.layer_norm(x, x.shape[-1:], gain, eps=eps)


def rms_norm__torchs_variance(x, gain, eps):
    """You use var or std, which subtract the mean first. RMSNorm does not."""
    return gain * (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt()


def rms_norm__deviation(x, gain, eps):
    """You use var or std, which subtract the mean first. RMSNorm does not."""
    return gain * x / (x.std(-1, keepdim=True) + eps)


def swiglu(x, gate, up, down):
    """the example by hand: expected [1.344415, -1.344415], got [1.738932, -1.738932]. Your silu is
    on the branch of up"""
    return ((x @ gate.T) * F.silu(x @ up.T)) @ down.T


def swiglu__sigmoid(x, gate, up, down):
    """You use the sigmoid alone"""
    return (torch.sigmoid(x @ gate.T) * (x @ up.T)) @ down.T


def swiglu__sum(x, gate, up, down):
    """You add the two branches"""
    return (F.silu(x @ gate.T) + x @ up.T) @ down.T


def swiglu__around(x, gate, up, down):
    """Your silu is around the whole product"""
    return F.silu((x @ gate.T) * (x @ up.T)) @ down.T


def swiglu__with_x(x, gate, up, down):
    """Your result includes x: the block adds it later."""
    return x + (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def swiglu__linear(x, gate, up, down):
    """Neither branch goes through silu."""
    return ((x @ gate.T) * (x @ up.T)) @ down.T


def swiglu__not_transposed(x, gate, up, down):
    """the example by hand: your function ended in RuntimeError"""
    return (F.silu(x @ gate) * (x @ up)) @ down


def active_parameters(width, inner, routed, shared, chosen):
    """width=2, inner=1, routed=5, shared=1, chosen=1: expected 22, got 16. You forget the shared
    experts"""
    return chosen * 3 * width * inner + routed * width


def active_parameters__all_experts(width, inner, routed, shared, chosen):
    """got 46. You count all routed experts"""
    return (shared + routed) * 3 * width * inner + routed * width


def active_parameters__no_router(width, inner, routed, shared, chosen):
    """got 12. You forget the router."""
    return (shared + chosen) * 3 * width * inner


def active_parameters__small_router(width, inner, routed, shared, chosen):
    """to choose, it must score all routed ones."""
    return (shared + chosen) * 3 * width * inner + chosen * width


def active_parameters__router_of_workers(width, inner, routed, shared, chosen):
    """got 16. Your router scores only the experts that work: to choose, it must score all"""
    return (shared + chosen) * (3 * width * inner + width)


def active_parameters__large_router(width, inner, routed, shared, chosen):
    """Your router also scores the shared experts"""
    return (shared + chosen) * 3 * width * inner + (routed + shared) * width


def active_parameters__two_matrices(width, inner, routed, shared, chosen):
    """a SwiGLU has three."""
    return (shared + chosen) * 2 * width * inner + routed * width


def bits_a_byte(nats, text):
    """nats=[0.5, 2, 0.25] for the text 'é€ = 1': expected 0.4408235, got 0.6612352. You divide by
    characters: some have more than one byte"""
    return nats.sum() / math.log(2) / len(text)


def bits_a_byte__tokens(nats, text):
    """You divide by tokens"""
    return nats.mean() / math.log(2)


def bits_a_byte__nats(nats, text):
    """nats=[1] for the text 'a': expected 1.442695, got 1. Your losses are still in nats."""
    return nats.sum() / len(text.encode())


def bits_a_byte__wrong_way(nats, text):
    """got 0.6931472. You multiply by ln 2"""
    return nats.sum() * math.log(2) / len(text.encode())


def bits_a_byte__mean(nats, text):
    """You take the mean of the losses"""
    return nats.mean() / math.log(2) / len(text.encode())


def fused_block(out, stream, norm_1, attention, norm_2, ffn):
    """by hand: expected [800, 16], got [700, 7]. Your norms still replace the stream."""
    normed = norm_1(stream + out)
    normed = norm_2(normed + attention(normed))
    return ffn(normed), normed


def fused_block__second_norm(out, stream, norm_1, attention, norm_2, ffn):
    """got [800, 8]. Your second norm still replaces the stream."""
    stream = stream + out
    stream = norm_2(stream + attention(norm_1(stream)))
    return ffn(stream), stream


def fused_block__twice(out, stream, norm_1, attention, norm_2, ffn):
    """got [800, 816]. You add the output of ffn to the stream"""
    stream = stream + out
    stream = stream + attention(norm_1(stream))
    out = ffn(norm_2(stream))
    return out, stream + out


def fused_block__dropped(out, stream, norm_1, attention, norm_2, ffn):
    """You never add out to the stream."""
    stream = stream + attention(norm_1(stream))
    return ffn(norm_2(stream)), stream


def fused_block__forgets_the_sum(out, stream, norm_1, attention, norm_2, ffn):
    """got [750, 15]. The first norm reads stream + out, but then you add attention to"""
    stream = stream + attention(norm_1(stream + out))
    return ffn(norm_2(stream)), stream


def fused_block__old_stream(out, stream, norm_1, attention, norm_2, ffn):
    """got [800, 4]. The stream that you return lacks the output of attention."""
    stream = stream + out
    return ffn(norm_2(stream + attention(norm_1(stream)))), stream


def fused_block__one_value(out, stream, norm_1, attention, norm_2, ffn):
    """by hand: your function ended in ValueError: return two things: out, stream"""
    stream = stream + out
    stream = stream + attention(norm_1(stream))
    return stream + ffn(norm_2(stream))
