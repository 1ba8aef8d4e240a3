"""A child process on a processor without bfloat16 instructions: trains, evaluates, generates.

    python without_bfloat16.py FOLDER PRECISION ARGUMENTS...     arguments of train_tiny.py
    -> a last line of JSON: {phase: {dtype: number of products}}
"""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import generate  # noqa: E402
import train_tiny  # noqa: E402
from minidsv3 import hf  # noqa: E402
from minidsv3.measure import evaluate  # noqa: E402
from tests.machines.emulation import Products, no_bfloat16_instructions  # noqa: E402


def main(folder, precision, arguments):
    """Every phase under its own Products -> what each counted."""
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
    with no_bfloat16_instructions():
        print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])))
