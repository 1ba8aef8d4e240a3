"""Peak memory of loading a sharded checkpoint, beside the size of the model.

    python benchmarks/load.py            1 GB in shards of 250 MB, made in a temporary folder

The checkpoint is loaded in a separate process. The peak is the highest resident memory of that
process, minus what it had after importing torch. Linux and macOS only. This script itself does not
import torch, because a child's peak begins at the memory of its parent.
"""

import argparse
import json
import subprocess
import sys
import tempfile

MAKE = """
import sys, torch
from minidsv3 import DeepSeekV3, ModelConfig, hf
config = ModelConfig.preset("small").replace(hidden_size=1024, num_hidden_layers=13,
                                             moe_intermediate_size=384, num_nextn_predict_layers=0)
model = DeepSeekV3(config).bfloat16()
hf.save(model, sys.argv[1] + "/bfloat16", max_shard_size=250_000_000)
hf.save(model, sys.argv[1] + "/fp8", fp8=True, max_shard_size=250_000_000)
"""
LOAD = """
import json, pathlib, resource, sys, time
from minidsv3 import hf
unit = 1 if sys.platform == "darwin" else 1024
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
before, begin = peak(), time.perf_counter()
model = hf.load(sys.argv[1])
files = [file.stat().st_size for file in pathlib.Path(sys.argv[1]).glob("*.safetensors")]
print(json.dumps({"files": len(files), "bytes": sum(files), "largest": max(files),
                  "model": sum(t.numel() * t.element_size() for t in model.state_dict().values()),
                  "peak": peak() - before, "seconds": time.perf_counter() - begin}))
"""


def python(source, *arguments):
    """Run Python source in a separate process -> what it printed."""
    return subprocess.run([sys.executable, "-c", source, *arguments], check=True,
                          stdout=subprocess.PIPE, text=True).stdout


def main(arguments=None):
    """Make both checkpoints, load them and print the figures."""
    argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        python(MAKE, folder)
        for form in ("bfloat16", "fp8"):
            f = json.loads(python(LOAD, f"{folder}/{form}"))
            rest = f["peak"] - f["model"] - f["largest"]
            print(f"{form}: {f['files']} files of {f['bytes'] / 1e6:,.0f} MB, largest "
                  f"{f['largest'] / 1e6:,.0f} MB; model {f['model'] / 1e6:,.0f} MB, peak "
                  f"{f['peak'] / 1e6:,.0f} MB: model + one shard + {rest / 1e6:,.0f} MB; "
                  f"{f['seconds']:.1f} s")


if __name__ == "__main__":
    main()
