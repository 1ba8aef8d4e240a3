"""Compare the absorption rule of model/mla.py, a count of operations, with measured times.

Part of decode.py.
"""

import math
from itertools import product
from statistics import median
from time import perf_counter
from unittest.mock import patch

import torch

from minidsv3 import ModelConfig
from minidsv3.model.cache import LatentCache
from minidsv3.model.mla import MLA

MIDDLE = ModelConfig.preset("tiny").replace(     # attention larger than tiny's, below V3's
    hidden_size=512, num_attention_heads=16, q_lora_rank=256, kv_lora_rank=128,
    qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64)


@torch.inference_mode()
def absorbing(config, cached, counts, rounds):
    """Times of both forms of an attention layer -> {name: figures}.

    cached: tokens in the cache; counts: numbers T of new tokens, in rising order. The two last
    figures are the T from which the expanded form wins, by the clock and by the model's rule.
    """
    layer, times = MLA(config), {True: [], False: []}
    cache = LatentCache(config, 1, cached + max(counts), torch.float32, "cpu", layers=1)
    for tensor in [*layer.parameters(), cache.layers[0].latents]:
        tensor.normal_(std=0.05)
    cache.lengths = [cached]                     # stays so, because no call advances the cache
    for T in counts:
        x, rope = torch.randn(1, T, config.hidden_size), cache.make_room(T)
        seconds = {True: [], False: []}
        for _, absorbed in product(range(10 * rounds), seconds):
            with patch.object(MLA, "absorbing_is_cheaper", lambda *_, form=absorbed: form):
                begin = perf_counter()
                layer(x, rope, cache.layers[0])
                seconds[absorbed].append(perf_counter() - begin)
        for absorbed in times:
            times[absorbed].append(round(1000 * median(seconds[absorbed]), 4))
    by_count = (T for T in range(1, 9 * cached) if not layer.absorbing_is_cheaper(T, cached + T))
    return {"cached": cached, "new_tokens": counts, "absorbed_ms": times[True],
            "expanded_ms": times[False], "by_clock": crossing(counts, times[True], times[False]),
            "by_count": next(by_count, None)}


def crossing(counts, absorbed, expanded):
    """The count from which expanding is faster; None if it never is.

    Between two counts, the ratio of the times is interpolated linearly in logarithms.
    """
    gaps = [math.log(a / e) for a, e in zip(absorbed, expanded)]
    last = max((i for i, gap in enumerate(gaps) if gap < 0), default=-1)   # absorbing still wins
    if last in (-1, len(gaps) - 1):
        return counts[0] if last == -1 else None
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    return round(counts[last] * (counts[last + 1] / counts[last]) ** share, 1)
