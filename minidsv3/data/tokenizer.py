"""Text to token ids and back: byte-level BPE with the special tokens of the released model.

BPE starts from the 256 bytes and repeatedly joins the most frequent adjacent pair into a new token.
So every text can be encoded, and decoding returns it byte for byte. `rustbpe` learns the merges,
`tiktoken` applies them. The ids are

    0 .. 4                     BOS, EOS and the three FIM marks
    5 .. 260                   the bytes 0 .. 255
    261 .. vocab_size - 1      merges, in the order learned; if a small corpus has too few, the
                               ids left over are named as the released model names its empty ones

`PATTERN` first splits the text into pieces, and no token reaches across two of them. `save` writes
`tokenizer.json`, the format of the released checkpoint, which `tokenizers` and `transformers` read
with the same ids. Ordinary text never becomes a special token, even if it spells the name of one.
The released tokenizer would accept such text; here a corpus must not be able to fake the end of a
document. DeepSeek's random splitting of some tokens in training is left out.
"""

import json
import re
from pathlib import Path

import numpy as np
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
# or up to three digits, or signs that no word follows. As in DeepSeek's pattern, punctuation and
# line breaks may share a token; here a word may follow them in the same token. With 2,048 tokens,
# library text not trained on then has 3.37 bytes per token. It has 3.08 if a word takes only one
# sign with it, and 2.92 with GPT-4's pattern. Every character beyond ASCII counts as a letter: this
# needs no Unicode tables, so three regex engines with three Unicode versions agree. Without
# look-ahead, the time grows linearly with the text.
LETTER = r"A-Za-z\x{80}-\x{10FFFF}"
PATTERN = rf"[^0-9{LETTER}]*[{LETTER}]+|[0-9]{{1,3}}|[^0-9{LETTER}]+"

# Put in front of a prompt. A token often holds a word with the line ends before it, so "def" after
# blank lines is a common token, and "def" alone a rare one.
OPENING = "\n\n\n"


