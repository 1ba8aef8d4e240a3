"""The one place that decides device and precision; oracles: what a machine is said to have."""

import pytest
import torch

from minidsv3.device import choose_device, choose_precision, has_fast_bf16


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine: machine(cuda=2, mps=False)."""
    def pretend(cuda=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    return pretend


@pytest.mark.parametrize("cuda, mps, expected", [
    (1, False, "cuda"), (1, True, "cuda"), (0, True, "mps"), (0, False, "cpu")])
def test_auto_takes_the_fastest(machine, cuda, mps, expected):
    """Oracle: the order cuda, mps, cpu."""
    machine(cuda, mps)
    assert choose_device("auto") == choose_device() == torch.device(expected)


def test_a_device_may_carry_a_number(machine):
    """Oracle: torch's own devices."""
    machine(cuda=2, mps=True)
    for name in ("cpu", "cpu:0", "cuda", "cuda:0", "cuda:1", "mps", "mps:0"):
        assert choose_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cuda:1.5", "cuda:²",
                                  "cpu:", "xla:0", "CPU"])
def test_unknown_devices_are_refused(machine, name):
    """Oracle: the name and the choices."""
    machine(cuda=2, mps=True)
    with pytest.raises(ValueError) as caught:
        choose_device(name)
    assert repr(name) in str(caught.value) and "choose auto, cpu, cuda or mps" in str(caught.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7", "mps", "cpu:1", "mps:1"])
def test_absent_devices_are_refused(machine, name):
    """Oracle: a machine without any; the name and the remedy."""
    machine()
    with pytest.raises(ValueError) as caught:
        choose_device(name)
    assert repr(name) in str(caught.value) and "choose auto or cpu" in str(caught.value)


def test_bf16_only_where_it_is_fast(monkeypatch):
    """Oracle: a processor with the instructions and one without."""
    cpu = torch.device("cpu")
    for avx512, amx in [(False, False), (True, False), (False, True)]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        fast = avx512 or amx
        assert has_fast_bf16(cpu) == fast
        assert choose_precision("auto", cpu) == (torch.bfloat16 if fast else torch.float32)
    assert not has_fast_bf16(torch.device("mps"))


def test_precision_by_name():
    """Oracle: the two dtypes; an unknown name is answered with all names."""
    cpu = torch.device("cpu")
    assert choose_precision("fp8", cpu) == choose_precision("auto", cpu)
    assert choose_precision("fp32", cpu) == torch.float32
    assert choose_precision("bf16", cpu) == torch.bfloat16
    with pytest.raises(ValueError, match="'fp4' is unknown; choose auto, fp32, bf16, fp8"):
        choose_precision("fp4", cpu)


def test_a_device_without_eight_bit_floats_is_refused(monkeypatch):
    """Oracle: the line that a Mac's user would need; torch there raises TypeError."""
    def refuse(*size, dtype, device):
        raise TypeError("Trying to convert Float8_e4m3fn to the MPS backend")

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(ValueError, match="no 8-bit floats on mps; add --device cpu"):
        choose_precision("fp8", torch.device("mps"))
