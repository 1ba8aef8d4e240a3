"""train_tiny.py under torchrun: the same run, on any number of processes, and after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train_tiny
from minidsv3 import hf

pytestmark = [pytest.mark.multi,
              pytest.mark.skipif(sys.platform != "linux", reason="looks for workers in /proc")]
ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("loss", "mtp_loss", "balance_loss", "bits_per_byte", "tokens")


@pytest.fixture(scope="module")
def arguments(miniature):
    """Ten steps of a miniature run whose batches divide by 4, and a sample of few tokens."""
    return [*miniature, "--steps", "10", "--set", "batch_size=8", "--threads", "1",
            "--set", "max_position_embeddings=40"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, arguments):
    """The folder of the same run in one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    assert train_tiny.main([*arguments, "--out", str(folder)]) == 0
    return folder


def torchrun(processes, *arguments):
    """Start train_tiny.py on some processes -> the running command."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", str(processes), "train_tiny.py", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, env={**os.environ, "OMP_WAIT_POLICY": "passive"})


def workers(command):
    """The process numbers of the workers that torchrun has started."""
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    return [int(child) for child in children if "train_tiny.py" in Path(
        f"/proc/{child}/cmdline").read_text()]


def lines(folder):
    """The lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_same_run(folder, alone, rounding):
    """All lines and the final weights are those of the run in one process, up to rounding.

    A token that goes to another expert changes MaxVio by more than the means over all tokens.
    """
    for ours, theirs in zip(lines(folder), lines(alone), strict=True):
        assert ours["max_vio"] == pytest.approx(theirs["max_vio"], abs=4 * rounding)
        assert [ours[name] for name in FIGURES] == pytest.approx(
            [theirs[name] for name in FIGURES], rel=rounding, abs=rounding)
    tokens = torch.randint(300, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = hf.load(folder)(tokens), hf.load(alone)(tokens)
    assert (ours - theirs).abs().max() < 10 * rounding * theirs.abs().max()
    figures = [hf.read_json(each / "summary.json") for each in (folder, alone)]
    for name in ("val_bits_per_byte", "val_bits_per_byte_ema"):
        assert figures[0][name] == pytest.approx(figures[1][name], rel=rounding)


@pytest.fixture(scope="module")
def killed(tmp_path_factory, arguments):
    """A run of 4 processes, one of which was killed; its folder and what the command said."""
    folder = tmp_path_factory.mktemp("runs") / "killed"
    command = torchrun(4, *arguments, "--out", folder, "--parallel", "ep=2,fsdp=2")
    deadline = time.monotonic() + 120
    while not list((folder / "state").glob("step-0000000[24]/.metadata")):
        assert time.monotonic() < deadline and command.poll() is None, command.stdout.read()
        time.sleep(0.05)
    os.kill(workers(command)[2], signal.SIGKILL)
    begin = time.monotonic()
    said, _ = command.communicate(timeout=60)
    return folder, said, command.returncode, time.monotonic() - begin


def test_a_killed_worker_ends_the_whole_run(killed):
    """Within 60 s, with an exit code, and a line that says what to do."""
    folder, said, code, _ = killed
    assert code != 0 and "Signal 9 (SIGKILL)" in said
    assert 2 <= len(lines(folder)) < 10 and not (folder / "summary.json").exists()


@pytest.mark.parametrize("processes", [2, 1])
def test_it_goes_on_from_its_last_checkpoint(
        killed, alone, arguments, tmp_path, processes, rounding):
    """Oracle: the run in one process, step by step; on fewer processes than before."""
    folder = tmp_path / "run"
    shutil.copytree(killed[0], folder)
    command = torchrun(processes, *arguments, "--out", folder, "--resume")
    said, _ = command.communicate(timeout=120)
    assert command.returncode == 0, said
    assert_same_run(folder, alone, rounding)
    assert "Ctrl-C saves, --resume goes on after step" in said


def cut(file):
    """Leave half of a file."""
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])


@pytest.mark.parametrize("name, damage", [
    ("__0_0.distcp", cut), ("run.json", Path.unlink)])
def test_a_damaged_checkpoint_is_one_line(killed, arguments, tmp_path, name, damage):
    """Of all processes, only the first says it; nothing is removed."""
    folder = tmp_path / "run"
    shutil.copytree(killed[0], folder)
    checkpoint = max((folder / "state").glob("step-*/.metadata")).parent
    damage(checkpoint / name)
    command = torchrun(2, *arguments, "--out", folder, "--resume")
    said, _ = command.communicate(timeout=120)
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert command.returncode and len(errors) == 1 and "start anew with --overwrite" in errors[0]
    assert checkpoint.exists() and "rank0]: Traceback" not in said


def test_fp8_runs_to_its_end(arguments, tmp_path):
    """Its summary also counts the bytes kept, of shards."""
    folder = tmp_path / "run"
    command = torchrun(2, *arguments, "--steps", "2", "--precision", "fp8", "--optimizer", "adamw",
                       "--parallel", "ep=2", "--out", folder)
    said, _ = command.communicate(timeout=120)
    assert command.returncode == 0, said
    assert hf.read_json(folder / "summary.json")["memory"]["kept"] > 0


def test_a_single_process_says_how_to_go_on(killed, arguments, capsys):
    assert train_tiny.main([*arguments, "--out", str(killed[0]), "--resume"]) == 2
    assert "torchrun --nproc-per-node 1 train_tiny.py" in capsys.readouterr().err
    assert train_tiny.main([*arguments, "--out", str(killed[0])]) == 2
    assert "holds an unfinished run; --resume to go on" in capsys.readouterr().err
