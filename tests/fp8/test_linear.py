"""The three products against tiles rounded one by one, and against what must not matter."""

import copy
import io
import math

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig, fp8
from minidsv3.fp8.linear import (
    E5M2,
    RECIPES,
    FP8Product,
    FP8ProductOfSwiGLU,
    Layer,
    RoutedExperts,
    SharedExperts,
    all_rows,
    require_finite,
)
from minidsv3.kernels.grouped import Runs
from minidsv3.model.experts import Experts
from minidsv3.model.layers import Linear
from minidsv3.model.moe import MoE, Routing

E4M3 = torch.float8_e4m3fn
TINY = ModelConfig.preset("tiny").replace(hidden_size=48, moe_intermediate_size=24, vocab_size=97,
                                          num_hidden_layers=2, intermediate_size=40)


def by_tiles(x, tile, dtype=E4M3, power_of_two=False):
    """A matrix rounded tile by tile, each with torch's own cast, in float64."""
    tile = tile or x.shape
    out = torch.empty(x.shape, dtype=torch.float64)
    for i in range(0, x.size(0), tile[0]):
        for j in range(0, x.size(1), tile[1]):
            part = x[i:i + tile[0], j:j + tile[1]].float()
            scale = part.abs().max() / torch.finfo(dtype).max
            scale = scale if scale > 0 else torch.tensor(1.0)
            if power_of_two:
                scale = torch.tensor(2.0 ** math.ceil(math.log2(scale)))
            codes = (part / scale).clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
            out[i:i + tile[0], j:j + tile[1]] = codes.double() * scale.double()
    return out


def layer_of(rows, columns, recipe, name="q_b_proj"):
    """One linear layer in FP8; its name decides which of the special places it is."""
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
    """Oracle: dW from an E5M6 copy, y from E4M3, both with scales of powers of two."""
    torch.manual_seed(0)
    layer = layer_of(20, 150, "deepseek-v3", name="o_proj")
    x, dy = torch.randn(140, 150), torch.randn(140, 20)
    y, _, dW = outputs(layer, x, dy)
    W = by_tiles(layer.weight.detach(), (128, 128))
    expected = by_tiles(x, (1, 128), power_of_two=True) @ W.T
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    kept = fp8.dequantize(*fp8.quantize(x, dtype=fp8.E5M6, power_of_two=True))
    expected = by_tiles(dy, (128, 1)).T @ by_tiles(kept, (128, 1), power_of_two=True)
    torch.testing.assert_close(dW.double(), expected, rtol=1e-5, atol=1e-4)
    assert (kept - x).norm() < 0.3 * (fp8.dequantize(*fp8.quantize(x)) - x).norm()


@pytest.mark.parametrize("recipe", RECIPES)
def test_of_an_experts_swiglu_gate_and_up_are_kept_in_eight_bits(recipe):
    """Oracle: y from exact inputs; gradients at rounded ones, by the derivative of silu by hand."""
    torch.manual_seed(0)
    N, K, O = 140, 150, 20
    plan = RECIPES[recipe]
    hidden, dy = torch.randn(N, 2 * K, requires_grad=True), torch.randn(N, O)
    weight = torch.randn(1, O, K, requires_grad=True)
    layer = Layer("down", plan, returns=True)
    y = FP8ProductOfSwiGLU.apply(hidden, weight, Runs(torch.tensor([N])), layer)
    dhidden, dW = torch.autograd.grad(y, (hidden, weight), dy)
    W = by_tiles(weight[0].detach(), plan.weight)
    assert near(y, by_tiles(silu_times(hidden.detach()), plan.activation) @ W.T)
    sent = by_tiles(dy, plan.gradient, plan.backward, power_of_two=True)
    kept = by_tiles(hidden.detach(), plan.activation).float()
    column = by_tiles(sent, plan.column, plan.backward, power_of_two=True)
    assert near(dW[0], column.T @ by_tiles(silu_times(kept), plan.column))
    gate, up = kept.double().chunk(2, dim=1)
    dx, sigmoid = sent @ W, 1 / (1 + (-gate).exp())
    dgate = dx * up * sigmoid * (1 + gate * (1 - sigmoid))
    assert near(dhidden, torch.cat([dgate, dx * gate * sigmoid], dim=1))


def silu_times(hidden):
    """silu(gate) * up, in the dtype it comes in."""
    gate, up = hidden.chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up


