"""Linear layers whose three products see eight bits (report, section 3.3; appendix B).

    Fprop   y  = x W^T       x in tiles 1 x 128 along its channels     W in blocks 128 x 128
    Dgrad   dx = dy W        dy in tiles 1 x 128 along its channels    the same W
    Wgrad   dW = dy^T x      dy and x in tiles 128 x 1, along the tokens

A tile runs along the dimension that is summed over, so that its scale can be taken out of a partial
sum; that is why Wgrad needs tiles of its own. x is kept for it in FP8, a byte a number, and tiled
anew. All is simulated: numbers are rounded to the format and multiplied in float32, which equals
the sum, tile by tile, of FP8 products times their two scales. Weights stay float32 masters, and
their gradients are float32. What limited sums would add is in `accumulate.py`.

Embedding, head, gate, norms and the attention itself stay as they are, and so does eh_proj, as in
the released checkpoint. What feeds the linear after attention is kept in E5M6, twelve bits, with
scales that are powers of two, since the backward pass of attention needs it too.
"""

from typing import NamedTuple

import torch

from ..model.layers import Linear, at_least_float32
from ..model.moe import Experts, Router, grouped_linear
from .quantize import BLOCK, E5M6, TILE, dequantize, quantize

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


def convert(model, recipe="deepseek-v3"):
    """Let the matrices of attention, FFN and experts compute in simulated FP8; the same model.

    Parameters, their names and the optimiser's hold on them stay. Raises ValueError for an unknown
    recipe.
    """
    if recipe not in RECIPES:
        raise ValueError(f"FP8 recipe {recipe!r} is unknown; choose one of {', '.join(RECIPES)}.")
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            module.__class__ = FP8Experts
        elif (isinstance(module, Linear) and not isinstance(module, Router)
              and not name.endswith(("lm_head", "eh_proj"))):
            module.__class__ = FP8Linear
            module.keep = E5M6 if name.endswith("o_proj") else E4M3
        else:
            continue
        module.recipe = RECIPES[recipe]
    return model


def rounded(x, tile, dtype=E4M3):
    """A matrix as FP8 with one scale a tile leaves it: (R, C) -> (R, C) float32."""
    tile = tile or tuple(x.shape)
    return dequantize(*quantize(x, tile, dtype), tile)


class FP8Linear(Linear):
    """A Linear of which `convert` changed the class; recipe and keep are set there."""

    def forward(self, x):
        y = FP8Product.apply(x.flatten(0, -2), self.weight, self.recipe, self.keep)
        return y.unflatten(0, x.shape[:-1])                            # (..., out)


class FP8Product(torch.autograd.Function):
    """y = x W^T and its two gradients: x (N, K), W (O, K) -> (N, O) in the dtype of x."""

    @staticmethod
    def forward(ctx, x, weight, recipe, keep):
        ctx.recipe, ctx.tile = recipe, recipe.activation or tuple(x.shape)
        kept = quantize(x, ctx.tile, keep, power_of_two=keep is E5M6)
        operand = dequantize(*kept, ctx.tile) if keep is E4M3 else rounded(x, recipe.activation)
        ctx.save_for_backward(*kept, weight)
        return (operand @ rounded(weight, recipe.weight).T).to(x.dtype)        # Fprop

    @staticmethod
    def backward(ctx, dy):
        codes, scale, weight = ctx.saved_tensors
        recipe, back = ctx.recipe, ctx.recipe.backward
        dx = rounded(dy, recipe.gradient, back) @ rounded(weight, recipe.weight)   # Dgrad
        x = rounded(dequantize(codes, scale, ctx.tile), recipe.column)         # retiled
        dW = rounded(dy, recipe.column, back).T @ x                            # Wgrad
        return dx.to(dy.dtype), dW.to(weight.dtype), None, None


class FP8Experts(Experts):
    """The same for stacked experts: each its own matrix, and its own tokens in Wgrad."""

    def forward(self, x, weights, experts):
        """One path, however few tokens there are."""
        return self.in_groups(x, weights, experts)

    def product(self, rows, weight, counts):
        """rows (N, K) sorted by expert, weight (E, O, K), counts (E,) -> (N, O)."""
        return FP8GroupedProduct.apply(rows, weight, counts, self.recipe)


class FP8GroupedProduct(torch.autograd.Function):
    """FP8Product for every run of rows and its own matrix."""

    @staticmethod
    def forward(ctx, rows, weight, counts, recipe):
        ctx.recipe, ctx.tile = recipe, recipe.activation or tuple(rows.shape)
        kept = quantize(rows, ctx.tile)
        ctx.save_for_backward(*kept, weight, counts)
        stack = rounded_stack(weight, recipe.weight)                   # (E, O, K)
        return grouped_linear(dequantize(*kept, ctx.tile), stack, counts).to(rows.dtype)

    @staticmethod
    def backward(ctx, dy):
        codes, scale, weight, counts = ctx.saved_tensors
        recipe, back = ctx.recipe, ctx.recipe.backward
        stack = rounded_stack(weight, recipe.weight).mT.contiguous()   # (E, K, O)
        dx = grouped_linear(rounded(dy, recipe.gradient, back), stack, counts)
        rows = dequantize(codes, scale, ctx.tile)
        dW = torch.zeros_like(weight, dtype=torch.float32)
        sizes = counts.tolist()
        for expert, (x, g) in enumerate(zip(rows.split(sizes), dy.split(sizes))):
            if len(x):
                dW[expert] = rounded(g, recipe.column, back).T @ rounded(x, recipe.column)
        return dx.to(dy.dtype), dW.to(weight.dtype), None, None


def rounded_stack(weight, tile):
    """Every matrix of a stack in tiles of its own: (E, O, K) -> (E, O, K) float32."""
    E, O, K = weight.shape
    if tile is None:
        return torch.stack([rounded(matrix, None) for matrix in weight])
    spare = -O % tile[0]                         # so that no tile reaches into the next matrix
    flat = torch.nn.functional.pad(at_least_float32(weight), (0, 0, 0, spare)).flatten(0, 1)
    return rounded(flat, tile).unflatten(0, (E, -1))[:, :O]
