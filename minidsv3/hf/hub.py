"""Find a checkpoint: a local folder, or a name on the Hugging Face hub, which is downloaded."""

import re
from pathlib import Path

from ..command import command_line, script
from ..files import first_line

WANTED = ["*.json", "*.safetensors"]             # never pickled weights, never code
SMALL = ["*.json"]                               # what describes a model, without its weights

HERE = Path(__file__).resolve().parents[2]       # the repository, with the shipped checkpoint


def find(name=None):
    """The folder of the named checkpoint; without a name, runs/tiny or the shipped checkpoint.

    Raises FileNotFoundError if there is none.
    """
    if name is not None:
        return locate(name)
    for folder in (Path("runs/tiny"), HERE / "checkpoints/tiny"):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    make = command_line("python", script("train_tiny.py"))
    raise FileNotFoundError(f"no model in runs/tiny yet; make one with: {make}")


def locate(folder_or_name, wanted=WANTED):
    """The folder of a checkpoint. "owner/name" is downloaded first, unless such a folder exists.

    wanted: patterns of the files to download. Raises FileNotFoundError with one line if there is no
    such folder and no such name on the hub.
    """
    folder = Path(folder_or_name)
    if folder.is_dir() and folder_or_name != "":  # that would be the working directory
        return folder
    owner = re.fullmatch(r"([\w.-]+)/[\w.-]+", str(folder_or_name))
    if not owner or Path(owner.group(1)).exists() or owner.group(1) in (".", ".."):
        raise FileNotFoundError(f"no folder {folder_or_name or repr('')}; name one with "
                                "config.json and model.safetensors, or a checkpoint on the hub as "
                                "owner/name.")
    from huggingface_hub import snapshot_download  # slow to import and rarely needed
    try:
        return Path(snapshot_download(str(folder_or_name), allow_patterns=wanted))
    except Exception as error:                   # any kind of network error
        raise not_given(folder_or_name, error) from None


def not_given(name, error):
    """The error of one line for a name that the hub does not give."""
    return FileNotFoundError(f"no folder {name}, and the Hugging Face hub does not give it "
                             f"({first_line(error).rstrip('.')}); with no network, name a folder "
                             "that holds config.json and model.safetensors.")


class HubHeaders:
    """Names, shapes and dtypes of a checkpoint on the hub, without its weights.

    The headers are read by range requests. Raises FileNotFoundError with one line.
    """

    def __init__(self, name):
        from huggingface_hub import get_safetensors_metadata  # slow to import and rarely needed
        try:
            files = get_safetensors_metadata(str(name)).files_metadata
        except Exception as error:               # any kind of network error
            raise not_given(name, error) from None
        self.file_of, self.shapes, self.dtypes, self.nbytes = {}, {}, {}, 0
        for file, header in files.items():
            for tensor, about in header.tensors.items():
                self.file_of[tensor], self.dtypes[tensor] = file, about.dtype
                self.shapes[tensor] = tuple(about.shape)
                self.nbytes += about.data_offsets[1] - about.data_offsets[0]
