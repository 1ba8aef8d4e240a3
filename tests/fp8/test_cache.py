"""The latent cache in FP8 against latents quantised by hand in a plain cache."""

import torch

from minidsv3 import DeepSeekV3, ModelConfig, fp8
from minidsv3.fp8 import dequantize, quantize


def test_a_cache_in_fp8_holds_656_bytes_a_token_and_layer_of_v3():
    """Oracle: 512 codes, 4 scales of 4 bytes, 64 rotary numbers of 2; bfloat16 has 1,152."""
    v3 = ModelConfig.preset("v3-671b")
    few = ModelConfig.preset("tiny").replace(
        kv_lora_rank=v3.kv_lora_rank, qk_rope_head_dim=v3.qk_rope_head_dim)
    model = DeepSeekV3(few).bfloat16()
    assert fp8.new_cache(model, 3, 5).nbytes == 4 * 3 * 5 * (512 + 4 * 4 + 64 * 2)
    assert model.new_cache(3, 5).nbytes == 4 * 3 * 5 * 1152


def test_a_cache_in_fp8_reads_what_quantising_left():
    """Oracle: attention over latents quantised by hand, in a plain cache; in chunks, and cut."""
    torch.manual_seed(0)
    model = DeepSeekV3(ModelConfig.preset("tiny").replace(initializer_range=0.1)).eval()
    tokens = torch.randint(2048, (2, 9))
    cache, plain = fp8.new_cache(model, 2, 12), model.new_cache(2, 12)
    rank = model.config.kv_lora_rank
    for layer in plain.layers:
        def append(new, layer=layer, append=layer.append):
            c_kv = dequantize(*quantize(new[..., :rank].flatten(0, 1))).view(2, -1, rank)
            return append(torch.cat([c_kv, new[..., rank:]], dim=-1))
        layer.append = append
    with torch.no_grad():
        for chunk in tokens.split([5, 3, 1], dim=1):
            assert torch.equal(model(chunk, cache), model(chunk, plain))
        for each in (cache, plain):
            each.crop([4, 7])
        again = [model(tokens[:, :1], each) for each in (cache, plain)]
        assert torch.equal(*again)
        exact = model(tokens)[:, -1]
        assert not torch.equal(model(tokens, fp8.new_cache(model, 2, 9))[:, -1], exact)
