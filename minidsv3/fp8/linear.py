"""Linear layers whose three products see eight bits (report, section 3.3; appendix B).

    Fprop   y  = x W^T       x in tiles 1 x 128 along its channels     W in blocks 128 x 128
    Dgrad   dx = dy W        dy in tiles 1 x 128 along its channels    the same W
    Wgrad   dW = dy^T x      dy and x in tiles 128 x 1, along the tokens

A tile runs along the dimension that is summed over, so that its scale can be taken out of a partial
sum; that is why Wgrad needs tiles of its own. x is kept for it in FP8, a byte a number, and tiled
anew. All is simulated: numbers are rounded to the format and multiplied in float32, which equals
the sum, tile by tile, of FP8 products times their two scales; where a GPU has tensor cores for it,
those do the same (`tensor_cores.py`). Weights stay float32 masters, and their gradients are
float32. What limited sums would add is in `accumulate.py`.

Three places are special (report, section 3.3.3). What feeds the linear after attention is kept in
E5M6, twelve bits, since the backward pass of attention needs it too. What is sent to the experts of
other machines, and the gradients that come back for their outputs, travel in FP8. In both, scales
are powers of two, so that tiling anew moves exponents: it adds no error but to subnormals. And of
an MoE layer's SwiGLU the inputs are kept, in FP8; its output is formed again in the backward pass.

Embedding, head, gate, norms and the attention itself stay as they are, and so does eh_proj, as in
the released checkpoint.
"""

from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..command import UserError
from ..device import reads_are_free
from ..kernels.grouped import Runs, grouped_linear
from ..model.experts import Experts
from ..model.layers import Linear, SwiGLU, at_least_float32
from ..model.moe import MoE, Router
from . import tensor_cores
from .quantize import BLOCK, E5M6, TILE, dequantize, quantize, rounded

COLUMN = (128, 1)                                # of Wgrad: 128 tokens, one channel
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
    "e5m2-backward": Recipe(backward=E5M2),        # as earlier work: more range for gradients
}


class Layer(NamedTuple):
    """What one linear layer does: its recipe, and which of the special places it is."""

    name: str
    recipe: Recipe
    keep: object = E4M3                          # format in which x is kept
    receives: bool = False                       # x comes in scales of powers of two
    returns: bool = False                        # dy comes in FP8, in scales of powers of two

    def on_tensor_cores(self, device):
        """Whether this recipe and device allow real products in place of simulated ones."""
        return self.recipe == RECIPES["deepseek-v3"] and tensor_cores.usable(device)


def convert(model, recipe="deepseek-v3"):
    """Let the matrices of attention, FFN and experts compute in simulated FP8; the same model.

    Parameters, their names and the optimiser's hold on them stay. Raises UserError for an unknown
    recipe. On a CPU, an input or gradient that is not finite raises FloatingPointError with the
    name of its layer; a GPU would have to be waited for at every layer, so there the loss tells.
    Decoding over a cache, absorbed attention multiplies the master of kv_b_proj as it is.
    """
    if recipe not in RECIPES:
        raise UserError(f"FP8 recipe {recipe!r} is unknown; choose one of {', '.join(RECIPES)}.")
    plan = RECIPES[recipe]
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            module.__class__ = FP8Experts
            module.up = Layer(f"{name}.gate_up_proj", plan, receives=True)
            module.down = Layer(f"{name}.down_proj", plan, returns=True)
        elif isinstance(module, MoE) and module.shared_experts is not None:
            shared = module.shared_experts
            shared.__class__ = FP8SwiGLU
            shared.up = Layer(f"{name}.shared_experts.gate_proj and up_proj", plan)
            shared.down = Layer(f"{name}.shared_experts.down_proj", plan)
        elif (isinstance(module, Linear) and not isinstance(module, Router)
              and not name.endswith(("lm_head", "eh_proj"))):
            module.__class__ = FP8Linear
            after_attention = name.endswith("o_proj")
            module.layer = Layer(name, plan, E5M6 if after_attention else E4M3, after_attention)
    return model


@contextmanager
def suspended(model):
    """While it lasts, a converted model computes in its own precision again."""
    classes = {module: type(module) for module in model.modules()
               if isinstance(module, FP8Linear | FP8SwiGLU | FP8Experts)}
    for module, eight_bits in classes.items():
        module.__class__ = eight_bits.__base__
    try:
        yield model
    finally:
        for module, eight_bits in classes.items():
            module.__class__ = eight_bits


class FP8Linear(Linear):
    """A Linear of which `convert` changed the class, and where it set `layer`."""

    def forward(self, x):
        rows = x.flatten(0, -2)                                        # (N, in)
        y = FP8Product.apply(rows, self.weight[None], all_rows(rows), self.layer)
        return y.unflatten(0, x.shape[:-1])                            # (..., out)


