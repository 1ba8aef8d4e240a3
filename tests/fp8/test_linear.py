"""The three products against tiles rounded one by one, and against what must not matter."""

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig, fp8
from minidsv3.fp8.linear import E5M2, RECIPES, FP8Experts, FP8Linear
from minidsv3.model.layers import Linear
from minidsv3.model.moe import Experts

E4M3 = torch.float8_e4m3fn
TINY = ModelConfig.preset("tiny").replace(hidden_size=48, moe_intermediate_size=24, vocab_size=97,
                                          num_hidden_layers=2, intermediate_size=40)


def by_tiles(x, tile, dtype=E4M3):
    """A matrix rounded tile by tile, each with torch's own cast, in float64."""
    tile = tile or x.shape
    out = torch.empty(x.shape, dtype=torch.float64)
    for i in range(0, x.size(0), tile[0]):
        for j in range(0, x.size(1), tile[1]):
            part = x[i:i + tile[0], j:j + tile[1]].float()
            scale = part.abs().max() / torch.finfo(dtype).max
            scale = scale if scale > 0 else torch.tensor(1.0)
            codes = (part / scale).clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
            out[i:i + tile[0], j:j + tile[1]] = codes.double() * scale.double()
    return out


def layer_of(rows, columns, recipe, name="q_b_proj"):
    """One linear layer in FP8, and the class of its cache."""
    holder = torch.nn.ModuleDict({name: Linear(columns, rows)})
    torch.nn.init.normal_(holder[name].weight, std=0.1)
    return fp8.convert(holder, recipe)[name]


