"""From documents to batches: FIM, packing, windows (report, 4.1).

Every document is encoded and closed by EOS, and all documents are joined into one stream. Windows
are cut from this stream at fixed distances, wherever documents begin or end, and no mask separates
documents, as in the report's pre-training. In training, a tenth of the documents is first
rearranged for filling in the middle (FIM).

Training draws from `Batches`, where sample number n is a function of (seed, n) and of nothing else.
So a resumed run, or a run on more processes, continues with the same samples and needs no stored
position. Validation reads `validation_windows`, in which every token is a target exactly once.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from ..command import UserError

IGNORE = -100                                    # a target that torch's cross_entropy leaves out


def raw_bytes(documents):
    """UTF-8 bytes of the documents: the denominator of bits per byte."""
    return sum(len(document.text.encode()) for document in documents)


def encode_documents(documents, tokenizer):
    """Documents -> one int32 array of ids for each; the last id is EOS.

    All cores take part. Arrays are made at once: Python's lists of ids take ten times their memory.
    """
    def encode(document):
        return np.append(tokenizer.encode_array(document.text), np.int32(tokenizer.eos_id))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(encode, documents))


def fim(text, tokenizer, generator):
    """Rearrange a document so that its middle is predicted last, when both sides are known -> ids.

    Prefix-Suffix-Middle order: <fim_begin> prefix <fim_hole> suffix <fim_end> middle. NumPy's
    generator draws the two cuts. They may fall between any two characters, so that the model also
    learns to continue half a word.
    Example, cut at 3 and 6: "abcdefgh" -> <fim_begin> "abc" <fim_hole> "gh" <fim_end> "def".
    """
    first, second = sorted(generator.integers(0, len(text) + 1, size=2))
    prefix, middle, suffix = text[:first], text[first:second], text[second:]
    return [tokenizer.fim_begin_id, *tokenizer.encode(prefix),
            tokenizer.fim_hole_id, *tokenizer.encode(suffix),
            tokenizer.fim_end_id, *tokenizer.encode(middle)]


def validation_windows(documents, tokenizer, window):
    """Documents -> inputs (W, T), targets (W, T), int64, with T = window and no overlap.

    One EOS in front is the context of the first token. The last window is filled up, its inputs
    with EOS and its targets with IGNORE. Example with T = 3, documents "ab" and "c", one token per
    letter, and . for EOS: inputs [. a b] [. c .], targets [a b .] [c . IGNORE].
    """
    eos = np.array([tokenizer.eos_id], dtype=np.int32)
    stream = np.concatenate([eos, *encode_documents(documents, tokenizer)])
    rows = -(-(len(stream) - 1) // window)
    inputs = np.full((rows, window), tokenizer.eos_id, dtype=np.int64)       # (W, T)
    targets = np.full((rows, window), IGNORE, dtype=np.int64)                # (W, T)
    inputs.flat[:len(stream) - 1] = stream[:-1]
    targets.flat[:len(stream) - 1] = stream[1:]
    return torch.from_numpy(inputs), torch.from_numpy(targets)


class Batches:
    """Training windows without end; sample n is a function of (seed, n).

    Sample n is window n mod windows_per_epoch of epoch n // windows_per_epoch. Each epoch puts the
    documents into a new order, draws anew which of them to rearrange (`fim`), and shuffles the
    windows. A window holds T + 1 tokens and shares one with its neighbour, so that every token of
    an epoch except the first is a target. Raises UserError for a bad value or too little text.
    """

    def __init__(self, documents, tokenizer, window, fim_rate=0.1, seed=0):
        if not 0 <= fim_rate <= 1:
            raise UserError(f"fim_rate={fim_rate} is a share; choose 0 to 1.")
        if seed < 0:
            raise UserError(f"seed={seed} is negative; choose 0 or more.")
        self.documents, self.tokenizer, self.window = documents, tokenizer, window
        self.fim_rate, self.seed = fim_rate, seed
        self.encoded = encode_documents(documents, tokenizer)
        length = sum(map(len, self.encoded))
        # Counted before FIM, which adds tokens. So every epoch has the same number of windows, and
        # the tokens left over are cut off, different ones in each epoch.
        self.windows_per_epoch = (length - 1) // window
        self.tokens_per_epoch = self.windows_per_epoch * window
        if self.windows_per_epoch < 1:
            raise UserError(f"the training text has {length} tokens, fewer than one window of "
                            f"{window} + 1; give more text or a shorter window.")
        self.epochs = {}                         # {number: (stream, order)}, two at most

    def take(self, start, count):
        """Samples start .. start + count - 1 -> (N, T+1) int64; they may span several epochs."""
        batch = np.empty((count, self.window + 1), dtype=np.int64)           # (N, T+1)
        for row, sample in enumerate(range(start, start + count)):
            number, place = divmod(sample, self.windows_per_epoch)
            stream, order = self.epoch(number)
            first = order[place] * self.window
            batch[row] = stream[first:first + self.window + 1]
        return torch.from_numpy(batch)

    def epoch(self, number):
        """Stream and order of the windows of one epoch.

        Two epochs are kept, because a batch may begin in one and end in the next.
        """
        if number not in self.epochs:
            while len(self.epochs) > 1:
                del self.epochs[min(self.epochs)]
            self.epochs[number] = self.make_epoch(number)
        return self.epochs[number]

    def make_epoch(self, number):
        """Shuffle, rearrange and pack -> stream (tokens_per_epoch + 1,), order of the windows."""
        generator = np.random.default_rng([self.seed, number])
        pieces = []
        for index in generator.permutation(len(self.documents)):
            piece = self.encoded[index]
            if generator.random() < self.fim_rate:
                ids = fim(self.documents[index].text, self.tokenizer, generator)
                piece = np.array(ids + [self.tokenizer.eos_id], dtype=np.int32)
            pieces.append(piece)
        # resize cuts off the rest; if FIM ever made the text shorter, it would repeat the start.
        stream = np.resize(np.concatenate(pieces), self.tokens_per_epoch + 1)
        return stream, generator.permutation(self.windows_per_epoch)
