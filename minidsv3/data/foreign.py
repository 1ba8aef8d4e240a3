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

from ..command import UserError, notice
from ..files import first_line
from ..hf import read_json
from .tokenizer import (
    BYTE_OF,
    FIM_BEGIN,
    FIM_END,
    FIM_HOLE,
    Tokenizer,
    from_visible,
    longest_text,
    well_formed,
    write_json,
)

UTF8 = [*range(0xC0), *range(0xC2, 0xF5)]        # the bytes that occur in texts


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
    if config.end_ids and tokenizer.eos_id not in config.end_ids:
        say_ends_differ(path, config, tokenizer.eos_id)
    return tokenizer


def say_ends_differ(path, config, eos):
    """Say in a notice that config.json names another end token than the tokenizer."""
    notice(f"{path.with_name('config.json')}: eos_token_id={config.eos_token_id} is not the end "
           f"token of the tokenizer, {eos}; texts end as config.json says.")


class ForeignTokenizer:
    """The `tokenizer.json` of another project with the interface of `Tokenizer`.

    A prompt may contain special tokens, as chat prompts do. A corpus may not: where its text spells
    one, that stays text. Prompts begin with BOS if config.json names one, because the released
    model was trained that way, unless the tokenizer says otherwise. Special tokens, and ids that
    the tokenizer lacks, have no bytes.
    """

    def __init__(self, path, config):
        self.path, self.vocab_size, self.bos_id = Path(path), config.vocab_size, config.bos_token_id
        try:
            content = settled(json.loads(self.path.read_text(encoding="utf-8")))
            self.for_prompts = tokenizers.Tokenizer.from_str(json.dumps(content))
            if not is_byte_level(content, self.for_prompts):
                raise ValueError("it is not byte-level BPE")
            settings = settings_beside(self.path)
            named = self.for_prompts.token_to_id(named_eos(settings) or "")
            self.ends = config.end_ids or (() if named is None else (named,))
            marks = self.fim_begin_id, self.fim_hole_id, self.fim_end_id = [
                self.for_prompts.token_to_id(mark) for mark in (FIM_BEGIN, FIM_HOLE, FIM_END)]
            self.added = self.for_prompts.get_added_tokens_decoder()   # {id: AddedToken}
            self.special = {number for number, token in self.added.items() if token.special}
            # Some files have these in the vocabulary alone, where texts may reach them by merges.
            # A single character is a byte, for a config.json that names a wrong token.
            self.special |= {number for number in (self.bos_id, *self.ends, *marks)
                             if number is not None
                             and len(self.for_prompts.id_to_token(number) or "") > 1}
            self.for_texts = without_special(content, self.special)
            token_of = ordinary_tokens(self.for_prompts, {*self.added, *self.special})
        except Exception as error:               # the library raises bare Exceptions
            raise UserError(f"{path} cannot be used ({first_line(error)}); need byte-level BPE as "
                            "in DeepSeek's checkpoints or those of train_tiny.py.") from None
        spelt = {number: text_of(self.for_prompts.id_to_token(number))
                 for number in self.special - self.added.keys()}
        spelt |= {number: token.content.encode() for number, token in self.added.items()}
        # If a whole word is a special token, text can reach it without its mark being looked for.
        self.spelling = {number: [token_of[bytes([byte])] for byte in spelt[number]]
                         for number in self.special}
        token_bytes = {number: data for data, number in token_of.items()}
        token_bytes |= spelt | dict.fromkeys(self.special, b"")
        if max(token_bytes) >= config.vocab_size:
            raise UserError(f"{path} has token {max(token_bytes)}, but config.json says "
                            f"vocab_size={config.vocab_size}; they belong to different models.")
        self.token_bytes = [token_bytes.get(number, b"") for number in range(config.vocab_size)]
        if without_bos(settings) and self.bos_id not in self.for_prompts.encode("").ids:
            self.bos_id = None
        if named is not None and named not in self.ends:
            say_ends_differ(self.path, config, named)

    @property
    def eos_id(self):
        """The token between the texts of a corpus. Raises UserError if there is none."""
        if not self.ends:
            raise UserError(f"{self.path} and config.json name no token that ends a text; give "
                            "eos_token_id in config.json.")
        return self.ends[0]

    @property
    def start_id(self):
        """The token that begins an empty text: BOS or, without it, EOS. UserError without both."""
        return self.eos_id if self.bos_id is None else self.bos_id

    def encode(self, text):
        """Text of a corpus -> list of ids, without BOS and without any special token."""
        return self.spelt(self.for_texts.encode(well_formed(text), add_special_tokens=False).ids)

    def spelt(self, ids):
        """Ids in which special tokens are replaced by the bytes of their names."""
        if self.special.isdisjoint(ids):
            return ids
        return [part for token in ids for part in self.spelling.get(token, [token])]

    def encode_prompt(self, text):
        """The ids of a text that a model is to continue, BOS first; it may hold special tokens."""
        bos = [] if self.bos_id is None else [self.bos_id]
        return bos + self.for_prompts.encode(well_formed(text), add_special_tokens=False).ids

    def uncut(self, text):
        """How many characters of a prompt reach to the end of its last added token."""
        encoding = self.for_prompts.encode(well_formed(text), add_special_tokens=False)
        return max((end for token, (_, end) in zip(encoding.ids, encoding.offsets)
                    if token in self.added), default=0)

    def encode_array(self, text):
        """`encode` for long texts -> int32 array of ids."""
        return np.array(self.encode(text), dtype=np.int32)

    def decode_bytes(self, ids):
        """Ids -> the exact bytes; special tokens give none."""
        return b"".join(self.token_bytes[token] for token in ids)

    def decode(self, ids):
        """Ids -> text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, folder, window=None):
        """Copy the files that this tokenizer was read from into another folder.

        window: the trained window [tokens] of the model there.
        """
        folder, beside = Path(folder), self.path.with_name("tokenizer_config.json")
        if folder.resolve() != self.path.parent.resolve():
            shutil.copyfile(self.path, folder / "tokenizer.json")
            if beside.is_file():
                write_json(folder / beside.name, read_json(beside) | longest_text(window))


def settled(content):
    """A tokenizer.json without what belongs to single calls: truncation, padding, dropout."""
    return content | {"truncation": None, "padding": None,
                      "model": content["model"] | {"dropout": None}}


def is_byte_level(content, tokenizer):
    """Whether a tokenizer.json is byte-level BPE; without a decoder, its first step decides."""
    step = content.get("decoder") or content.get("pre_tokenizer")
    return isinstance(tokenizer.model, tokenizers.models.BPE) and "ByteLevel" in json.dumps(step)


def text_of(token):
    """The bytes of a token of the vocabulary, or of its name if that is not in GPT-2's alphabet."""
    return from_visible(token) if BYTE_OF.keys() >= set(token) else token.encode()


