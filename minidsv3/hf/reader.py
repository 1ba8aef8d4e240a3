"""A checkpoint folder as a table of tensors: all headers first, contents one tensor at a time.

Weights are in `model.safetensors`, or in shards that `model.safetensors.index.json` lists. Opening
reads only headers, so it is fast at any size. A tensor is read when it is asked for.
"""

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..command import UserError
from ..files import check_name, first_line
from ..fp8 import BLOCK, dequantize
from .config import read_json
from .names import FP8, SCALE

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pth", ".pt", ".ckpt")


class Checkpoint:
    """Names, shapes and dtypes (in safetensors' names) of all tensors in a folder.

    Raises FileNotFoundError or UserError with one line that names the file.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        check_name(self.folder)
        self.path = self.handle = None           # the file that is open at the moment
        self.file_of, self.shapes, self.dtypes = {}, {}, {}
        for file, names in self.listed().items():
            handle = self.open(self.folder / file)
            inside = handle.keys()
            if missing := set(names or ()) - set(inside):
                raise UserError(f"{self.folder / INDEX} says that tensor {min(missing)} is in "
                                f"{file}, but it is not; copy the checkpoint again.")
            for name in names or inside:
                header = handle.get_slice(name)
                self.file_of[name] = self.folder / file
                self.shapes[name], self.dtypes[name] = tuple(header.get_shape()), header.get_dtype()

    def listed(self):
        """{weight file: names in the index, or None for all}; pickled files are never opened."""
        if (self.folder / WHOLE).is_file():
            return {WHOLE: None}
        index = self.folder / INDEX
        if index.is_file():
            files = {}
            for name, file in weight_map(index).items():
                files.setdefault(file, []).append(name)
            return files
        pickled = [file for file in sorted(self.folder.glob("*"))
                   if file.name != "state.pt" and file.suffix in PICKLED]
        if pickled:
            raise UserError(f"{pickled[0]} is pickled, and unpickling can run any code; "
                            "convert it to model.safetensors first.")
        raise FileNotFoundError(f"{self.folder / WHOLE} is missing; a checkpoint holds config.json "
                                f"and {WHOLE}, or shards and {INDEX}.")

    def open(self, path):
        """A handle of one file. Only one is open at a time, since what it read stays in memory."""
        if path != self.path:
            self.path = self.handle = None
            try:
                self.handle = safe_open(path, framework="pt")
            except FileNotFoundError:
                raise FileNotFoundError(f"{path} is missing, though {INDEX} lists it; copy the "
                                        "checkpoint again.") from None
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} cannot be read as safetensors ({first_line(error)}); "
                                "copy it again.") from None
            self.path = path
        return self.handle

    @property
    def nbytes(self):
        """Size of all files [bytes]."""
        return sum(file.stat().st_size for file in set(self.file_of.values()))

    def raw(self, name):
        """A tensor as it is stored."""
        return self.open(self.file_of[name]).get_tensor(name)

    def read(self, name):
        """A tensor; FP8 matrices are dequantised to float32."""
        tensor = self.raw(name)
        if self.dtypes[name] != FP8:
            return tensor
        return dequantize(tensor, self.raw(name + SCALE), BLOCK)

    def in_file_order(self, names):
        """Names sorted so that each file is opened once."""
        return sorted(names, key=lambda name: (self.file_of[name], name))


def weight_map(index):
    """{tensor: file} of an index; files must lie beside it."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{index} has no weight_map; copy it again.")
    for name, file in listed.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise UserError(f"{index} puts tensor {name} into {file!r}; need the name of a "
                            ".safetensors file in the same folder.")
    return listed
