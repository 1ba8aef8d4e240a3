"""Text to token ids and back: byte-level BPE with the special tokens of the released model.

BPE starts from the 256 bytes and repeatedly joins the most frequent adjacent pair into a new token.
So every text can be encoded, and decoding returns it byte for byte. `rustbpe` learns the merges,
`tiktoken` applies them. The ids are

    0 .. 5                     BOS, EOS, padding and the three FIM marks
    6 .. 261                   the bytes 0 .. 255
    262 .. vocab_size - 1      merges, in the order learned; if a small corpus has too few, the
                               ids left over are named as the released model names its empty ones

The text is first split into pieces, and no token reaches across two of them: in our wide way, or as
for the released model (`SPLITS`). `save` writes `tokenizer.json`, the format of the released
checkpoint, which `tokenizers` and `transformers` read with the same ids. Ordinary text never
becomes a special token, even if it spells the name of one. The released tokenizer would accept such
text; here a corpus must not be able to fake the end of a document. DeepSeek's random splitting of
some tokens in training is left out.
"""

import json
import re
from pathlib import Path

import numpy as np
import rustbpe
import tiktoken

from ..command import UserError
from ..files import write_text
from ..hf.splits import CJK, PAD, RELEASED

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
FIM_BEGIN, FIM_HOLE, FIM_END = "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"
SPECIAL_TOKENS = (BOS, EOS, PAD, FIM_BEGIN, FIM_HOLE, FIM_END)     # index = id
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256

# Ours: a piece is a word with all signs, spaces and line ends in front of it ("):\n    return",
# "(self"), or up to three digits, or signs that no word follows. As with the released model, signs
# and line ends may share a token; here a word may follow them in the same token. With 2,048 tokens,
# library text not trained on then has 3.37 bytes per token, and 2.95 with the released splits.
# Every character beyond ASCII counts as a letter: this needs no Unicode tables, so three regex
# engines with three Unicode versions agree. Without look-ahead, the time grows linearly with the
# text.
LETTER = r"A-Za-z\x{80}-\x{10FFFF}"
WIDE = rf"[^0-9{LETTER}]*[{LETTER}]+|[0-9]{{1,3}}|[^0-9{LETTER}]+"

# The released splits in one expression, which tiktoken needs. No piece may then reach into digits
# or CJK, and nothing may be left out, so the last part takes single characters that are in no
# other. White space is cut after 10,000 characters: fancy-regex, behind tiktoken, keeps a million
# steps at most.
RELEASED_AS_ONE = "|".join([
    RELEASED[0],
    rf"[{CJK}&&[^\p{{L}}\p{{P}}\p{{S}}]]?[{CJK}&&[\p{{L}}\p{{M}}]]+",
    rf"[{CJK}&&[\p{{P}}\p{{S}}]]+",
    r"[!-/:-@\[-`{-~][A-Za-z]+",
    rf"[^\r\n\p{{L}}\p{{P}}\p{{S}}{CJK}]?[\p{{L}}\p{{M}}&&[^{CJK}]]+",
    rf" ?[\p{{P}}\p{{S}}&&[^{CJK}]]+[\r\n]*",
    r"\s*[\r\n]+",
    rf"\s{{1,10000}}(?![^\s\p{{N}}{CJK}])|\s",
    r"[^\s\p{L}\p{M}\p{N}\p{P}\p{S}]"])

SPLITS = {"wide": (WIDE,), "released": RELEASED}                   # the recipe's field `splits`

# Put in front of a prompt. A token often holds a word with the line ends before it, so "def" after
# blank lines is a common token, and "def" alone a rare one.
OPENING = "\n\n\n"


def as_one(splits):
    """One expression for splits that are made one after the other."""
    return RELEASED_AS_ONE if splits == RELEASED else "|".join(splits)