def ordinary_tokens(tokenizer, others):
    """{bytes: id} of all tokens but the others (ids). Raises ValueError if a byte has none.

    A token with a character beyond GPT-2's alphabet stands for no bytes.
    """
    token_of = {from_visible(token): number
                for token, number in tokenizer.get_vocab(with_added_tokens=False).items()
                if number not in others and BYTE_OF.keys() >= set(token)}
    if lost := [byte for byte in UTF8 if bytes([byte]) not in token_of]:
        raise ValueError(f"it has no token for {len(lost)} of the bytes that texts are made of, "
                         f"{lost[0]} among them")
    return token_of


def without_special(content, special):
    """The tokenizer of these contents that reads the names of special tokens (ids) as text.

    Other added tokens leave the spaces around them: the tokens of a text must give it back.
    """
    added = [token | {"special": token["special"] or token["id"] in special, "lstrip": False,
                      "rstrip": False}
             for token in content.get("added_tokens") or []]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content | {"added_tokens": added}))
    tokenizer.encode_special_tokens = True       # in the library's words: as if they were not
    return tokenizer


def settings_beside(path):
    """The tokenizer_config.json beside a tokenizer.json; empty if there is none."""
    beside = path.with_name("tokenizer_config.json")
    return read_json(beside) if beside.is_file() else {}


def named_eos(settings):
    """The text of eos_token in a tokenizer_config.json; None if it names none."""
    token = settings.get("eos_token")
    return token.get("content") if isinstance(token, dict) else token


def without_bos(settings):
    """Whether a tokenizer_config.json leaves it to tokenizer.json to put BOS in front of a text.

    It may say so, or be of one of our models, which never saw BOS. transformers drops
    add_bos_token when it writes such a file again, and keeps the other key, which only ours have.
    """
    return settings.get("add_bos_token") is False or settings.get("split_special_tokens") is True
