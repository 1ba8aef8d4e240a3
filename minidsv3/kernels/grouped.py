"""Each run of rows times its own matrix of a stack: what all routed experts of a layer compute.

    rows (N, I) sorted by matrix, weight (E, O, I), so many rows for each -> (N, O)

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
        """The same numbers on the host, for a loop: on an accelerator the one read of a layer."""
        if self._sizes is None:
            self._sizes = self.counts.tolist()
        return self._sizes


@torch.compiler.disable                          # torch.compile knows this call in bfloat16 only
def grouped_linear(rows, weight, runs):
    """Rows (N, I) sorted by matrix, weight (E, O, I), their Runs -> (N, O)."""
    weight = weight.to(rows.dtype)
    if groups_products(weight):
        return grouped_mm(rows, weight.transpose(1, 2), offs=runs.ends)
    parts = rows.split(runs.sizes)
    return torch.cat([part @ matrix.T for part, matrix in zip(parts, weight, strict=True)])
