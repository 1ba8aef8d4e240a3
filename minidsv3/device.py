"""The one place that knows machines: where a run computes, in which precision, what is fast there.

Every other file asks a function of this one, and compares no device and no dtype to guess speed.
What a processor can do is asked of the processor, since a dtype that has no instructions of its own
is emulated: right, and up to fifty times slower.

On an accelerator a training step gives work to the device and waits for none of it; the figures are
read once, after the optimisers. There is one exception. Where torch has no kernel that multiplies a
stack of matrices by runs of rows (`groups_products`), the lengths of the runs are read, once in
each MoE layer and micro-batch, and serve all of its products. Simulated FP8 always reads them.
"""

import os
import statistics
import sys
import time

from .command import UserError

# Two settings that have to stand in the environment before torch is loaded; in a process that has
# loaded torch already, as a notebook may have, they change nothing.
# On Linux: large tensors in large pages. torch returns their memory after every step, and to get it
# back in pages of 4 KiB costs a training step on the CPU 5 to 10 %.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# On Linux: a thread of libgomp without work asks again and again for some before it goes to sleep.
# By default it asks so long that, beside another busy program, it takes the processor away from
# the very thread that it waits for. README has the figures.
if sys.platform == "linux" and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "5000"

BEGIN = time.perf_counter()                      # nearly that of the program: torch loads slowly

import torch  # noqa: E402 - only now

GROUPED = (torch.float32, torch.bfloat16, torch.float16)     # what torch's CPU product takes


def choose_device(name="auto"):
    """"auto" takes cuda, mps, cpu in that order. Raises UserError for what is not here."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
            "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in here if here[kind]))
    kind, colon, index = name.partition(":")
    if kind not in here or (colon and not index.isdecimal()):
        raise UserError(f"device {name!r} is unknown; choose auto, cpu, cuda or mps.")
    count = torch.cuda.device_count() if kind == "cuda" else int(here[kind])
    if int(index or 0) >= count:
        raise UserError(f"device {name!r} is not on this machine; choose auto or cpu.")
    return torch.device(kind, int(index)) if colon else torch.device(kind)


def choose_threads(count):
    """Let torch use so many CPU threads; None leaves its own choice. UserError out of range."""
    if count is None:
        return
    most = max(8, os.cpu_count() or 1)
    if not 1 <= count <= most:
        raise UserError(f"--threads {count} must be 1 to {most} on this machine; leave it out for "
                        "one thread per core.")
    torch.set_num_threads(count)


def choose_precision(name, device):
    """The dtype of activations: "fp32", "bf16", or "auto", bf16 where its products are fast.

    "fp8" is a matter of products; what flows between them has the dtype of "auto". Raises
    UserError for an unknown name, and for "fp8" where torch has no such numbers.
    """
    if name == "fp8":
        try:
            torch.zeros(1, dtype=torch.float8_e4m3fn, device=device)
        except (TypeError, RuntimeError):
            raise UserError(f"precision 'fp8': torch has no 8-bit floats on {device}; add "
                            "--device cpu.") from None
    known = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if name in ("auto", "fp8"):
        return short_float(device)
    if name not in known:
        raise UserError(f"precision {name!r} is unknown; choose auto, {', '.join(known)}, fp8.")
    return known[name]


# ---- what is fast here ----

@torch.compiler.assume_constant_result           # torch.compile cannot look into its answer
def has_fast_bf16(device):
    """Whether matrix products in bfloat16 have hardware of their own here."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":                     # without these instructions bf16 is emulated, slow
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def short_float(device):
    """The dtype for what bears eight bits of precision: bfloat16 where it is fast, else float32."""
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


def loading_dtype(stored, device):
    """The dtype in which weights stored as `stored` are held: that, or float32 where it is slow.

    bfloat16 is slow where it is emulated; so is float16 on processors without short products.
    """
    short = [torch.bfloat16] + [torch.float16] * (device.type == "cpu")
    return torch.float32 if stored in short and not has_fast_bf16(device) else stored


def explicit_attention_is_faster(q, keys):
    """Whether plain products beat torch's fused attention: q (B, H, T, D), so many keys.

    That is on a processor with bfloat16 instructions, and in short windows, whose scores stay in
    its cache: one layer of preset tiny, 8 x 4 heads and 256 tokens, forwards and backwards, takes
    6.5 ms where the fused kernel takes 19.6 (Zen 4). Without these instructions it takes 307 ms,
    and the fused kernel 93 (Zen 1).
    """
    return (q.device.type == "cpu" and q.dtype == torch.bfloat16 and keys <= 512
            and has_fast_bf16(q.device))


def groups_products(weight):
    """Whether torch multiplies runs of rows by a stack of matrices like this one in one call.

    It does on CPUs, and in bfloat16 on GPUs of compute capability 9.0 and later; older ones get a
    loop with a read of its own in each product. `meta` stands for an accelerator that can. Rows
    must be 16 bytes or a multiple of that.
    """
    if any(size * weight.element_size() % 16 for size in weight.shape[1:]):
        return False
    kind = weight.device.type
    if kind == "cpu":
        return weight.dtype in GROUPED
    if kind == "cuda" and torch.cuda.get_device_capability(weight.device) < (9, 0):
        return False
    return kind in ("cuda", "meta") and weight.dtype == torch.bfloat16


def row_multiple(x):
    """What an expert's number of rows is rounded up to, for tokens x (N, C).

    On CPUs a bfloat16 product compiles a kernel for each new number of rows, so the numbers must
    repeat to be fast; a few tokens are not worth it, and elsewhere any number will do.
    """
    return 64 if x.device.type == "cpu" and x.dtype == torch.bfloat16 and len(x) > 256 else 1


def reads_are_free(device):
    """Whether a value of a tensor can be read without waiting for the device."""
    return device.type == "cpu"


def has_fused_adamw(device):
    """Whether torch has AdamW as one kernel there."""
    return device.type in ("cpu", "cuda", "mps")


def has_scaled_products(device):
    """Whether the device may have FP8 products by tile, as Hopper GPUs do."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


# ---- using it ----

def send(tensor, device):
    """A CPU tensor on the device; on CUDA nobody waits for the copy.

    Elsewhere the copy must be over before the tensor may be freed.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def clock(device):
    """Seconds, read when the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def disturbance(device, size=512, times=150):
    """How much longer a product of matrices takes than it can: median over best, 1 if undisturbed.

    Beside another busy program the threads of one product wait for each other again and again, and
    some of so many products are undisturbed all the same.
    """
    a, b = torch.ones(2, size, size, device=device)
    seconds = []
    for _ in range(times + 1):
        begin = clock(device)
        a @ b
        seconds.append(clock(device) - begin)
    return statistics.median(seconds[1:]) / min(seconds[1:])
