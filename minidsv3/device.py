"""The one place that decides where a run computes and in which precision."""

import os

import torch

# On Linux: large tensors in large pages. torch returns their memory after every step, and to get it
# back in pages of 4 KiB costs a training step on the CPU 5 to 10 %.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def choose_device(name="auto"):
    """"auto" takes cuda, mps, cpu in that order. Raises ValueError for what is not here."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
            "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in here if here[kind]))
    kind, colon, index = name.partition(":")
    if kind not in here or (colon and not index.isdecimal()):
        raise ValueError(f"device {name!r} is unknown; choose auto, cpu, cuda or mps.")
    count = torch.cuda.device_count() if kind == "cuda" else int(here[kind])
    if int(index or 0) >= count:
        raise ValueError(f"device {name!r} is not on this machine; choose auto or cpu.")
    return torch.device(kind, int(index)) if colon else torch.device(kind)


def choose_precision(name, device):
    """The dtype of activations: "fp32", "bf16", or "auto", bf16 where its products are fast.

    "fp8" is a matter of products; what flows between them has the dtype of "auto". Raises
    ValueError for an unknown name, and for "fp8" where torch has no such numbers.
    """
    if name == "fp8":
        try:
            torch.zeros(1, dtype=torch.float8_e4m3fn, device=device)
        except (TypeError, RuntimeError):
            raise ValueError(f"precision 'fp8': torch has no 8-bit floats on {device}; add "
                             "--device cpu.") from None
    known = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if name in ("auto", "fp8"):
        return torch.bfloat16 if has_fast_bf16(device) else torch.float32
    if name not in known:
        raise ValueError(f"precision {name!r} is unknown; choose auto, {', '.join(known)}, fp8.")
    return known[name]


def has_fast_bf16(device):
    """Whether matrix products in bfloat16 have hardware of their own here."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":                     # without these instructions bf16 is emulated, slow
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
