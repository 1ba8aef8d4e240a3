"""Each run of rows times its own matrix, by torch's grouped product and by a loop."""

import pytest
import torch

from minidsv3.device import groups_products
from minidsv3.kernels import grouped
from minidsv3.kernels.grouped import Runs, grouped_linear

COUNTS = [5, 0, 3, 1]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("in_one_call", [True, False])
def test_each_run_meets_its_own_matrix(monkeypatch, dtype, tolerance, in_one_call):
    """Oracle: a product per row, with the index of its matrix written out; values and gradients."""
    if in_one_call and dtype == torch.float64:
        assert not groups_products(torch.zeros(4, 8, 12, dtype=dtype))
        return
    monkeypatch.setattr(grouped, "groups_products", lambda weight: in_one_call)
    torch.manual_seed(0)
    rows = torch.randn(9, 12, dtype=dtype, requires_grad=True)
    weight = torch.randn(4, 8, 12, dtype=dtype, requires_grad=True)
    y = grouped_linear(rows, weight, Runs(torch.tensor(COUNTS)))
    index = [e for e, count in enumerate(COUNTS) for _ in range(count)]
    expected = torch.stack([weight[e] @ row for e, row in zip(index, rows)])
    assert (y - expected).abs().max() <= tolerance * expected.abs().max()
    probe = torch.randn(9, 8, dtype=dtype)
    ours, theirs = (torch.autograd.grad((each * probe).sum(), (rows, weight))
                    for each in (y, expected))
    for mine, reference in zip(ours, theirs, strict=True):
        assert (mine - reference).abs().max() <= tolerance * 10 * reference.abs().max()


def test_lengths_are_read_once_for_all_products(monkeypatch):
    """Oracle: the number of reads; three products need the same list."""
    class Counts:
        reads = 0

        def tolist(self):
            Counts.reads += 1
            return COUNTS

    monkeypatch.setattr(grouped, "groups_products", lambda weight: False)
    runs = Runs(Counts())
    for _ in range(3):
        grouped_linear(torch.ones(9, 3), torch.ones(4, 2, 3), runs)
    assert Counts.reads == 1


@pytest.mark.parametrize("capability, dtype, expected", [
    ((9, 0), torch.bfloat16, True), ((10, 0), torch.bfloat16, True),
    ((8, 9), torch.bfloat16, False), ((9, 0), torch.float32, False)])
def test_older_gpus_and_float32_on_gpus_are_left_to_the_loop(monkeypatch, capability, dtype,
                                                             expected):
    """Oracle: the compute capabilities for which torch has a grouped kernel."""
    class Weight:                                          # the part of a CUDA tensor that is used
        device, shape = torch.device("cuda"), (4, 16, 32)

        def element_size(self):
            return dtype.itemsize

    Weight.dtype = dtype
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert groups_products(Weight()) == expected


def test_rows_of_odd_bytes_are_left_to_the_loop():
    """Oracle: torch's grouped product needs a multiple of 16 bytes, and 3 float32 are 12."""
    assert groups_products(torch.zeros(2, 4, 8)) and not groups_products(torch.zeros(2, 3, 8))
    assert not groups_products(torch.zeros(2, 8, 3))
