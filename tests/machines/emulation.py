"""Machines that we do not have, emulated by dispatch modes that see every operation of torch.

    Products       counts matrix products and fused attention by dtype
    Accelerator    uses `meta` as a device without float64, whose values cannot be read
"""

from collections import Counter
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "_grouped_mm", "linear", "matmul", "addbmm", "mv",
            "dot", "einsum")
READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")


def short_name(function):
    """aten._grouped_mm.default -> _grouped_mm"""
    return function.overloadpacket.__name__


class Products(TorchDispatchMode):
    """Counts matrix products by the dtype of their operands, in forward and backward passes."""

    def __init__(self):
        super().__init__()
        self.dtypes = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = short_name(function)
        if name.rstrip("_") in PRODUCTS or "scaled_dot_product" in name:
            first = next(leaf for leaf in tree_leaves(args) if torch.is_tensor(leaf))
            self.dtypes[str(first.dtype).removeprefix("torch.")] += 1
        return function(*args, **(kwargs or {}))


class Accelerator(TorchDispatchMode):
    """`meta` as an accelerator: making float64 there is an error, and reads are counted.

    A read gets ones, because meta holds no values. With answer=False a read raises, as on meta.
    """

    def __init__(self, answer=True):
        super().__init__()
        self.answer, self.reads = answer, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, short_name(function)
        source = next((leaf for leaf in tree_leaves(args) if torch.is_tensor(leaf)), None)
        if source is not None and source.is_meta:
            target = tree_leaves((args, kwargs))
            to_cpu = name in ("_to_copy", "to") and torch.device("cpu") in target
            if to_cpu or name in READS:
                self.reads += 1
                if not self.answer:
                    raise AssertionError(f"{name} reads from the device")
                dtype = kwargs.get("dtype") or source.dtype
                ones = torch.ones(source.shape, dtype=dtype)
                return ones if to_cpu else ones.flatten()[0].item()
        result = function(*args, **kwargs)
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and leaf.is_meta and leaf.dtype in (torch.float64,
                                                                        torch.complex128):
                raise AssertionError(f"{name} makes {leaf.dtype} on the device")
        return result


@contextmanager
def no_bfloat16_instructions():
    """Make torch report that the processor has none; environment variables do not change that."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    before = {name: getattr(torch.cpu, name) for name in names}
    try:
        for name in names:
            setattr(torch.cpu, name, lambda: False)
        yield
    finally:
        for name, function in before.items():
            setattr(torch.cpu, name, function)
