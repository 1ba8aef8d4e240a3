"""Text to token ids and back: byte-level BPE with the special tokens of the released model.

BPE starts from the 256 bytes and repeatedly joins the commonest adjacent pair into a new token, so
that no text is unknown and every text comes back byte for byte. Learning the merges is left to
`rustbpe`, applying them to `tiktoken`. Ids are laid out as

    0 .. 4                     BOS, EOS and the three FIM marks
    5 .. 260                   the bytes 0 .. 255
    261 .. vocab_size - 1      merges, in the order learned; what a small corpus could not
                               fill carries the released name for empty places

Merges never cross the borders drawn by `PATTERN`. `save` writes `tokenizer.json`, the format of
the released checkpoint, which `tokenizers` and `transformers` read with the same ids. Ordinary
text never yields a special token, not even text that spells one (the released tokenizer would
yield it): a corpus must not be able to forge the end of a document. DeepSeek's random splitting
of some tokens in training is left out.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import rustbpe
import tiktoken

from ..command import UserError
from ..files import write_text

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
FIM_BEGIN, FIM_HOLE, FIM_END = "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"
SPECIAL_TOKENS = (BOS, EOS, FIM_BEGIN, FIM_HOLE, FIM_END)          # index = id
FIRST_BYTE = len(SPECIAL_TOKENS)
SMALLEST_VOCABULARY = FIRST_BYTE + 256

# A piece is a word with all signs, spaces and line ends in front of it ("):\n    return", "(self"),
# or up to three digits, or signs that no word follows. Like DeepSeek's it lets punctuation and
# line breaks share a token, and goes further: on held-out library text 2,048 tokens hold 3.37
# bytes each, 3.08 if a word takes only one sign along, 2.92 with GPT-4's pattern. Everything
# beyond ASCII counts as a letter, which needs no Unicode tables, so that three regex engines with
# three Unicode versions agree; no look-ahead, so that the time grows with the text, not its square.
_LETTER = r"A-Za-z\x{80}-\x{10FFFF}"
PATTERN = rf"[^0-9{_LETTER}]*[{_LETTER}]+|[0-9]{{1,3}}|[^0-9{_LETTER}]+"

# Put before a prompt: words stand in one token with the line ends before them, so that a bare "def"
# is a rare token, and what follows blank lines is the common one.
OPENING = "\n\n\n"


class Tokenizer:
    """Byte-level BPE; `merged` holds the bytes of each token from id FIRST_BYTE on.

    token_bytes[i]: the bytes that token i stands for, empty for special tokens and empty places.
    Their lengths add up to the length of the encoded text: the measure behind bits per byte.
    """

    bos_id, eos_id, fim_begin_id, fim_hole_id, fim_end_id = range(FIRST_BYTE)
    start_id = eos_id                            # what a new document follows

    def __init__(self, merged: list[bytes], vocab_size: int, pattern: str = PATTERN):
        self.vocab_size = vocab_size
        self.pattern = pattern
        self.token_bytes = [b""] * FIRST_BYTE + list(merged)
        self.token_bytes += [b""] * (vocab_size - len(self.token_bytes))
        self.ranks = {token: rank for rank, token in enumerate(merged, start=FIRST_BYTE)}
        self._encoding = tiktoken.Encoding("minidsv3", pat_str=pattern,
                                           mergeable_ranks=self.ranks, special_tokens={})

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn the merges from texts. The same texts in the same order give the same ids."""
        if vocab_size < SMALLEST_VOCABULARY:
            raise UserError(f"vocab_size={vocab_size} has no room for 256 bytes and {FIRST_BYTE} "
                            f"special tokens; choose at least {SMALLEST_VOCABULARY}")
        trainer = rustbpe.Tokenizer()
        trainer.train_from_iterator(iter(texts), vocab_size - FIRST_BYTE, pattern=PATTERN)
        merged = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
        # Through a dict: two merges may spell the same bytes, and one id is enough for them.
        return cls(list(dict.fromkeys(bytes(token) for token, _ in merged)), vocab_size)

    def encode(self, text: str) -> list[int]:
        """Text -> ids, without BOS. Lone surrogates, which are no characters, become U+FFFD."""
        return self._encoding.encode_ordinary(text)

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text that a model shall go on with."""
        return self.encode(OPENING + text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        return self._encoding.encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text; special tokens vanish, bytes that are no UTF-8 show as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Ids -> the exact bytes. Special tokens and empty places stand for none."""
        ids = [int(token) for token in ids]
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise UserError(f"token id {token} is outside the vocabulary; ids run from 0 to "
                                f"{self.vocab_size - 1}")
        return b"".join(self.token_bytes[token] for token in ids)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, as a released checkpoint has them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "tokenizer.json", self._as_json())
        _write_json(folder / "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS, "eos_token": EOS, "pad_token": EOS,
            "additional_special_tokens": [FIM_BEGIN, FIM_HOLE, FIM_END],
            "split_special_tokens": True,                # text that spells one of them stays text
            "add_bos_token": False, "add_eos_token": False,
            "clean_up_tokenization_spaces": False,       # else decoding would eat spaces
        })

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read what `save` wrote. UserError for a `tokenizer.json` of another construction."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; give a folder made by train_tiny.py")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["added_tokens"]:          # ours has none: spare others the long way
                raise ValueError
            vocabulary = content["model"]["vocab"]
            names = {*SPECIAL_TOKENS, *_empty_places(len(vocabulary))}
            merged = [from_visible(token) for token in sorted(vocabulary, key=vocabulary.get)
                      if token not in names]
            pattern = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
            tokenizer = cls(merged, len(vocabulary), pattern)
            understood = all(content[part] == mine for part, mine in tokenizer._as_json().items())
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            understood = False
        if not understood:
            raise UserError(f"{path} is not a tokenizer that minidsv3 wrote; read it with "
                            "transformers.AutoTokenizer, or give a folder of train_tiny.py")
        return tokenizer

    def _as_json(self) -> dict:
        """The tokenizer in the format of the `tokenizers` library.

        Special tokens stand in the vocabulary alone: under "added_tokens" the library would also
        look for their names in ordinary text.
        """
        learned = [_to_visible(token) for token in self.ranks]
        names = [*SPECIAL_TOKENS, *learned]
        names += _empty_places(self.vocab_size - len(names))
        split = {"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated",
                 "invert": False}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                      "use_regex": False}
        return {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": None,                       # no BOS is put in front
            "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False,
                      "ignore_merges": True,              # a piece that is a token is that token
                      "vocab": {name: rank for rank, name in enumerate(names)},
                      "merges": self._merges()},
        }

    def _merges(self) -> list[list[str]]:
        """Every way to put a token together from two others, in the order of the tokens.

        tiktoken joins any neighbours whose bytes form a token, whereas this format names the
        pairs; so it has to name all of them for the ids to agree.
        """
        return [[_to_visible(token[:cut]), _to_visible(token[cut:])]
                for token in self.ranks for cut in range(1, len(token))
                if token[:cut] in self.ranks and token[cut:] in self.ranks]


def _empty_places(count: int) -> list[str]:
    """The released model's names for ids that no token has."""
    return [f"<｜place▁holder▁no▁{number}｜>" for number in range(count)]


def _write_json(path: Path, content: dict) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    write_text(path, text)


def _visible_bytes() -> dict[int, str]:
    """GPT-2's alphabet: byte -> its Latin-1 character where that is printable, else another."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return ({byte: chr(byte) for byte in printable}
            | {byte: chr(256 + place) for place, byte in enumerate(others)})


_VISIBLE = _visible_bytes()
_BYTE = {character: byte for byte, character in _VISIBLE.items()}


def _to_visible(token: bytes) -> str:
    return "".join(_VISIBLE[byte] for byte in token)


def from_visible(token: str) -> bytes:
    """A token as GPT-2 spells it -> its bytes. KeyError for one that is not spelt so."""
    return bytes(_BYTE[character] for character in token)
