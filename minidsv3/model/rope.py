"""Rotary positions, and YaRN, which stretches them to longer windows (report, section 4.3).

Channel pair m of a vector at position p is rotated by the angle p * theta_m, with
theta_m = base^(-2m / Dr). The product of a query at t and a key at j then depends on t - j alone.
The released weights keep pair m in channels (2m, 2m+1), *interleaved*; many other models keep it
in (m, m + Dr/2), and reading one layout as the other silently ruins the model.

YaRN keeps fast channels (they tell neighbours apart), divides the frequency of slow ones by the
window multiplier s (or they would reach angles unseen in training), and blends in between. All
tables are float32 whatever the model's dtype, computed in the released code's order of operations:
one unit in the last place of theta already moves the logits at position 150 by 3e-6.
"""

import math

import torch


def rope_table(config, positions):
    """e^(i * angle) of every position and channel pair: positions (..., T) -> (..., T, Dr/2).

    complex64. Positions are (T,) where all sequences stand at the same place, else (B, T).
    """
    angle = positions.float()[..., None] * rope_frequencies(config, positions.device)
    amplitude = rope_amplitude(config.rope_scaling)
    return torch.complex(angle.cos() * amplitude, angle.sin() * amplitude)


def apply_rope(x, table):
    """Rotate interleaved pairs by their angles (eq. 3, 8): (..., T, Dr) -> the same, interleaved.

    A pair (a, b) is the complex number a + ib, and a rotation is one complex product.
    """
    # Always a copy: complex numbers cannot begin at an odd offset, as a view of one token may.
    wide = torch.promote_types(x.dtype, torch.float32)
    pairs = x.to(wide, copy=True, memory_format=torch.contiguous_format)
    pairs = torch.view_as_complex(pairs.unflatten(-1, (-1, 2)))        # (..., T, Dr/2)
    turned = pairs * table.to(pairs.dtype)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)          # (..., T, Dr)


def rope_frequencies(config, device=None):
    """Angle per position of each channel pair, YaRN applied: (Dr/2,) float32 [radians]."""
    channels, base, yarn = config.qk_rope_head_dim, config.rope_theta, config.rope_scaling
    exponent = torch.arange(0, channels, 2, device=device).float() / channels
    plain = 1.0 / base**exponent                                       # (Dr/2,)
    if yarn is None:
        return plain
    stretched = 1.0 / (yarn.factor * base**exponent)                   # (Dr/2,)
    low, high = yarn_ramp_ends(yarn, channels, base)
    pair = torch.arange(channels // 2, device=device).float()
    ramp = ((pair - low) / (high - low)).clamp(0, 1)                   # 0 keep ... 1 stretch
    return stretched * ramp + plain * (1 - ramp)


def yarn_ramp_ends(yarn, channels, base):
    """The channel pairs between which YaRN blends from keeping to stretching.

    Pair `pair_with(n)` makes n rotations in the original window. The released code ramps linearly
    in the pair's index, where the YaRN paper ramps in the number of rotations.
    """
    def pair_with(rotations):
        window = yarn.original_max_position_embeddings
        return channels * math.log(window / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_with(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_with(yarn.beta_slow)), channels - 1)     # not pairs: as released
    return low, high if high != low else low + 0.001                   # never divide by zero


def yarn_temperature(factor, weight):
    """0.1 * weight * ln(s) + 1: how much sharper attention is made in an s times longer window."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_amplitude(yarn):
    """Factor on cos and sin: 1 in DeepSeek-V3, whose temperature acts on the softmax instead."""
    if yarn is None:
        return 1.0
    if yarn.mscale and yarn.mscale_all_dim:
        return (yarn_temperature(yarn.factor, yarn.mscale)
                / yarn_temperature(yarn.factor, yarn.mscale_all_dim))
    return yarn_temperature(yarn.factor, 1.0)


def softmax_scale(config):
    """1 / sqrt(d_h + d_h^R) of eq. 10; with YaRN times the squared temperature (0.1352 for V3)."""
    scale = config.qk_head_dim**-0.5
    yarn = config.rope_scaling
    if yarn is not None and yarn.mscale_all_dim:
        scale *= yarn_temperature(yarn.factor, yarn.mscale_all_dim) ** 2
    return scale