class FP8SwiGLU(SwiGLU):
    """The shared experts: a stack of one expert, to which all tokens go."""

    def forward(self, x):
        rows = x.flatten(0, -2)                                        # (N, C)
        gate_up = torch.cat([self.gate_proj.weight, self.up_proj.weight])[None]
        y = feed_forward(rows, gate_up, self.down_proj.weight[None], all_rows(rows), self)
        return y.view_as(x)


class FP8Experts(Experts):
    """The routed experts: each its own matrices, and its own tokens in Wgrad."""

    def forward(self, x, weights, routing):
        """One path, however few tokens there are; no spare rows, which would share in tiles."""
        return self.in_groups(x, weights, routing)

    def feed_forward(self, rows, runs):
        """rows (M, C) sorted by expert, Runs -> (M, C)."""
        return feed_forward(rows, self.gate_up_proj, self.down_proj, runs, self)


def feed_forward(rows, gate_up, down, runs, module):
    """SwiGLU of stacked experts: rows (M, C), gate_up (E, 2F, C), down (E, C, F) -> (M, C).

    Gate and up are one matrix to the tiles, as in a fused kernel; at F = 2048 that is no matter.
    """
    hidden = FP8Product.apply(rows, gate_up, runs, module.up)          # (M, 2F)
    return FP8ProductOfSwiGLU.apply(hidden, down, runs, module.down)


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
        # Fprop sees eight bits whatever is kept; every number of E5M6 is one of float16.
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
    """The same for x = silu(gate) * up: what is kept are gate and up in FP8, and x is formed anew.

    hidden (N, 2K), gate then up, weight (E, O, K), Runs -> (N, O) in the dtype of hidden.
    """

    @staticmethod
    def forward(ctx, hidden, weight, runs, layer):
        ctx.layer, ctx.runs, tile = layer, runs, layer.recipe.activation
        codes, scale = quantize(hidden, tile)
        require_finite(scale, "input", layer)
        ctx.save_for_backward(codes, scale, weight)
        operand = rounded(swiglu(hidden), tile)
        return fprop(operand, weight, runs, layer).to(hidden.dtype)

    @staticmethod
    def backward(ctx, dy):
        codes, scale, weight = ctx.saved_tensors
        hidden = dequantize(codes, scale, ctx.layer.recipe.activation).requires_grad_()
        with torch.enable_grad():
            x = swiglu(hidden)                                         # (N, K)
        dx, dW = gradients(dy, x.detach(), weight, ctx.runs, ctx.layer)
        dhidden, = torch.autograd.grad(x, hidden, dx)                  # (N, 2K)
        return dhidden.to(dy.dtype), dW.to(weight.dtype), None, None


def swiglu(hidden):
    """silu(gate) * up: (N, 2K) -> (N, K)."""
    gate, up = hidden.chunk(2, dim=-1)
    return F.silu(gate) * up


def fprop(x, weight, runs, layer):
    """x W^T of what is rounded already and weights that are not: (N, K) -> (N, O) float32."""
    if layer.on_tensor_cores(x.device):
        return tensor_cores.grouped_product(x, weight, runs, layer.receives)
    return grouped_linear(x, rounded_stack(weight, layer.recipe.weight), runs)


def gradients(dy, x, weight, runs, layer):
    """Dgrad and Wgrad: dy (N, O), x (N, K), weight (E, O, K) -> dx (N, K), dW (E, O, K) float32."""
    recipe, kind, real = layer.recipe, layer.recipe.backward, layer.on_tensor_cores(dy.device)
    dy_row = rounded(dy, recipe.gradient, kind, layer.returns)
    require_finite(dy_row, "gradient", layer)
    if real:
        dx = tensor_cores.grouped_product(dy_row, weight.mT, runs, layer.returns)
    else:
        stack = rounded_stack(weight, recipe.weight).mT.contiguous()   # (E, K, O)
        dx = grouped_linear(dy_row, stack, runs)                       # Dgrad
    dy = dy_row if layer.returns else dy         # of what came in FP8 there is nothing else
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
    spare = -O % tile[0]                         # so that no tile reaches into the next matrix
    flat = F.pad(at_least_float32(weight), (0, 0, 0, spare)).flatten(0, 1)
    return rounded(flat, tile).unflatten(0, (E, -1))[:, :O]


def require_finite(x, what, layer):
    """FloatingPointError that names the layer; on a GPU the answer would have to be waited for."""
    if reads_are_free(x.device) and not x.isfinite().all():
        raise FloatingPointError(f"the {what} of {layer.name} holds what is no finite number")
