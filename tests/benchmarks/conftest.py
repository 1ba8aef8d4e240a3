"""Benchmarks are scripts that import each other, so their folder is added to Python's path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
