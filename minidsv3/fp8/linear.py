"""Linear layers whose three products are in FP8 (report, section 3.3; appendix B).

    Fprop   y  = x W^T       x in tiles 1 x 128 along its channels     W in blocks 128 x 128
    Dgrad   dx = dy W        dy in tiles 1 x 128 along its channels    the same W
    Wgrad   dW = dy^T x      dy and x in tiles 128 x 1, along the tokens

A tile runs along the dimension that is summed over, so that its scale can be taken out of a partial
sum. This is why Wgrad needs other tiles. Its x is the one kept from Fprop, in FP8 (one byte per
number), which is quantised again in tiles 128 x 1.

All of this is simulated: numbers are rounded to the format and multiplied in float32. The result
equals a sum over tiles of FP8 products times their two scales. A GPU with tensor cores for such
products computes the same on them (`tensor_cores.py`). Master weights and their gradients are
float32. `accumulate.py` shows the additional error of sums with few bits.

Three places are special (report, section 3.3.3):
- The input of the linear layer after attention is kept in E5M6 (12 bits), because the backward pass
  of attention needs it too.
- What is sent to the experts of other machines is sent in FP8, and so are the gradients that come
  back for the experts' outputs. Here, and in E5M6, scales are powers of two: quantising again in
  other tiles then moves only exponents, and adds no error except to subnormal numbers.
- Of the SwiGLU in an MoE layer, the inputs (gate and up) are kept in FP8. Its output is computed
  again in the backward pass.

Embedding, head, router, norms and the attention itself stay as they are, and so does eh_proj, as in
the released checkpoint.

`convert` replaces the product that a module holds, and nothing else: classes, parameters and their
names stay.
"""

from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange

from ..command import UserError
from ..device import reads_are_free
from ..kernels import grouped
from ..kernels.grouped import Runs, grouped_swiglu
from ..model.experts import Experts
from ..model.layers import Linear, at_least_float32, product, swiglu
from ..model.moe import MoE, Router
from . import tensor_cores
from .quantize import BLOCK, E5M6, TILE, dequantize, quantize, rounded

COLUMN = (128, 1)                                # in Wgrad: 128 tokens, one channel
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


class Recipe(NamedTuple):
    """Tiles and formats of the three products; a tile of None is the whole matrix."""

    activation: tuple | None = TILE              # x in Fprop
    weight: tuple | None = BLOCK                 # W in Fprop and Dgrad
    gradient: tuple | None = TILE                # dy in Dgrad
    column: tuple | None = COLUMN                # dy and x in Wgrad
    backward: torch.dtype = E4M3                 # format of dy


RECIPES = {
    "deepseek-v3": Recipe(),
    "per-tensor": Recipe(None, None, None, None),
    "block-activations": Recipe(gradient=BLOCK),   # diverged at 16B parameters (appendix B.2)
    "e5m2-backward": Recipe(backward=E5M2),        # as in earlier work: more range for gradients
}


class Layer(NamedTuple):
    """The product of one linear layer in FP8: its recipe, and which of the special places it is."""

    name: str
    recipe: Recipe
    keep: object = E4M3                          # format in which x is kept
    receives: bool = False                       # x comes in scales of powers of two
    returns: bool = False                        # dy comes in FP8, in scales of powers of two
    plain: object = product                      # what a Linear held before

    def __call__(self, x, weight):
        """x (..., in), weight (out, in) -> (..., out)."""
        rows = x.flatten(0, -2)                                        # (N, in)
        y = FP8Product.apply(rows, weight[None], all_rows(rows), self)
        return y.unflatten(0, x.shape[:-1])                            # (..., out)

    def on_tensor_cores(self, device):
        """Whether this recipe and device allow real products instead of simulated ones."""
        return self.recipe == RECIPES["deepseek-v3"] and tensor_cores.usable(device)


class RoutedExperts(NamedTuple):
    """SwiGLU of stacked experts in FP8; in Wgrad, each expert has tiles of its own tokens.

    Gate and up are one matrix to the tiles, as in a fused kernel; at F = 2048, a multiple of 128,
    this changes nothing.
    """

    up: Layer
    down: Layer
    plain: object = grouped_swiglu               # what Experts held before

    def __call__(self, rows, gate_up_proj, down_proj, runs):
        """rows (M, C) sorted by expert, weights (E, 2F, C) and (E, C, F), Runs -> (M, C)."""
        hidden = FP8Product.apply(rows, gate_up_proj, runs, self.up)   # (M, 2F)
        return FP8ProductOfSwiGLU.apply(hidden, down_proj, runs, self.down)


