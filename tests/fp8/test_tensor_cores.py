"""Real products, as far as a machine without them can tell: by a stand-in that reads the layout.

The stand-in for torch's scaled product is written from cuBLAS's description of where each scale
lies in memory, and refuses all other layouts, as the library does. On a GPU that has the real one,
the last test compares that.
"""

import pytest
import torch
import torch.nn.functional as F

from minidsv3 import ModelConfig, fp8
from minidsv3.fp8 import tensor_cores
from minidsv3.fp8.quantize import BLOCK, TILE, rounded
from minidsv3.model.experts import Experts
from minidsv3.model.layers import Linear
from minidsv3.model.moe import Routing

CONFIG = ModelConfig.preset("tiny").replace(hidden_size=48, moe_intermediate_size=24,
                                            n_routed_experts=4, n_group=1, topk_group=1)
KINDS = F.ScalingType


def stand_in(a, b, scale_a, kind_a, scale_b, kind_b, output_dtype):
    """a (M, K) row-major times b (K, N) column-major, scales read from raw memory by position."""
    (M, K), N = a.shape, b.size(1)
    L, L4 = K // 128, -(-(K // 128) // 4) * 4
    assert a.dtype == b.dtype == torch.float8_e4m3fn and K % 128 == 0 and M % 16 == N % 16 == 0
    assert a.is_contiguous() and b.T.is_contiguous() and kind_a == KINDS.BlockWise1x128
    assert scale_a.shape == (M, L) and lies(scale_a, (1, M))
    memory_a = torch.as_strided(scale_a, (L * M,), (1,)).tolist()
    blocks = kind_b == KINDS.BlockWise128x128
    assert scale_b.shape == ((L4, N // 128) if blocks else (N, L))
    assert lies(scale_b, (1, L4) if blocks else (1, N))
    memory_b = torch.as_strided(scale_b, (scale_b.numel(),), (1,)).tolist()
    y = torch.zeros(M, N, dtype=torch.float64)
    for part in range(L):
        ks = slice(128 * part, 128 * (part + 1))
        left = torch.tensor(memory_a[part * M:(part + 1) * M], dtype=torch.float64)
        right = torch.tensor([memory_b[(n // 128) * L4 + part] if blocks else memory_b[part * N + n]
                              for n in range(N)], dtype=torch.float64)
        inner = a[:, ks].double() @ b[ks].double()
        y += inner * left[:, None] * right[None, :]
    return y.to(output_dtype)


def lies(x, stride):
    """Whether x lies in memory with these strides; a dimension of one step may have any."""
    return all(got == wanted or size == 1
               for got, wanted, size in zip(x.stride(), stride, x.shape, strict=True))


@pytest.fixture
def real(monkeypatch):
    """Products go through the stand-in, as they would through a GPU's."""
    monkeypatch.setattr(F, "scaled_mm", stand_in)
    monkeypatch.setattr(tensor_cores, "usable", lambda device: True)
    return monkeypatch


def results(module, *inputs):
    """Output, gradient of the input and of every weight, for one random dy."""
    x = inputs[0].detach().requires_grad_()
    y = module(x, *inputs[1:])
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return (y, *torch.autograd.grad(y, (x, *module.parameters()), dy))


@pytest.mark.parametrize("name", ["q_b_proj", "o_proj"])
@pytest.mark.parametrize("N, K, O", [(256, 640, 384), (130, 200, 77), (3, 5, 7)])
def test_a_layer_is_its_simulation(name, N, K, O, real):
    """Oracle: the simulated products; 2e-6 is float32's sums. Sizes ragged in every way."""
    torch.manual_seed(0)
    holder = torch.nn.ModuleDict({name: Linear(K, O)})
    torch.nn.init.normal_(holder[name].weight, std=0.1)
    layer, x = fp8.convert(holder)[name], torch.randn(N, K)
    on_cores = results(layer, x)
    real.undo()
    for got, expected in zip(on_cores, results(layer, x), strict=True):
        assert (got - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_experts_are_their_simulation(real):
    """Oracle: the simulated products of four experts, one of them idle."""
    torch.manual_seed(0)
    experts = Experts(CONFIG)
    for weight in experts.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    holder = fp8.convert(torch.nn.ModuleDict({"experts": experts}))
    chosen = torch.randint(3, (50, 2))
    inputs = torch.randn(50, 48), torch.rand(50, 2), Routing(torch.zeros(50, 4), chosen)
    on_cores = results(holder["experts"], *inputs)
    real.undo()
    for got, expected in zip(on_cores, results(holder["experts"], *inputs), strict=True):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_no_tokens_at_all(real):
    """Oracle: the shape of the simulation's answer."""
    layer = fp8.convert(torch.nn.ModuleDict({"q_b_proj": Linear(8, 5)}))["q_b_proj"]
    torch.nn.init.normal_(layer.weight)
    assert layer(torch.zeros(0, 8)).shape == (0, 5)


@pytest.mark.parametrize("M, N, K", [(256, 768, 512), (136, 200, 400), (3, 7, 1000)])
@pytest.mark.parametrize("tile", [TILE, BLOCK])
def test_torch_accepts_the_layout(M, N, K, tile):
    """Oracle: the checks that torch itself makes of shapes and strides, on tensors without data."""
    y = tensor_cores.product(torch.empty(M, K, device="meta"), torch.empty(N, K, device="meta"),
                             tile)
    assert y.shape == (M, N) and y.dtype == torch.float32


def test_only_the_report_s_recipe_has_real_products(real):
    """Oracle: a stand-in that must not be called."""
    real.setattr(F, "scaled_mm", None)
    for recipe in ("per-tensor", "block-activations", "e5m2-backward"):
        holder = fp8.convert(torch.nn.ModuleDict({"q_b_proj": Linear(8, 8)}), recipe)
        torch.nn.init.normal_(holder["q_b_proj"].weight)
        results(holder["q_b_proj"], torch.randn(2, 8))


def test_what_disagrees_with_the_simulation_is_not_used(monkeypatch):
    """Oracle: a product that is off by a hundredth, one that fails, and the right one."""
    a, b = torch.randn(5, 300), torch.randn(7, 300)
    simulated = rounded(a) @ rounded(b).T
    assert tensor_cores.close(simulated * (1 + 5e-4), simulated)
    assert not tensor_cores.close(simulated * 1.002, simulated)
    assert not tensor_cores.close(simulated * float("nan"), simulated)
    assert not tensor_cores.usable(torch.device("cpu"))

    def wrong(*arguments, **options):
        return stand_in(*arguments, **options) * 1.01

    def wrong_for_blocks(*arguments, **options):
        factor = 1.01 if arguments[5] == KINDS.BlockWise128x128 else 1
        return stand_in(*arguments, **options) * factor

    def refusing(*arguments, **options):
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    class Hopper:
        """A device that says it is one, and computes on the CPU."""
        type = "cuda"

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.Tensor, "to", to_any(torch.Tensor.to))
    for product, verdict in ((stand_in, True), (wrong, False), (wrong_for_blocks, False),
                             (refusing, False)):
        monkeypatch.setattr(F, "scaled_mm", product)
        assert tensor_cores.usable(Hopper()) is verdict
    monkeypatch.setattr(F, "scaled_mm", stand_in)
    for other in ((8, 9), (10, 0)):                # other chips want their scales in other forms
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, it=other: it)
        assert not tensor_cores.usable(Hopper())


def to_any(to):
    """Tensor.to that stays where it is when asked for a device of the test's own."""
    def stay(tensor, *arguments, **options):
        return tensor if type(arguments[0]).__name__ == "Hopper" else to(
            tensor, *arguments, **options)
    return stay


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
                    reason="needs a Hopper GPU")
def test_a_hopper_gpu_agrees_with_the_simulation():
    """Oracle: the simulation on the same GPU, relative to the norm; 1e-3."""
    device = torch.device("cuda", torch.cuda.current_device())
    assert tensor_cores.usable(device)
    for M, N, K in ((4096, 2048, 7168), (136, 200, 400)):
        a, b = torch.randn(M, K, device=device), torch.randn(N, K, device=device)
        for tile in (TILE, BLOCK):
            simulated = rounded(a) @ rounded(b, tile).T
            assert tensor_cores.close(tensor_cores.product(a, b, tile), simulated)
