"""Files that are written whole or not at all, and the names of those that a run writes."""

from contextlib import contextmanager, suppress

from .command import UserError

STATE_FILE, SHARED = "state.pt", "state"         # of one process, of several
LOCK = "run.lock"                                # while a run goes on
EXPORTS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
           "ema.safetensors", "train.json", "metrics.jsonl", "summary.json", "loss.png",
           "expert_load.png", "sample.txt")


def holds_a_run(folder):
    """Whether a run, a study, a map of needles or a checkpoint is in this very folder."""
    def has(*names):
        return all((folder / name).is_file() for name in names)

    return (has(STATE_FILE) or has(LOCK) or has("study.json") or has("needle.json")
            or has("tokenizer.json", "train.json") or has("tokenizer.json", "config.json")
            or has("config.json") and any(folder.glob("*.safetensors")))


def check_name(folder):
    """UserError if the name of a folder is not UTF-8, which safetensors needs."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise UserError(f"folder {str(folder)!r}: the name is not UTF-8, and safetensors reads no "
                        "file there; rename it, or name another folder.") from None


def refuse_files(path, option="--out"):
    """UserError if a file stands where this folder or one above it should be, or for its name."""
    check_name(path.absolute())
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"{option} {path}: {place} is a file; name a folder.")


def make_folder(path, option="--out"):
    """Make a folder and those above it. OSError of one line if that cannot be.

    Call it before long work whose results belong there. option: which names the folder.
    """
    refuse_files(path, option)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make folder {path} ({first_line(error)}); name another with "
                      f"{option}.") from error


@contextmanager
def replacing(path):
    """Give a temporary path to write to; it replaces `path` in one move, or is removed on an error.

    An OSError of the writer, such as a full disk, becomes one line that names the file.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(f"cannot write {path} ({first_line(error)}); what was there is kept: "
                          "make room, or choose a folder that may be written.") from error
        raise


def write_text(path, text):
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def first_line(error):
    """The first line of an error's text, or its type's name if it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0]
