"""README's commands, paths and counts are those of today's code."""

import re
from pathlib import Path

import pytest

import generate
import train_tiny

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [command for command in re.findall(r"python (train_tiny|generate)\.py([^`\n]*)", README)
            if "--help" not in command[1]]


@pytest.mark.parametrize("script, arguments", COMMANDS)
def test_a_command_is_understood(script, arguments):
    """Oracle: the script's own parser, which ends the process on an unknown option."""
    words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', arguments)]
    {"train_tiny": train_tiny, "generate": generate}[script].parse_arguments(words)


def test_every_path_exists():
    """Pictures, links and files named in code marks."""
    paths = re.findall(r"\]\(([^)#:]+)\)", README)
    paths += re.findall(r"`((?:minidsv3|benchmarks|tests|checkpoints|notebooks)/[\w./]*)", README)
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_the_map_counts_lines_truly():
    """Within a tenth: enough for a reader, and a file that grew is noticed."""
    rows = re.findall(r"^\| `([\w/]+\.py)` \|.*\| (\d+) \|$", README, flags=re.M)
    assert len(rows) > 15
    for path, count in rows:
        lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        assert abs(lines - int(count)) <= max(5, lines / 10), path


def test_the_lines_of_the_model_are_counted_exactly():
    """Both places that state them."""
    files = (ROOT / "minidsv3" / "model").glob("*.py")
    total = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    stated = re.findall(r"(\d+) lines (?:of model code|together)", README)
    assert stated == [str(total)] * 2


def test_every_claim_names_a_test_that_exists():
    """The table claim -> test."""
    rows = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", README)
    assert len(rows) > 15
    for path, name in rows:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), name
