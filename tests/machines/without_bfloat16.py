"""A child process that emulates a processor without bfloat16: trains, evaluates, generates.

    python -m tests.machines.without_bfloat16 FOLDER PRECISION ARGUMENTS...  as of train_tiny.py
    -> a last line of JSON: {phase: {dtype: number of products}}
"""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

import generate
import train_tiny
from minidsv3 import hf
from minidsv3.measure import evaluate, plots
from tests.machines.emulation import Products, no_bfloat16_instructions


def main(folder, precision, arguments):
    """Run every phase with its own Products -> {phase: counts}."""
    arguments = [*arguments, "--precision", precision]
    text, counted = folder / "bfloat16", {}
    phases = {
        "muon": lambda: train_tiny.main([*arguments, "--out", str(folder / "muon")]),
        "adamw": lambda: train_tiny.main([*arguments, "--optimizer", "adamw",
                                          "--out", str(folder / "adamw")]),
        "evaluation": lambda: evaluate.main([str(text), "--samples", "1", "--length", "4",
                                             "--window", "32"]),
        "generation": lambda: generate.main(["--model", str(text), "--prompt", "def f",
                                             "--max-new-tokens", "12", "--speculative", "1"]),
    }
    for name, work in phases.items():
        with Products() as products, contextlib.redirect_stdout(io.StringIO()):
            assert work() == 0, name
        counted[name] = products.dtypes
        if name == "muon":                       # a folder in bfloat16, as released ones are
            hf.save(hf.load(folder / "muon").bfloat16(), text)
            for file in (folder / "muon").glob("tokenizer*.json"):
                shutil.copyfile(file, text / file.name)
            shutil.copyfile(folder / "muon" / "train.json", text / "train.json")
    return counted


if __name__ == "__main__":
    plots.png = lambda fig, dpi: b""             # pictures have no products, and take long
    with no_bfloat16_instructions():
        print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])))