def outputs(layer, x, dy):
    """y, dx, dW."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return (y, *torch.autograd.grad(y, (x, layer.weight), dy))


SIZES = [(256, 128, 384), (130, 200, 77), (3, 5, 7), (1, 300, 129)]        # tokens, in, out


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("N, K, O", SIZES)
def test_three_products_equal_rounding_and_multiplying(recipe, N, K, O):
    """Oracle: tiles rounded one by one, products in float64; 2e-6 is float32's sums."""
    torch.manual_seed(0)
    layer, plan = layer_of(O, K, recipe), RECIPES[recipe]
    x = torch.randn(N, K) * torch.exp2(torch.randint(-6, 6, (N, 1)).float())
    dy = torch.randn(N, O) * 1e-3
    W = by_tiles(layer.weight.detach(), plan.weight)
    kept = by_tiles(x, plan.activation)
    y = kept @ W.T
    dx = by_tiles(dy, plan.gradient, plan.backward) @ W
    dW = by_tiles(dy, plan.column, plan.backward).T @ by_tiles(kept, plan.column)
    for got, expected in zip(outputs(layer, x, dy), (y, dx, dW)):
        assert (got.double() - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_the_input_after_attention_is_kept_in_twelve_bits():
    """Oracle: dW from an E5M6 copy with scales of powers of two; y from E4M3 as elsewhere."""
    torch.manual_seed(0)
    layer = layer_of(20, 150, "deepseek-v3", name="o_proj")
    x, dy = torch.randn(140, 150), torch.randn(140, 20)
    y, _, dW = outputs(layer, x, dy)
    W = by_tiles(layer.weight.detach(), (128, 128))
    torch.testing.assert_close(y.double(), by_tiles(x, (1, 128)) @ W.T, rtol=1e-5, atol=1e-5)
    kept = fp8.dequantize(*fp8.quantize(x, dtype=fp8.E5M6, power_of_two=True))
    expected = by_tiles(dy, (128, 1)).T @ by_tiles(kept, (128, 1))
    torch.testing.assert_close(dW.double(), expected, rtol=1e-5, atol=1e-4)
    assert (kept - x).norm() < 0.3 * (fp8.dequantize(*fp8.quantize(x)) - x).norm()


def nudged(x, tile):
    """x moved by a hundredth of a rounding step, the largest of every tile left alone."""
    codes, scale = fp8.quantize(x, tile)
    on_grid = fp8.dequantize(codes, scale, tile)
    largest = codes.float().abs() == 448
    return on_grid, torch.where(largest, on_grid, on_grid * (1 + 1e-4))


def test_no_product_sees_what_eight_bits_cannot_hold():
    """Oracle: the result before a change that rounding takes away: x, then W, then dy."""
    torch.manual_seed(0)
    N, K, O = 128, 128, 128                        # one tile in every direction
    layer = layer_of(O, K, "deepseek-v3")
    x, moved_x = nudged(torch.randn(N, K), (1, 128))
    W, moved_W = nudged(layer.weight.detach(), (128, 128))
    dy = torch.randn(N, O)
    layer.weight.data = W
    y, dx, dW = outputs(layer, x, dy)
    for moved in (outputs(layer, moved_x, dy),):   # Fprop and Wgrad see x
        assert torch.equal(moved[0], y) and torch.equal(moved[2], dW)
    layer.weight.data = moved_W                    # Fprop and Dgrad see W
    moved = outputs(layer, x, dy)
    assert torch.equal(moved[0], y) and torch.equal(moved[1], dx)
    layer.weight.data = W
    for tile, which in (((1, 128), 1), ((128, 1), 2)):     # Dgrad, then Wgrad, see dy
        on_grid, moved_dy = nudged(dy, tile)
        assert not torch.equal(on_grid, moved_dy)
        assert torch.equal(outputs(layer, x, on_grid)[which], outputs(layer, x, moved_dy)[which])


@pytest.mark.parametrize("recipe", ["deepseek-v3", "block-activations", "e5m2-backward"])
def test_experts_are_linear_layers_of_their_own(recipe):
    """Oracle: FP8Linear for each expert and its rows; one idle expert, ragged counts.

    Not so per tensor, where the rows of all experts share one scale.
    """
    torch.manual_seed(0)
    experts = Experts(TINY.replace(n_routed_experts=4, n_group=1, topk_group=1))
    torch.nn.init.normal_(experts.gate_up_proj, std=0.1)
    fp8.convert(experts, recipe)
    counts = torch.tensor([5, 0, 200, 1])
    rows = torch.randn(206, 48, requires_grad=True)
    dy = torch.randn(206, 48)
    y = experts.product(rows, experts.gate_up_proj, counts)
    dx, dW = torch.autograd.grad(y, (rows, experts.gate_up_proj), dy)
    for expert, (x, g, part, dpart) in enumerate(zip(*(
            tensor.split(counts.tolist()) for tensor in (rows.detach(), dy, y, dx)))):
        if not len(x):
            assert not dW[expert].any()
            continue
        layer = layer_of(48, 48, recipe)
        layer.weight.data = experts.gate_up_proj.data[expert]
        if recipe == "block-activations":          # its blocks of dy reach over two experts' rows
            part, dpart = part, outputs(layer, x, g)[1]
        for got, expected in zip((part, dpart, dW[expert]), outputs(layer, x, g)):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_what_is_converted_and_what_is_not():
    """Oracle: the list of the report: embedding, head, gate and norms stay; eh_proj as released."""
    model = DeepSeekV3(TINY)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    keys = list(model.state_dict())
    assert fp8.convert(model) is model
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert list(model.state_dict()) == keys
    eight = {name.rpartition(".")[2] for name, module in model.named_modules()
             if isinstance(module, FP8Linear | FP8Experts)}
    assert eight == {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj",
                     "gate_proj", "up_proj", "down_proj", "experts"}


def test_a_model_learns_in_eight_bits():
    """Oracle: the same model in float32: both losses fall on one batch, nearly alike."""
    losses = []
    for recipe in (None, "deepseek-v3"):
        torch.manual_seed(0)
        model = DeepSeekV3(TINY)
        model = fp8.convert(model, recipe) if recipe else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        tokens = torch.randint(97, (4, 33), generator=torch.Generator().manual_seed(1))
        for _ in range(40):
            loss = model.loss(tokens)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
        losses.append(loss.next_token.item())
    assert losses[0] < 3.0 and abs(losses[1] - losses[0]) < 0.15 * losses[0]


def test_an_outlier_costs_a_tensor_what_it_costs_a_tile():
    """Oracle: quantisation errors of the rest; one number of 300 among normal ones."""
    x = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    x[17, 40] = 3e5
    others = torch.ones_like(x, dtype=torch.bool)
    others[17] = False
    errors = [((fp8.dequantize(*fp8.quantize(x, tile), tile) - x)[others].norm()
               / x[others].norm()).item() for tile in ((256, 512), (1, 128))]
    assert errors[0] >= 10 * errors[1]


def test_an_unknown_recipe_is_refused():
    """Oracle: the name, and those that are known."""
    with pytest.raises(ValueError, match="'fp9' is unknown; choose one of deepseek-v3, per-tensor"):
        fp8.convert(torch.nn.Linear(2, 2), "fp9")


def test_gradients_of_wider_range_are_another_format():
    """Oracle: 57,344, where E5M2 ends."""
    assert RECIPES["e5m2-backward"].backward is E5M2 and torch.finfo(E5M2).max == 57344
