"""Each run of rows times its own matrix of a stack: what all routed experts of a layer compute.

    rows (N, I) sorted by matrix, weight (E, O, I), rows per matrix (E,) -> (N, O)

On some devices torch has this as one call (`device.groups_products`); elsewhere it is a loop over
the runs, whose lengths must be known on the host. The alternative, one batch of runs padded to the
longest, needs that length on the host too and multiplies more rows: 40 % more at a MaxVio of 0.4.
So the loop should be at least as fast; it was never measured on such a device.
"""

import torch
import torch.nn.functional as F

from ..device import groups_products

grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm       # its older name


class Runs:
    """How sorted rows are divided among the matrices: counts (E,) of each; a count may be 0.

    The forms that products need are made once and serve all products of a layer.
    """

    def __init__(self, counts):
        self.counts, self._ends, self._sizes = counts, None, None

    @property
    def ends(self):
        """Where each run ends, for the grouped product: (E,) int32."""
        if self._ends is None:
            self._ends = self.counts.cumsum(0).int()
        return self._ends

    @property
    def sizes(self):
        """The counts on the host, for a loop; on an accelerator this is a layer's only read."""
        if self._sizes is None:
            self._sizes = self.counts.tolist()
        return self._sizes


def grouped_linear(rows, weight, runs):
    """Rows (N, I) sorted by matrix, weight (E, O, I), their Runs -> (N, O)."""
    weight = weight.to(rows.dtype)
    if groups_products(weight):
        return grouped_mm(rows, weight.transpose(1, 2), offs=runs.ends)
    parts = rows.split(runs.sizes)
    return torch.cat([part @ matrix.T for part, matrix in zip(parts, weight, strict=True)])


def keep_out_of_graphs():
    """Exclude `grouped_linear` from torch.compile, which supports this call in bfloat16 only.

    Call it before torch.compile. A decorator would load the compiler in every program, compiled or
    not, which takes 2 s.
    """
    global grouped_linear
    grouped_linear = torch.compiler.disable(grouped_linear)


def grouped_swiglu(rows, gate_up_proj, down_proj, runs):
    """SwiGLU of every expert on its own rows.

    rows (M, C) sorted by expert, gate_up_proj (E, 2F, C), down_proj (E, C, F), Runs -> (M, C).
    """
    gate, up = grouped_linear(rows, gate_up_proj, runs).chunk(2, dim=-1)    # (M, F) each
    return grouped_linear(F.silu(gate) * up, down_proj, runs)


def assign_slots(experts, load, multiple=1):
    """Give every copy of a token a row, expert by expert.

    experts (N*K,), load (E,) -> slots (N*K,), counts (E,): rows of each expert, rounded up to the
    multiple. Example: experts 1 0 1, load 1 2, multiple 2 -> slots 2 0 3, counts 2 2; row 1 is
    padding.
    """
    counts = (load + multiple - 1) // multiple * multiple
    shift = (counts.cumsum(0) - counts) - (load.cumsum(0) - load)      # (E,)  padding before it
    order = experts.argsort(stable=True)                               # (N*K,)
    slots = torch.empty_like(order)
    slots[order] = torch.arange(len(order), device=order.device) + shift[experts[order]]
    return slots, counts
