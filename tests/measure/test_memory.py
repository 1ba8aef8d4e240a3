"""The memory that FP8 saves, against a count by hand of what a model's layers must keep."""

import torch

from minidsv3 import DeepSeekV3, ModelConfig, fp8
from minidsv3.fp8.linear import Layer, RoutedExperts
from minidsv3.kernels.grouped import Runs
from minidsv3.measure.memory import bytes_kept, saved_by_eight_bits
from minidsv3.model.layers import Linear, swiglu

# All widths are multiples of 128, so that scales can be counted without ragged tiles.
CONFIG = ModelConfig.preset("tiny").replace(
    vocab_size=97, hidden_size=256, num_hidden_layers=2, intermediate_size=256,
    moe_intermediate_size=128, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2,
    num_nextn_predict_layers=0)


def test_a_linear_layer_keeps_a_byte_a_number_and_a_scale_a_tile():
    """Oracle: codes and scales by hand; the layer after attention keeps two bytes per number."""
    for name, width in (("q_b_proj", 1), ("o_proj", 2)):
        layer = fp8.convert(torch.nn.ModuleDict({name: Linear(256, 64)}))[name]
        torch.nn.init.normal_(layer.weight)
        kept = bytes_kept(layer, lambda layer=layer: layer(torch.randn(5, 256)))
        assert kept == 5 * 256 * width + 5 * 2 * 4


def test_experts_keep_their_input_and_that_of_swiglu():
    """Oracle: the bytes of N rows of C codes, of N rows of 2F codes, and of their scales."""
    torch.manual_seed(0)
    experts = fp8.convert(DeepSeekV3(CONFIG)).layers[1].mlp.experts
    rows, counts = torch.randn(10, 256), torch.tensor([4, 0, 5, 1])
    kept = bytes_kept(experts, lambda: experts.feed_forward(rows, Runs(counts)))
    C, F2 = 256, 2 * 128
    assert kept == 10 * (C + F2) + 4 * 10 * (C + F2) // 128


def test_the_whole_is_what_both_forms_keep():
    """Oracle: the same model before conversion, in bfloat16; measuring changes nothing in it."""
    torch.manual_seed(0)
    model, tokens = DeepSeekV3(CONFIG), torch.randint(97, (2, 33))
    model.activation_dtype = torch.bfloat16
    plain = bytes_kept(model, lambda: model.loss(tokens))
    fp8.convert(model)
    eight = bytes_kept(model, lambda: model.loss(tokens))
    for router in model.routers():
        router.load.zero_()
    optimizer = torch.optim.AdamW(model.parameters())
    model.activation_dtype = None
    model.recompute = True                         # must be off while measuring
    sizes = saved_by_eight_bits(model, tokens, [optimizer])
    assert model.activation_dtype is None and model.training and model.recompute
    model.recompute = False
    saved_by_eight_bits(model.eval(), tokens, [optimizer])
    assert not model.training
    model.train()
    assert sizes["kept_in_bf16"] == plain and sizes["moments"] == 0
    assert all(not router.load.any() for router in model.routers())
    model.activation_dtype = torch.bfloat16
    assert saved_by_eight_bits(model, tokens, [optimizer])["kept"] == eight < 0.9 * plain


def test_suspended_is_the_model_of_before():
    """Oracle: logits of the same weights, not converted; FP8 comes back, after an error too."""
    torch.manual_seed(0)
    model, tokens = DeepSeekV3(CONFIG), torch.randint(97, (2, 33))
    before = model(tokens)
    fp8.convert(model)
    after = model(tokens)
    assert not torch.equal(before, after)
    try:
        with fp8.suspended(model):
            assert torch.equal(model(tokens), before)
            assert model.layers[1].mlp.shared_experts.swiglu is swiglu
            raise InterruptedError
    except InterruptedError:
        pass
    assert torch.equal(model(tokens), after)
    assert isinstance(model.layers[1].mlp.experts.swiglu, RoutedExperts)
    assert isinstance(model.layers[0].self_attn.o_proj.product, Layer)
