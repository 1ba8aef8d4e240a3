"""On a processor without bfloat16 instructions, as in most laptops, nothing may be emulated."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2", "CUDA_VISIBLE_DEVICES": ""}         # and without a GPU


def products(folder, miniature, precision):
    """{phase: {dtype: number of products}} of a child process that emulates such a processor."""
    arguments = [word for pair in zip(miniature[::2], miniature[1::2])
                 if pair[0] not in ("--precision", "--steps") for word in pair]
    done = subprocess.run(
        [sys.executable, "-m", "tests.machines.without_bfloat16", str(folder), precision,
         *arguments, "--steps", "3"], cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, **AVX2}, capture_output=True, text=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_no_product_is_in_bfloat16(tmp_path, miniature):
    """Oracle: the dtype of every product that torch is asked for: three steps with each optimiser,
    evaluation, and generation with drafts from a folder stored in bfloat16.
    """
    counted = products(tmp_path, miniature, "auto")
    assert set(counted) == {"muon", "adamw", "evaluation", "generation"}
    for phase, dtypes in counted.items():
        assert set(dtypes) == {"float32"} and dtypes["float32"] > 50, (phase, dtypes)


def test_the_watch_sees_bfloat16_where_it_is_asked_for(tmp_path, miniature):
    """Oracle: the same processes with --precision bf16, which must show in training."""
    counted = products(tmp_path, miniature, "bf16")
    assert all(counted[phase].get("bfloat16", 0) > 50 for phase in ("muon", "adamw"))
