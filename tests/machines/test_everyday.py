"""The two commands of README in real surroundings: odd paths, another locale, another folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MINIATURE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(tmp_path):
    """A copy of the program under a path with a space and an accent."""
    folder = tmp_path / "mes modèles" / "mini dsv3"
    folder.mkdir(parents=True)
    for name in ("minidsv3", "checkpoints"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train_tiny.py", "generate.py"):
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def python(script, *arguments, folder, locale):
    """Run a script in another folder and locale -> its output."""
    environment = {**os.environ, "LC_ALL": locale, "LANG": locale, "PYTHONUTF8": "0",
                   "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, str(script), *arguments], cwd=folder, env=environment,
                          capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode("utf-8")


@pytest.mark.parametrize("locale", ["C"])
def test_the_commands_of_readme(copy, tmp_path, locale):
    """Oracle: the files and texts that README promises, after three steps, in the current folder.

    The model is a small one, because the surroundings are the subject.

    In the locale C, without Python's UTF-8 mode, a file opened without an encoding is ASCII.
    """
    where = tmp_path / "ein anderer Ordner"
    where.mkdir()
    small = [word for name, value in MINIATURE.items() for word in ("--set", f"{name}={value}")]
    said = python(copy / "train_tiny.py", "--steps", "3", "--data", str(copy / "minidsv3" / "hf"),
                  *small, folder=where, locale=locale)     # a small text, which is soon evaluated
    run = Path("runs") / "tiny"
    assert f"wrote {run}" in said and "validation: " in said
    assert (where / run / "summary.json").is_file() and not (copy / "runs").exists()
    text = python(copy / "generate.py", "--prompt", "def ", folder=where, locale=locale)
    assert text.startswith("def ") and len(text) > 50