class SharedExperts(NamedTuple):
    """The same for the shared experts: a stack of one expert, to which all tokens go."""

    up: Layer
    down: Layer
    plain: object = swiglu                       # what a SwiGLU held before

    def __call__(self, x, gate_proj, up_proj, down_proj):
        """x (..., C) through the weights of three linear layers -> (..., C)."""
        rows = x.flatten(0, -2)                                        # (N, C)
        gate_up = torch.cat([gate_proj.weight, up_proj.weight])[None]  # (1, 2F, C)
        experts = RoutedExperts(self.up, self.down)
        return experts(rows, gate_up, down_proj.weight[None], all_rows(rows)).view_as(x)


def convert(model, recipe="deepseek-v3"):
    """Let the matrices of attention, FFN and experts compute in simulated FP8 -> the same model.

    Parameters, their names and the optimiser's references to them stay. Raises UserError for an
    unknown recipe. On a CPU, an input or gradient that is not finite raises FloatingPointError with
    the name of its layer; a GPU would have to be waited for in every layer, so there only the loss
    shows it. When decoding over a cache, absorbed attention multiplies with the master weights of
    kv_b_proj, not with FP8.
    """
    if recipe not in RECIPES:
        raise UserError(f"FP8 recipe {recipe!r} is unknown; choose one of {', '.join(RECIPES)}.")
    plan = RECIPES[recipe]
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            up = Layer(f"{name}.gate_up_proj", plan, receives=True)
            down = Layer(f"{name}.down_proj", plan, returns=True)
            module.swiglu = RoutedExperts(up, down, plain_of(module.swiglu))
        elif isinstance(module, MoE) and module.shared_experts is not None:
            up = Layer(f"{name}.shared_experts.gate_proj and up_proj", plan)
            down = Layer(f"{name}.shared_experts.down_proj", plan)
            shared = module.shared_experts
            shared.swiglu = SharedExperts(up, down, plain_of(shared.swiglu))
        elif (isinstance(module, Linear) and not isinstance(module, Router)
              and not name.endswith(("lm_head", "eh_proj"))):
            after_attention = name.endswith("o_proj")
            module.product = Layer(name, plan, E5M6 if after_attention else E4M3, after_attention,
                                   plain=plain_of(module.product))
    return model


def plain_of(held):
    """What a module computed with before it was converted, or computes with if it never was."""
    return getattr(held, "plain", held)


@contextmanager
def suspended(model):
    """While it lasts, a converted model computes in its own precision again."""
    held = [(module, name, value) for module in model.modules()
            for name, value in vars(module).items()
            if isinstance(value, Layer | RoutedExperts | SharedExperts)]
    for module, name, value in held:
        setattr(module, name, value.plain)
    try:
        yield model
    finally:
        for module, name, value in held:
            setattr(module, name, value)


def all_rows(rows):
    """The Runs of a stack of one matrix."""
    return Runs(torch.tensor([len(rows)]))       # on the CPU: a GPU need not be waited for


class FP8Product(torch.autograd.Function):
    """y = x W^T and its two gradients, for every run of rows and its own matrix of a stack.

    x (N, K) sorted by matrix, weight (E, O, K), their Runs -> (N, O) in the dtype of x.
    """

    @staticmethod
    def forward(ctx, x, weight, runs, layer):
        ctx.layer, ctx.runs, tile = layer, runs, layer.recipe.activation
        codes, scale = quantize(x, tile, layer.keep, layer.receives)
        require_finite(scale, "input", layer)
        # Fprop is in FP8 whatever is kept; float16 holds every number of E5M6.
        if layer.keep == E5M6:
            codes, operand = codes.half(), rounded(x, tile, E4M3, layer.receives)
        else:
            operand = dequantize(codes, scale, tile)
        ctx.save_for_backward(codes, scale, weight)
        return fprop(operand, weight, runs, layer).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        codes, scale, weight = ctx.saved_tensors
        x = dequantize(codes, scale, ctx.layer.recipe.activation)
        dx, dW = gradients(dy, x, weight, ctx.runs, ctx.layer)
        return dx.to(dy.dtype), dW.to(weight.dtype), None, None