# What a broken file name or a broken console gives; of two that belong together Python makes one
# character.
UNPAIRED = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """Byte-level BPE; `merged` has the bytes of each token, from id FIRST_BYTE on.

    token_bytes[i] are the bytes of token i, empty for special tokens and for ids without a token.
    Over an encoded text their lengths add up to the length of the text, which bits per byte needs.
    """

    bos_id, eos_id, fim_begin_id, fim_hole_id, fim_end_id = range(FIRST_BYTE)
    start_id = eos_id                            # a new document follows the end of another

    def __init__(self, merged, vocab_size, pattern=PATTERN):
        self.vocab_size = vocab_size
        self.pattern = pattern
        self.token_bytes = [b""] * FIRST_BYTE + list(merged)
        self.token_bytes += [b""] * (vocab_size - len(self.token_bytes))
        self.ranks = {token: rank for rank, token in enumerate(merged, start=FIRST_BYTE)}
        self.encoding = tiktoken.Encoding("minidsv3", pat_str=pattern,
                                          mergeable_ranks=self.ranks, special_tokens={})

    @classmethod
    def train(cls, texts, vocab_size):
        """Learn the merges from texts. The same texts in the same order give the same ids.

        Raises UserError if the vocabulary is too small for all bytes and special tokens.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise UserError(f"vocab_size={vocab_size} has no room for 256 bytes and {FIRST_BYTE} "
                            f"special tokens; choose at least {SMALLEST_VOCABULARY}.")
        trainer = rustbpe.Tokenizer()
        trainer.train_from_iterator(iter(texts), vocab_size - FIRST_BYTE, pattern=PATTERN)
        merged = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
        # Two merges may give the same bytes; dict.fromkeys keeps the first, so they share an id.
        return cls(list(dict.fromkeys(bytes(token) for token, _ in merged)), vocab_size)

    def encode(self, text):
        """Text -> list of ids, without BOS.

        Lone surrogates, which Python strings may hold but UTF-8 cannot, become U+FFFD.
        """
        return self.encoding.encode_ordinary(text)

    def encode_prompt(self, text):
        """The ids of a text that a model is to continue."""
        return self.encode(OPENING + text)

    def encode_array(self, text):
        """`encode` for long texts -> int32 array of ids."""
        ids = self.encoding.encode_to_numpy(well_formed(text), disallowed_special=())
        return ids.astype(np.int32)

    def uncut(self, text):
        """How many characters of a prompt must stay together; here text never has added tokens."""
        return 0

    def decode(self, ids):
        """Ids -> text; special tokens give no text, bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids):
        """Ids -> the exact bytes; special tokens and ids without a token give none."""
        ids = [int(token) for token in ids]
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token} is outside the vocabulary; ids run from 0 to "
                                 f"{self.vocab_size - 1}.")
        return b"".join(self.token_bytes[token] for token in ids)

    def save(self, folder):
        """Write `tokenizer.json` and `tokenizer_config.json`, as a released checkpoint has them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "tokenizer.json", self.as_json())
        write_json(folder / "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS, "eos_token": EOS, "pad_token": EOS,
            "additional_special_tokens": [FIM_BEGIN, FIM_HOLE, FIM_END],
            "split_special_tokens": True,                # text that spells one of them stays text
            "add_bos_token": False, "add_eos_token": False,
            "clean_up_tokenization_spaces": False,       # True would remove spaces when decoding
        })

    @classmethod
    def load(cls, folder):
        """Read what `save` wrote. Raises FileNotFoundError, or UserError for any other file."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; give a folder made by train_tiny.py.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["added_tokens"]:          # ours never has any; fail early on others
                raise ValueError
            vocabulary = content["model"]["vocab"]
            names = {*SPECIAL_TOKENS, *empty_places(len(vocabulary))}
            merged = [from_visible(token) for token in sorted(vocabulary, key=vocabulary.get)
                      if token not in names]
            pattern = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
            tokenizer = cls(merged, len(vocabulary), pattern)
            understood = all(content[part] == mine for part, mine in tokenizer.as_json().items())
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            understood = False
        if not understood:
            raise UserError(f"{path} is not a tokenizer that minidsv3 wrote; read it with "
                            "transformers.AutoTokenizer, or give a folder of train_tiny.py.")
        return tokenizer

    def as_json(self):
        """The tokenizer in the format of the `tokenizers` library.

        Special tokens are listed in the vocabulary only. Under "added_tokens" the library would
        also find their names in ordinary text.
        """
        learned = [to_visible(token) for token in self.ranks]
        names = [*SPECIAL_TOKENS, *learned]
        names += empty_places(self.vocab_size - len(names))
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
                      "merges": self.merges()},
        }

    def merges(self):
        """Every pair of tokens that forms another token, in the order of the tokens formed.

        tiktoken joins any two neighbours whose bytes form a token. This format lists the pairs that
        may be joined, so it must list all of them for the ids to agree.
        """
        return [[to_visible(token[:cut]), to_visible(token[cut:])]
                for token in self.ranks for cut in range(1, len(token))
                if token[:cut] in self.ranks and token[cut:] in self.ranks]


def well_formed(text):
    """A text in which U+FFFD stands for each lone surrogate, which UTF-8 cannot hold."""
    return UNPAIRED.sub("\ufffd", text)         # the very same text if there is none


def empty_places(count):
    """The names that the released model gives to ids without a token."""
    return [f"<｜place▁holder▁no▁{number}｜>" for number in range(count)]


def write_json(path, content):
    """Write a JSON file whole or not at all, with every character as itself."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def visible_bytes():
    """GPT-2's alphabet: {byte: its Latin-1 character if that is printable, or else another one}."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return ({byte: chr(byte) for byte in printable}
            | {byte: chr(256 + place) for place, byte in enumerate(others)})


VISIBLE = visible_bytes()
BYTE_OF = {character: byte for byte, character in VISIBLE.items()}


def to_visible(token):
    """The bytes of a token -> its name in GPT-2's alphabet."""
    return "".join(VISIBLE[byte] for byte in token)


def from_visible(token):
    """The name of a token in GPT-2's alphabet -> its bytes. KeyError for any other character."""
    return bytes(BYTE_OF[character] for character in token)
