"""The tokenizer of any checkpoint, ours or another.

`tokenizer.py` reads what train_tiny.py wrote. The `tokenizer.json` of other checkpoints is read by
the `tokenizers` library, and only if it is byte-level BPE like DeepSeek's. Then each token has
fixed bytes, which streaming and bits per byte need.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import tokenizers

from ..command import UserError
from ..files import first_line
from .tokenizer import FIM_BEGIN, FIM_END, FIM_HOLE, Tokenizer, from_visible, well_formed


def read_tokenizer(folder, config):
    """The tokenizer in a checkpoint folder, for a model with this ModelConfig.

    Raises FileNotFoundError or UserError, one line each, if it is missing or cannot be used.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        others = [file.name for file in sorted(Path(folder).glob("tokeniz*")) +
                  sorted(Path(folder).glob("*.model"))]
        raise FileNotFoundError(f"{path} is missing; only tokenizer.json is read"
                                + (f", not {others[0]}" if others else "")
                                + "; copy it from the checkpoint.")
    try:
        tokenizer = Tokenizer.load(folder)
    except UserError:
        return ForeignTokenizer(path, config)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(f"{path} has {tokenizer.vocab_size} tokens, but config.json says "
                        f"vocab_size={config.vocab_size}; they belong to different models.")
    return tokenizer


class ForeignTokenizer:
    """The `tokenizer.json` of another project with the interface of `Tokenizer`.

    Prompts begin with BOS, because the released model was trained that way. Ids that the model has
    and the tokenizer lacks have no bytes.
    """

    def __init__(self, path, config):
        self.path, self.vocab_size = Path(path), config.vocab_size
        try:
            self.wrapped = tokenizers.Tokenizer.from_file(str(path))
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(
                    content["decoder"]):
                raise ValueError("it is not byte-level BPE")
            token_bytes = {added["id"]: b"" if added["special"] else added["content"].encode()
                           for added in content["added_tokens"]}
            for token, number in content["model"]["vocab"].items():
                if number not in token_bytes:
                    token_bytes[number] = from_visible(token)
        except Exception as error:               # the library raises bare Exceptions
            raise UserError(f"{path} cannot be used ({first_line(error)}); need byte-level BPE as "
                            "in DeepSeek's checkpoints or those of train_tiny.py.") from None
        if max(token_bytes) >= config.vocab_size:
            raise UserError(f"{path} has token {max(token_bytes)}, but config.json says "
                            f"vocab_size={config.vocab_size}; they belong to different models.")
        self.token_bytes = [token_bytes.get(number, b"") for number in range(config.vocab_size)]
        self.bos_id = self.start_id = config.bos_token_id
        self.eos_id = config.eos_token_id
        self.fim_begin_id, self.fim_hole_id, self.fim_end_id = (
            self.wrapped.token_to_id(mark) for mark in (FIM_BEGIN, FIM_HOLE, FIM_END))

    def encode(self, text):
        """Text -> list of ids, without BOS."""
        return self.wrapped.encode(well_formed(text), add_special_tokens=False).ids

    def encode_prompt(self, text):
        """The ids of a text that a model is to continue, BOS first."""
        return [self.bos_id, *self.encode(text)]

    def encode_array(self, text):
        """`encode` for long texts -> int32 array of ids."""
        return np.array(self.encode(text), dtype=np.int32)

    def decode_bytes(self, ids):
        """Ids -> the exact bytes; special tokens give none."""
        return b"".join(self.token_bytes[token] for token in ids)

    def decode(self, ids):
        """Ids -> text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, folder):
        """Copy the files that this tokenizer was read from into another folder."""
        for name in ("tokenizer.json", "tokenizer_config.json"):
            source = self.path.with_name(name)
            if source.is_file() and source.parent.resolve() != Path(folder).resolve():
                shutil.copyfile(source, Path(folder) / name)
