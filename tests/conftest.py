"""One hypothesis profile for all tests, and one miniature run that several tests read.

torch and the package are imported where they are used: the process of `pytest -n 2` that only hands
out the tests reads this file too, and would wait for them for 3 s.
"""

import os
import signal

import pytest
from hypothesis import settings

# The same examples on every machine, and no time limit.
settings.register_profile("minidsv3", derandomize=True, deadline=None)
settings.load_profile("minidsv3")

if "PYTEST_XDIST_WORKER" in os.environ:         # pytest -n 2: each process has a core to itself
    import torch
    torch.set_num_threads(1)

MINIATURE = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
    "num_attention_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 24, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16, "max_position_embeddings": 256,
    "window": 32, "batch_size": 6, "batch_start": 4, "micro_batch": 6, "eval_every": 3,
}


@pytest.fixture(autouse=True)
def notices_begin_anew():
    """A notice is printed once in a process; here once in a test, whatever ran before it."""
    from minidsv3 import command
    command.notice.cache_clear()


@pytest.fixture(autouse=True)
def no_signal_is_ignored():
    """The usual handlers, even where a shell has started the suite in the background, or nohup.

    There Ctrl-C is ignored, or the end of the terminal, and a run leaves that alone. What a test
    starts inherits it.
    """
    usual = {signal.SIGINT: signal.default_int_handler}
    if hasattr(signal, "SIGHUP"):
        usual[signal.SIGHUP] = signal.SIG_DFL
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def small_text(tmp_path_factory):
    """A text file of 25 kB that a model of a few thousand weights can learn something from."""
    path = tmp_path_factory.mktemp("text") / "small.txt"
    lines = (f"def f{n}(x):\n    return x + {n * 7919 % 1000}  # {'é€😀'[n % 3]}\n\n"
             for n in range(600))
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return path


@pytest.fixture(scope="session")
def miniature(small_text):
    """Arguments of train_tiny.py for six steps of a miniature model."""
    arguments = ["--data", str(small_text), "--device", "cpu", "--precision", "fp32",
                 "--steps", "6", "--save-every", "2"]
    for name, value in MINIATURE.items():
        arguments += ["--set", f"{name}={value}"]
    return arguments


@pytest.fixture(scope="session")
def rounding():
    """How far two forms of one run may drift apart in tens of steps: a share of their losses.

    Where Muon computes in bfloat16, another order of a sum may change its steps by parts of 0.4 %.
    """
    import torch

    from minidsv3.device import has_fast_bf16
    return 3e-2 if has_fast_bf16(torch.device("cpu")) else 1e-4


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, miniature):
    """The folder of a finished miniature run; to be read only."""
    import train_tiny
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train_tiny.main([*miniature, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def short_end(finished_run):
    """Runs in this process end with a sample of three tokens and with pictures that are empty.

    Sample and pictures take five sixths of the time of a miniature run. `finished_run` has them in
    full, since it is made before.
    """
    from minidsv3.infer.text import complete
    from minidsv3.measure import plots
    from minidsv3.train import report

    def three_tokens(model, tokenizer, prompt, length, **settings):
        return complete(model, tokenizer, prompt, min(length, 3), **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "png", lambda fig, dpi: b"\x89PNG")
        patch.setattr(report, "complete", three_tokens)
        yield
