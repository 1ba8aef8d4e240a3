"""Continue a text: prompts that end in the middle of a token, stop strings, whole characters."""

import codecs
import re
from functools import partial
from typing import NamedTuple

import torch

from ..command import UserError
from ..data.tokenizer import well_formed
from ..device import send
from .decoder import Sequence
from .generation import begin_all
from .sampling import Sampler


class Piece(NamedTuple):
    """One new token, the text that it completes, and whether it is an accepted draft."""

    token: int | None                            # None at the end, with the text that was held back
    text: str
    drafted: bool = False


def complete(model, tokenizer, prompt, max_new_tokens, temperature=0.0, top_k=None, top_p=1.0,
             min_p=0.0, speculative=0, seed=0, stop=(), suffix=None):
    """Continue a text: an iterable of Pieces, whose texts, joined, follow the prompt.

    An empty prompt starts a new document. suffix: the text after a gap that the new text fills.
    stop: strings; the text ends before the first one. The other settings are those of `generate`.
    Raises UserError at once for a setting out of range.
    """
    ending, prompt = "", well_formed(prompt)     # an odd shell gives bytes that are no UTF-8
    if suffix is not None:
        first = around_a_hole(tokenizer, prompt, well_formed(suffix))
    elif prompt:
        stem, ending = split_prompt(prompt, tokenizer.uncut(prompt))
        first = tokenizer.encode_prompt(stem)
        if not first:                            # no BOS, and nothing but signs
            first, ending = tokenizer.encode_prompt(prompt), ""
    else:
        first = [tokenizer.start_id]
    decoder, sequences = begin_all(
        model, [first], max_new_tokens, Sampler(temperature, top_k, top_p, min_p), speculative,
        [seed], (), partial(HealedSequence, tokenizer=tokenizer, ending=ending))
    return Completion(decoder, sequences[0], stop)


def around_a_hole(tokenizer, prefix, suffix):
    """Tokens that ask for the text between prefix and suffix, as in training (report, 4.1).

    Raises UserError if the tokenizer has no tokens for this.
    """
    if tokenizer.fim_hole_id is None:
        raise UserError("this model's tokenizer has no marks to fill in the middle; leave the "
                        "suffix out, or train with fim_rate above 0.")
    return [tokenizer.fim_begin_id, *tokenizer.encode(prefix),
            tokenizer.fim_hole_id, *tokenizer.encode(suffix), tokenizer.fim_end_id]


class Completion:
    """Iterating over it generates the text; its `decoder` counts passes and accepted drafts."""

    def __init__(self, decoder, sequence, stop):
        self.decoder, self.sequence, self.text = decoder, sequence, TextStream(stop)

    def __iter__(self):
        new, drafted = self.decoder.start([self.sequence])[0], 0
        while new:
            for place, token in enumerate(new):
                data = self.sequence.parts[len(self.sequence.parts) - len(new) + place]
                yield Piece(token, self.text.feed(data), place < drafted)
                if self.text.stopped:
                    return
            before = sum(self.decoder.accepted)
            new = [] if self.sequence.ended else self.decoder.step()[0]
            drafted = sum(self.decoder.accepted) - before              # these come first in new
        yield Piece(None, self.text.feed(b"", final=True))


class HealedSequence(Sequence):
    """A sequence that must begin with the bytes that were cut off its prompt ("token healing").

    ending: the text cut off. parts: the bytes that each new token adds to the whole prompt; empty
    for EOS.
    """

    def __init__(self, *arguments, tokenizer, ending):
        super().__init__(*arguments)
        self.token_bytes, self.ending, self.parts = tokenizer.token_bytes, ending.encode(), []
        self.tokenizer = tokenizer

    def restrict(self, row):
        """-inf for tokens that neither start with the ending nor are a prefix of it: row (V,)."""
        if not self.ending:
            return row
        fits = [bool(data) and (data.startswith(self.ending) or self.ending.startswith(data))
                for data in self.token_bytes]
        return row.masked_fill(send(~torch.tensor(fits), row.device), float("-inf"))

    def note(self, token):
        """Append a token, and to `parts` its bytes that come after the ending."""
        super().note(token)
        data = b"" if token in self.stop else self.tokenizer.decode_bytes([token])
        spelt = min(len(data), len(self.ending))
        self.ending = self.ending[spelt:]
        self.parts.append(data[spelt:])


def split_prompt(prompt, kept=0, longest=16):
    """Cut off the punctuation and spaces at the end: "if (x == " -> "if (x", " == ".

    In training they share a token with the word after them (" == None"). So a prompt that ends with
    them ends in the middle of a token. kept: characters at the start that are never cut, because
    they end with an added token, such as a chat mark. longest: characters to cut off at most.
    """
    ending = prompt[max(kept, len(prompt) - longest):]
    ending = re.search(r"[^0-9A-Za-z\x80-\U0010FFFF]*\Z", ending).group()
    return prompt[:len(prompt) - len(ending)], ending


class TextStream:
    """Turns bytes into text: whole characters only, and nothing from the first stop string on.

    An incomplete character is held back until its other bytes come; so is text that may be the
    start of a stop string. stopped: whether a stop string has come.
    """

    def __init__(self, stop=()):
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.stop, self.waiting, self.stopped = [well_formed(t) for t in stop if t], "", False

    def feed(self, data, final=False):
        """The text that these bytes complete; `final` also returns what was held back."""
        text = self.waiting + self.decoder.decode(data, final)
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self.stop
                 if stop in text]
        if self.stopped or found:
            # The one that is complete first: the result must not depend on how the text is split.
            text = "" if self.stopped else text[:min(found)[1]]
            self.waiting, self.stopped = "", True
            return text
        held = 0 if final else max((beginning(text, stop) for stop in self.stop), default=0)
        self.waiting = text[len(text) - held:]
        return text[:len(text) - held]


def beginning(text, stop):
    """How many characters at the end of a text may be the start of a stop string."""
    return next((size for size in range(min(len(text), len(stop)), 0, -1)
                 if stop.startswith(text[-size:])), 0)
