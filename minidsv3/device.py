"""The only file that knows the machine: where a run computes, in which precision, what is fast.

Every other file asks a function of this one; none compares devices or dtypes to guess what is fast.
The processor itself is asked what it supports. A dtype for which it has no instructions is
emulated: the results are right, but the products are up to fifty times slower.

On an accelerator a training step only queues its work and waits for none of it. The figures are
read once, after the optimisers. There is one exception: a run of rows is all the rows of one
expert, and where torch has no kernel that multiplies every run by its own matrix
(`groups_products`), the lengths of the runs are read. This happens once per MoE layer and
micro-batch, for all of its products. Simulated FP8 always reads them.
"""

import os
import statistics
import sys
import time

from .command import UserError

# Two settings that must be in the environment before torch is imported. They have no effect in a
# process that has imported torch already, as a notebook may have.
# On Linux: put large tensors into large pages. torch frees their memory after every step, and
# getting it again in pages of 4 KiB takes 5 to 10 % of a training step on the CPU.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# On Linux: a thread of libgomp that waits for others keeps a processor busy before it sleeps. By
# default it does so for so long that, beside another busy program, it takes the processor from the
# very thread it waits for. docs/results.md has the figures.
if sys.platform == "linux" and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "5000"

BEGIN = time.perf_counter()                      # of the program, before torch's slow import

import torch  # noqa: E402 - after the settings

GROUPED = (torch.float32, torch.bfloat16, torch.float16)     # what torch's grouped CPU kernel takes


def choose_device(name="auto"):
    """The device of that name; "auto" takes the first available of cuda, mps and cpu.

    Raises UserError for an unknown name, and for a device that this machine does not have.
    """
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
    """Let torch use this number of CPU threads; None: its own choice. UserError out of range."""
    if count is None:
        return
    most = max(8, os.cpu_count() or 1)
    if not 1 <= count <= most:
        raise UserError(f"--threads {count} must be 1 to {most} on this machine; leave it out for "
                        "one thread per core.")
    torch.set_num_threads(count)


def choose_precision(name, device):
    """The dtype of activations for "fp32", "bf16", "auto" or "fp8".

    "auto" is bfloat16 where its matrix products are fast, else float32. "fp8" concerns the inside
    of matrix products; the activations between them have the dtype of "auto". Raises UserError for
    an unknown name, and for "fp8" where torch has no 8-bit floats.
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

def has_fast_bf16(device):
    """Whether the device has instructions for matrix products in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":                     # without these instructions it emulates bfloat16
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


# torch.compile cannot trace these queries, and takes their answer as it is. This is the mark of
# torch.compiler.assume_constant_result, which would load the compiler: 2 s for every program.
has_fast_bf16._dynamo_marked_constant = True


def short_float(device):
    """For results that need only eight bits of precision: bfloat16 where fast, else float32."""
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


def shortened(x):
    """x in the dtype of `short_float`; a float64 model stays float64 throughout."""
    return x if x.dtype == torch.float64 else x.to(short_float(x.device))


def loading_dtype(stored, device):
    """The dtype in which to hold weights stored as `stored`: the same, or float32 if that is slow.

    A device without bfloat16 instructions emulates bfloat16, which is slow; a CPU without them is
    slow in float16 too.
    """
    short = [torch.bfloat16] + [torch.float16] * (device.type == "cpu")
    return torch.float32 if stored in short and not has_fast_bf16(device) else stored


def explicit_attention_is_faster(q, keys):
    """Whether plain products beat torch's fused attention, for q (B, H, T, D) and S = keys.

    They do on a CPU with bfloat16 instructions if the window is short, because the scores then stay
    in its cache. One layer of preset tiny (8 sequences, 4 heads, 256 tokens), forwards and
    backwards, takes 6.5 ms with plain products and 19.6 ms with the fused kernel (Zen 4). Without
    these instructions it takes 307 ms and 93 ms (Zen 1).
    """
    return (q.device.type == "cpu" and q.dtype == torch.bfloat16 and keys <= 512
            and has_fast_bf16(q.device))


def groups_products(weight):
    """Whether torch has one call that multiplies each run of rows by its own matrix of `weight`.

    It does on CPUs, and in bfloat16 on GPUs of compute capability 9.0 and later. For older GPUs it
    has a loop that reads from the device in each product. `meta` stands for an accelerator that has
    the call. The length of a row in bytes must be a multiple of 16.
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
    """An expert's number of rows is rounded up to a multiple of this, for tokens x (N, C).

    On CPUs a bfloat16 product compiles a kernel for each new number of rows, so products are fast
    only if the numbers repeat. For few tokens rounding up costs more than it gains; other devices
    and dtypes do not need it.
    """
    return 64 if x.device.type == "cpu" and x.dtype == torch.bfloat16 and len(x) > 256 else 1


def reads_are_free(device):
    """Whether reading a value of a tensor needs no waiting for the device."""
    return device.type == "cpu"


def has_bags(x):
    """Whether torch weighs and adds rows of x, chosen by index, in one call with all gradients.

    CUDA has no gradient of the weights in bfloat16 (torch 2.11).
    """
    return x.device.type == "cpu"


def matrices_at_once(device):
    """How many small matrices a batched product takes at a time.

    On a CPU few, so that what one product makes is still in the cache for the next. In float32, 141
    matrices of 96 x 192 are orthogonalised in 169 ms in place of 191 (one thread, Zen 1). In
    bfloat16 they take half the room, and 160 of them 38 ms with 32 at a time, 45 with 8 (Zen 4).
    """
    if device.type != "cpu":
        return 2**16
    return 32 if has_fast_bf16(device) else 8


def has_fused_adamw(device):
    """Whether torch has AdamW as one kernel on this device."""
    return device.type in ("cpu", "cuda", "mps")


def has_scaled_products(device):
    """Whether the device may have FP8 products with a scale per tile, as Hopper GPUs have."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


# ---- using it ----

def of_process(device, index):
    """The device of the index-th process on this machine: on CUDA a GPU of its own.

    Raises UserError if there are fewer GPUs than processes, or if they could not exchange tensors.
    """
    if device.type == "cpu":
        return device
    if device.type != "cuda" or not torch.distributed.is_nccl_available():
        raise UserError(f"several processes cannot exchange tensors on {device} here; add "
                        "--device cpu.")
    if index >= torch.cuda.device_count():
        raise UserError(f"process {index} of this machine has no GPU: there are "
                        f"{torch.cuda.device_count()}; start as many processes, or add --device "
                        "cpu.")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def backends(device):
    """torch.distributed's backend for the processes of a run on such devices."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def send(tensor, device):
    """Copy a CPU tensor to the device; on CUDA the copy runs in the background.

    On other devices the copy is finished on return, because the tensor may be freed right after.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def local(tensor):
    """This process's part of a tensor that several processes share; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor):
    """A tensor that several processes share, gathered; any other as it is. All must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def clock(device):
    """The time in seconds, read after the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def disturbance(device, size=512, times=150):
    """How many times its shortest time a matrix product takes: median / best, 1 if undisturbed.

    Beside another busy program the threads of a product often wait for each other. Of many products
    a few are undisturbed even then, and the best of them shows what the machine can do.
    """
    a, b = torch.ones(2, size, size, device=device)
    seconds = []
    for _ in range(times + 1):
        begin = clock(device)
        a @ b
        seconds.append(clock(device) - begin)
    return statistics.median(seconds[1:]) / min(seconds[1:])
