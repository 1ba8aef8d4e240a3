"""Files that are written whole or not at all, so that no crash leaves half a checkpoint."""

from contextlib import contextmanager, suppress

import safetensors.torch


@contextmanager
def replacing(path):
    """A temporary path to write: it takes the place of `path` in one move, or after an error goes.

    Raises OSError with one line, whatever the writer said when the disk was full.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError | RuntimeError):  # the latter is torch's word for a full disk
            raise OSError(f"cannot write {path} ({first_line(error)}); what was there is kept: "
                          "make room, or choose a folder that may be written.") from error
        raise


def write_text(path, text):
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_tensors(path, tensors):
    """Write a safetensors file whole or not at all."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        # Not save_file: it writes under a random name, which a kill would leave behind.
        temporary.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))


def first_line(error):
    """An error's text without what follows its first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
