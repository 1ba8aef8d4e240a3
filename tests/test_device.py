"""device.py, the only file that decides on device and precision, on simulated machines."""

import ast
from pathlib import Path

import pytest
import torch

from minidsv3 import device
from minidsv3.command import UserError
from minidsv3.device import (
    choose_device,
    choose_precision,
    has_fast_bf16,
    loading_dtype,
    of_process,
    short_float,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def machine(monkeypatch):
    """Simulate a machine: machine(cuda=2, mps=False)."""
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
    """Oracle: the error names the device and the choices."""
    machine(cuda=2, mps=True)
    with pytest.raises(ValueError) as caught:
        choose_device(name)
    assert repr(name) in str(caught.value) and "choose auto, cpu, cuda or mps" in str(caught.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7", "mps", "cpu:1", "mps:1"])
def test_absent_devices_are_refused(machine, name):
    """On a machine without accelerators the error has the name and the remedy."""
    machine()
    with pytest.raises(ValueError) as caught:
        choose_device(name)
    assert repr(name) in str(caught.value) and "choose auto or cpu" in str(caught.value)


@pytest.mark.parametrize("name, cuda, mps", [("mps", 0, True), ("cuda", 2, False)])
def test_several_processes_need_a_way_to_exchange_tensors(machine, monkeypatch, name, cuda, mps):
    """torch has none between Apple GPUs, nor, on Windows, between CUDA ones."""
    machine(cuda, mps)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(UserError, match=f"exchange tensors on {name} here; add --device cpu.$"):
        of_process(choose_device(), 0)
    assert of_process(torch.device("cpu"), 1) == torch.device("cpu")


def test_bf16_only_where_it_is_fast(monkeypatch):
    """Oracle: a simulated processor with bfloat16 instructions, and one without."""
    cpu = torch.device("cpu")
    for avx512, amx in [(False, False), (True, False), (False, True)]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        fast = avx512 or amx
        assert has_fast_bf16(cpu) == fast
        assert choose_precision("auto", cpu) == (torch.bfloat16 if fast else torch.float32)
    assert not has_fast_bf16(torch.device("mps"))


def test_precision_by_name():
    """Oracle: the dtype of each name; the error for an unknown name lists all names."""
    cpu = torch.device("cpu")
    assert choose_precision("fp8", cpu) == choose_precision("auto", cpu)
    assert choose_precision("fp32", cpu) == torch.float32
    assert choose_precision("bf16", cpu) == torch.bfloat16
    with pytest.raises(ValueError, match="'fp4' is unknown; choose auto, fp32, bf16, fp8"):
        choose_precision("fp4", cpu)


def test_a_device_without_eight_bit_floats_is_refused(monkeypatch):
    """On a Mac, where torch raises TypeError, the error says what to do instead."""
    def refuse(*size, dtype, device):
        raise TypeError("Trying to convert Float8_e4m3fn to the MPS backend")

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(ValueError, match="no 8-bit floats on mps; add --device cpu"):
        choose_precision("fp8", torch.device("mps"))


def test_loading_keeps_what_the_machine_computes_fast(monkeypatch):
    """Oracle: processors with and without bfloat16 instructions; wider dtypes are always kept."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for fast in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        assert short_float(cpu) == (torch.bfloat16 if fast else torch.float32)
        assert loading_dtype(torch.bfloat16, cpu) == (torch.bfloat16 if fast else torch.float32)
        for wide in (torch.float32, torch.float64):
            assert loading_dtype(wide, cpu) == wide


def test_a_disturbed_product_is_told_by_its_best(monkeypatch):
    """Oracle: a simulated clock: 9 s for the first product, not counted; then 3, 1 and 3 s."""
    ticks = iter([0, 9, 10, 13, 20, 21, 30, 33])
    monkeypatch.setattr(device, "clock", lambda place: next(ticks))
    assert device.disturbance(torch.device("cpu"), size=4, times=3) == 3


# ---- no other file knows the machine ----

# Comparisons of a dtype that concern correct numbers or file formats, not speed.
RIGHTS = {
    "model/layers.py:at_least_float32": "a float64 model stays float64",
    "model/moe.py:_apply": "the bias stays float32",
}
FORMATS = ("hf/", "fp8/")                        # folders whose subject is number formats
DTYPES = ("torch.bfloat16", "torch.float16", "torch.float32", "torch.float64")


def guesses(source):
    """[(function, line)] that compare a device's type or a dtype, or ask a tensor where it is."""
    found, tree = [], ast.parse(source)
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Compare):
                names = {ast.unparse(part) for side in (node.left, *node.comparators)
                         for part in ast.walk(side) if isinstance(part, ast.Attribute)}
                if any(name.endswith(("device.type", ".dtype", *DTYPES)) for name in names):
                    found.append((function.name, node.lineno))
            elif isinstance(node, ast.Attribute) and node.attr in ("is_cuda", "is_cpu", "is_mps"):
                found.append((function.name, node.lineno))
    return found


def test_no_other_file_guesses_what_is_fast():
    """Oracle: the sources, parsed; allowed exceptions are listed above with their reasons."""
    package, complaints = ROOT / "minidsv3", []
    files = [path for path in package.rglob("*.py") if path != package / "device.py"]
    for path in [*files, ROOT / "train_tiny.py", ROOT / "generate.py"]:
        name = path.relative_to(package).as_posix() if package in path.parents else path.name
        complaints += [f"{name}:{line} in {function}"
                       for function, line in guesses(path.read_text(encoding="utf-8"))
                       if f"{name}:{function}" not in RIGHTS and not name.startswith(FORMATS)]
    assert not complaints, "ask a function of device.py instead: " + ", ".join(complaints)


@pytest.mark.parametrize("line", [
    'x.device.type == "cpu"', "x.dtype == torch.bfloat16", "x.is_cuda", 'device.type in ("cuda",)',
    "torch.float32 != kind", "x.dtype in (torch.float16, torch.bfloat16)"])
def test_a_guess_is_noticed(line):
    """Oracle: six guesses written by hand, and a line that is not a guess."""
    assert guesses(f"def f(x):\n    return 1 if {line} else 2\n") == [("f", 2)]
    assert guesses("def f(x):\n    return x.dtype, len(x.shape) == 2\n") == []