class Tokenizer:
    """Byte-level BPE; `merged` has the bytes of each token that is not special, in order of id.

    token_bytes[i] are the bytes of token i, empty for special tokens and for ids without a token.
    Over an encoded text their lengths add up to the length of the text, which bits per byte needs.
    """

    def __init__(self, merged, vocab_size, splits, special=SPECIAL_TOKENS):
        self.vocab_size, self.special, self.splits = vocab_size, special, splits
        self.token_bytes = [b""] * len(special) + list(merged)
        self.token_bytes += [b""] * (vocab_size - len(self.token_bytes))
        self.ranks = {token: rank for rank, token in enumerate(merged, start=len(special))}
        self.bos_id, self.eos_id = special.index(BOS), special.index(EOS)
        self.fim_begin_id, self.fim_hole_id, self.fim_end_id = map(
            special.index, (FIM_BEGIN, FIM_HOLE, FIM_END))
        self.start_id = self.eos_id              # a new document follows the end of another
        self.encoding = tiktoken.Encoding("minidsv3", pat_str=as_one(splits),
                                          mergeable_ranks=self.ranks, special_tokens={})

    @classmethod
    def train(cls, texts, vocab_size, splits="wide"):
        """Learn the merges from texts. The same texts in the same order give the same ids.

        splits: wide or released. Raises UserError if the vocabulary is too small for all bytes and
        special tokens.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise UserError(f"vocab_size={vocab_size} has no room for 256 bytes and "
                            f"{len(SPECIAL_TOKENS)} special tokens; choose at least "
                            f"{SMALLEST_VOCABULARY}.")
        trainer = rustbpe.Tokenizer()
        trainer.train_from_iterator(iter(texts), vocab_size - len(SPECIAL_TOKENS),
                                    pattern=as_one(SPLITS[splits]))
        merged = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
        # Two merges may give the same bytes; dict.fromkeys keeps the first, so they share an id.
        merged = list(dict.fromkeys(bytes(token) for token, _ in merged))
        return cls(merged, vocab_size, SPLITS[splits])

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

    def save(self, folder, window=None):
        """Write `tokenizer.json` and `tokenizer_config.json`, as a released checkpoint has them.

        window: the model's trained window [tokens], where other programs cut texts.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "tokenizer.json", self.as_json())
        write_json(folder / "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS, "eos_token": EOS, "padding_side": "left",
            "pad_token": PAD if PAD in self.special else EOS,    # another would be added as new
            "additional_special_tokens": [FIM_BEGIN, FIM_HOLE, FIM_END],
            "split_special_tokens": True,                # text that spells one of them stays text
            "add_bos_token": False, "add_eos_token": False,
            "clean_up_tokenization_spaces": False,       # True would remove spaces when decoding
        } | longest_text(window))

    @classmethod
    def load(cls, folder):
        """Read what `save` wrote. Raises FileNotFoundError, or UserError for any other file.

        Files of before, without a token for padding, are read as well, and files that
        `transformers` has read and written again.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; give a folder made by train_tiny.py.")
        try:
            content = as_saved(json.loads(path.read_text(encoding="utf-8")))
            vocabulary = content["model"]["vocab"]
            special = tuple(name for name in SPECIAL_TOKENS if name in vocabulary)
            names = {*special, *empty_places(len(vocabulary))}
            merged = [from_visible(token) for token in sorted(vocabulary, key=vocabulary.get)
                      if token not in names]
            splits = tuple(split["pattern"]["Regex"]
                           for split in content["pre_tokenizer"]["pretokenizers"][:-1])
            tokenizer = cls(merged, len(vocabulary), splits, special)
            complete = all(bytes([byte]) in tokenizer.ranks for byte in range(256))
            understood = complete and all(content[part] == mine
                                          for part, mine in tokenizer.as_json().items())
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
        names = [*self.special, *learned]
        names += empty_places(self.vocab_size - len(names))
        splits = [{"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated",
                   "invert": False} for split in self.splits]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                      "use_regex": False}
        return {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
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


# What a broken file name or a broken console gives; of two that belong together Python makes one
# character.
UNPAIRED = re.compile("[\ud800-\udfff]")


def well_formed(text):
    """A text in which U+FFFD stands for each lone surrogate, which UTF-8 cannot hold."""
    return UNPAIRED.sub("\ufffd", text)         # the very same text if there is none


def as_saved(content):
    """What a tokenizer.json of ours was before `transformers` wrote it again.

    It lists our special tokens once more, adds a post-processor that adds no token, and keeps the
    padding, truncation and dropout of its last call. Raises ValueError if any other token is added.
    """
    vocabulary = content["model"]["vocab"]
    for token in content["added_tokens"]:
        if token["content"] not in SPECIAL_TOKENS or vocabulary[token["content"]] != token["id"]:
            raise ValueError
    after = content["post_processor"]
    adds_nothing = after and (after["type"] == "ByteLevel" or after["type"] == "TemplateProcessing"
                              and not after["special_tokens"])
    return content | {"added_tokens": [], "truncation": None, "padding": None,
                      "model": content["model"] | {"dropout": None},
                      "post_processor": None if adds_nothing else after}


def longest_text(window):
    """The window [tokens] as tokenizer_config.json names it; nothing without one."""
    return {} if window is None else {"model_max_length": window}


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