def near(got, expected):
    """Whether float32's sums of a product, 2e-6 of its largest, are all that differs."""
    return (got.double() - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_shared_experts_are_a_stack_of_one():
    """Oracle: two products with concatenated weights, as for a routed expert."""
    torch.manual_seed(0)
    moe = fp8.convert(MoE(TINY))
    for weight in moe.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    x = torch.randn(2, 70, 48)
    shared = moe.shared_experts
    both = torch.cat([shared.gate_proj.weight, shared.up_proj.weight])
    recipe = RECIPES["deepseek-v3"]
    one = all_rows(x.flatten(0, 1))
    hidden = FP8Product.apply(x.flatten(0, 1), both[None], one, Layer("up", recipe))
    y = FP8ProductOfSwiGLU.apply(hidden, shared.down_proj.weight[None], one, Layer("", recipe))
    assert torch.equal(shared(x).flatten(0, 1), y)


def test_powers_of_two_let_a_matrix_be_tiled_anew_without_loss():
    """Oracle: equality; with scales amax/448 the second rounding moves one number in three."""
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    for power_of_two in (True, False):
        once = fp8.rounded(x, (1, 128), power_of_two=power_of_two)
        twice = fp8.rounded(once, (128, 1), power_of_two=power_of_two)
        normal = x.abs() > 0.1                     # far from what underflows in either scale
        moved = (twice != once)[normal].float().mean()
        assert moved == 0 if power_of_two else moved > 0.3


def test_what_is_sent_to_experts_has_scales_of_powers_of_two():
    """Oracle: each special place of the report by name, and no other."""
    model = fp8.convert(DeepSeekV3(TINY))
    held = [value for module in model.modules() for value in vars(module).values()]
    layers = [layer for value in held
              for layer in ((value.up, value.down) if hasattr(value, "up") else (value,))
              if isinstance(layer, Layer)]
    kinds = {(layer.name.rpartition(".")[2], layer.keep == fp8.E5M6, layer.receives, layer.returns)
             for layer in layers if layer.keep == fp8.E5M6 or layer.receives or layer.returns}
    assert kinds == {("o_proj", True, True, False), ("gate_up_proj", False, True, False),
                     ("down_proj", False, False, True)}
    assert {layer.name.rpartition("mlp.")[2] for layer in layers if layer.returns} == {
        "experts.down_proj"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_layer_whose_input_or_gradient_is_not_finite_is_named(bad):
    """Oracle: the name of the layer that was given the bad number."""
    model = fp8.convert(DeepSeekV3(TINY))
    layer, x = model.layers[1].self_attn.q_b_proj, torch.randn(3, model.config.q_lora_rank)
    name = "layers.1.self_attn.q_b_proj holds a number that is not finite"
    with pytest.raises(FloatingPointError, match=f"the gradient of {name}"):
        layer(x).sum().mul(bad).backward()
    x[1, 2] = bad
    with pytest.raises(FloatingPointError, match=f"the input of {name}"):
        layer(x)
    hidden = torch.full((3, 2 * TINY.moe_intermediate_size), bad)
    experts = model.layers[1].mlp.experts
    with pytest.raises(FloatingPointError, match="input of layers.1.mlp.experts.down_proj"):
        FP8ProductOfSwiGLU.apply(hidden, experts.down_proj, Runs(torch.tensor([3] + [0] * 15)),
                                 experts.swiglu.down)


def test_the_recipes_are_these():
    """Oracle: the tiles and formats of the report (section 3.3.2, appendix B.2), written out."""
    tile, block, column = (1, 128), (128, 128), (128, 1)
    assert {name: tuple(recipe) for name, recipe in RECIPES.items()} == {
        "deepseek-v3": (tile, block, tile, column, E4M3),
        "per-tensor": (None, None, None, None, E4M3),
        "block-activations": (tile, block, block, column, E4M3),
        "e5m2-backward": (tile, block, tile, column, E5M2)}


def test_each_expert_s_matrix_has_its_own_scale_per_tensor():
    """Oracle: its matrix rounded alone; the other is a thousand times larger."""
    torch.manual_seed(0)
    stack = torch.randn(2, 20, 30) * torch.tensor([1.0, 1000.0])[:, None, None]
    rows, counts = torch.randn(4, 30), torch.tensor([4, 0])
    y = FP8Product.apply(rows, stack, Runs(counts), Layer("", RECIPES["per-tensor"]))
    assert near(y, by_tiles(rows, None) @ by_tiles(stack[0], None).T)


def test_a_copy_of_a_converted_model_computes_the_same():
    """Oracle: logits and gradients of the one that was copied, or saved whole and loaded."""
    torch.manual_seed(0)
    model, tokens = fp8.convert(DeepSeekV3(TINY)), torch.randint(97, (2, 20))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    expected = losses_and_gradients(model, tokens)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        for got, right in zip(losses_and_gradients(other, tokens), expected, strict=True):
            assert torch.equal(got, right)


def losses_and_gradients(model, tokens):
    """The total and the gradient of every weight that has one."""
    model.zero_grad()
    total = model.loss(tokens).total
    total.backward()
    return [total.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def test_few_tokens_take_the_same_path():
    """Oracle: the same two tokens among many; nothing falls back to full precision."""
    torch.manual_seed(0)
    experts = fp8.convert(DeepSeekV3(TINY)).layers[1].mlp.experts
    x, weights = torch.randn(40, 48), torch.rand(40, 4)
    affinity, chosen = torch.zeros(40, 16), torch.randint(16, (40, 4))
    many = experts(x, weights, Routing(affinity, chosen))
    few = experts(x[:2], weights[:2], Routing(affinity[:2], chosen[:2]))
    torch.testing.assert_close(few, many[:2], rtol=1e-5, atol=1e-7)


def test_bfloat16_stays_what_flows():
    """Oracle: the dtype of x in y and dx; the weight's, float32, in dW."""
    for name in ("q_b_proj", "o_proj"):
        layer = layer_of(9, 20, "deepseek-v3", name)
        y, dx, dW = outputs(layer, torch.randn(5, 20).bfloat16(), torch.randn(5, 9).bfloat16())
        assert (y.dtype, dx.dtype, dW.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_the_smallest_gradients_have_scales_too():
    """Oracle: a scale of 1e-13, far below any floor, and the same relative error."""
    layer = layer_of(50, 60, "deepseek-v3")
    x, dy = torch.randn(7, 60), torch.randn(7, 50)
    usual, tiny = (outputs(layer, x, dy * size)[1] / size for size in (1.0, 2.0**-33))
    torch.testing.assert_close(tiny, usual, rtol=1e-6, atol=0)


def test_a_gpu_is_never_waited_for():
    """Oracle: a tensor on another device, whose numbers nobody can ask for."""
    require_finite(torch.empty(3, device="meta"), "input", Layer("x", RECIPES["deepseek-v3"]))


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
    """Oracle: an FP8 Linear for each expert and its rows; one idle expert, ragged counts.

    Not so per tensor, where the rows of all experts share one scale.
    """
    torch.manual_seed(0)
    experts = Experts(TINY.replace(n_routed_experts=4, n_group=1, topk_group=1))
    torch.nn.init.normal_(experts.gate_up_proj, std=0.1)
    fp8.convert(experts, recipe)
    counts = torch.tensor([5, 0, 200, 1])
    rows = torch.randn(206, 48, requires_grad=True)
    dy = torch.randn(206, 48)
    y = FP8Product.apply(rows, experts.gate_up_proj, Runs(counts), experts.swiglu.up)
    dx, dW = torch.autograd.grad(y, (rows, experts.gate_up_proj), dy)
    for expert, (x, g, part, dpart) in enumerate(zip(*(
            tensor.split(counts.tolist()) for tensor in (rows.detach(), dy, y, dx)))):
        if not len(x):
            assert not dW[expert].any()
            continue
        layer = layer_of(48, 48, recipe)
        layer.product = layer.product._replace(receives=True)
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
    eight = {name for name, module in model.named_modules()
             if any(isinstance(held, Layer | RoutedExperts | SharedExperts)
                    for held in vars(module).values())}
    ffn = {"gate_proj", "up_proj", "down_proj"}
    shared = {"shared_experts", *(f"shared_experts.{name}" for name in ffn)}
    expected = set()
    for block, mlp in (("layers.0", ffn), ("layers.1", {"experts", *shared}),
                       ("mtp.0", {"experts", *shared})):
        expected |= {f"{block}.self_attn.{name}" for name in (
            "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")}
        expected |= {f"{block}.mlp.{name}" for name in mlp}
    assert eight == expected


@pytest.mark.slow
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