class FP8ProductOfSwiGLU(torch.autograd.Function):
    """The same for x = silu(gate) * up: gate and up are kept in FP8, and x is computed again.

    hidden (N, 2K), gate then up, weight (E, O, K), Runs -> (N, O) in the dtype of hidden.
    """

    @staticmethod
    def forward(ctx, hidden, weight, runs, layer):
        ctx.layer, ctx.runs, tile = layer, runs, layer.recipe.activation
        codes, scale = quantize(hidden, tile)
        require_finite(scale, "input", layer)
        ctx.save_for_backward(codes, scale, weight)
        operand = rounded(silu_times(hidden), tile)
        return fprop(operand, weight, runs, layer).to(hidden.dtype)

    @staticmethod
    def backward(ctx, dy):
        codes, scale, weight = ctx.saved_tensors
        hidden = dequantize(codes, scale, ctx.layer.recipe.activation).requires_grad_()
        with torch.enable_grad():
            x = silu_times(hidden)                                     # (N, K)
        dx, dW = gradients(dy, x.detach(), weight, ctx.runs, ctx.layer)
        dhidden, = torch.autograd.grad(x, hidden, dx)                  # (N, 2K)
        return dhidden.to(dy.dtype), dW.to(weight.dtype), None, None


def silu_times(hidden):
    """silu(gate) * up: (N, 2K) -> (N, K)."""
    gate, up = hidden.chunk(2, dim=-1)
    return F.silu(gate) * up


def fprop(x, weight, runs, layer):
    """x W^T, x rounded already, the weight not: (N, K), (E, O, K) -> (N, O) float32."""
    if layer.on_tensor_cores(x.device):
        return tensor_cores.grouped_product(x, weight, runs, layer.receives)
    return grouped.grouped_linear(x, rounded_stack(weight, layer.recipe.weight), runs)


def gradients(dy, x, weight, runs, layer):
    """Dgrad and Wgrad: dy (N, O), x (N, K), weight (E, O, K) -> dx (N, K), dW (E, O, K) float32."""
    recipe, kind, real = layer.recipe, layer.recipe.backward, layer.on_tensor_cores(dy.device)
    dy_row = rounded(dy, recipe.gradient, kind, layer.returns)
    require_finite(dy_row, "gradient", layer)
    if real:
        dx = tensor_cores.grouped_product(dy_row, weight.mT, runs, layer.returns)
    else:
        stack = rounded_stack(weight, recipe.weight).mT.contiguous()   # (E, K, O)
        dx = grouped.grouped_linear(dy_row, stack, runs)               # Dgrad
    dy = dy_row if layer.returns else dy         # a dy that came in FP8 has no exact form
    dW = torch.zeros_like(weight, dtype=torch.float32)
    for g, rows, out in zip(dy.split(runs.sizes), x.split(runs.sizes), dW, strict=True):
        if not len(rows):                        # an idle expert
            continue
        if real:
            out.copy_(tensor_cores.product(g.T, rows.T, TILE, layer.returns, layer.receives))
        else:
            g = rounded(g, recipe.column, kind, layer.returns)
            rows = rounded(rows, recipe.column, E4M3, layer.receives)
            torch.mm(g.T, rows, out=out)                               # Wgrad
    return dx, dW


def rounded_stack(weight, tile):
    """Every matrix of a stack in tiles of its own: (E, O, K) -> (E, O, K) float32."""
    E, O, K = weight.shape
    if tile is None:
        return torch.stack([rounded(matrix, None) for matrix in weight])
    padding = -O % tile[0]                       # so that no tile reaches into the next matrix
    flat = rearrange(F.pad(at_least_float32(weight), (0, 0, 0, padding)), "e o k -> (e o) k")
    return rearrange(rounded(flat, tile), "(e o) k -> e o k", e=E)[:, :O]


def require_finite(x, what, layer):
    """Raise FloatingPointError with the layer's name, where reading x does not wait for a GPU."""
    if reads_are_free(x.device) and not x.isfinite().all():
        raise FloatingPointError(f"the {what} of {layer.name} holds a number that is not finite")
