"""From documents to batches: FIM, packing, windows (report, 4.1).

Every document is encoded and closed by EOS, and the documents are laid end to end in one stream;
windows are cut from it wherever they fall, with no mask between documents, as in the report's
pre-training. In training a tenth of the documents is first rearranged for filling in the middle.

Training draws from `Batches`, where sample number n is a function of (seed, n) and of nothing
else: a resumed run, or one spread over more processes, continues with the same samples and needs
no stored position. Validation reads `validation_windows`, in which every token is a target once.
"""

import numpy as np
import torch

from minidsv3.data.corpus import Document
from minidsv3.data.tokenizer import Tokenizer

from ..command import UserError

IGNORE = -100                    # a target that torch's cross_entropy leaves out


def raw_bytes(documents: list[Document]) -> int:
    """UTF-8 bytes of the documents: the denominator of bits per byte."""
    return sum(len(document.text.encode()) for document in documents)


def encode_documents(documents: list[Document], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Documents -> one int32 array of ids each, the last of which is EOS."""
    encoded = tokenizer.encode_batch([document.text for document in documents])
    return [np.array(ids + [tokenizer.eos_id], dtype=np.int32) for ids in encoded]


def fim(text: str, tokenizer: Tokenizer, generator: np.random.Generator) -> list[int]:
    """Rearrange a document so that its middle is predicted last, knowing both sides.

    Prefix-Suffix-Middle order: <fim_begin> prefix <fim_hole> suffix <fim_end> middle. The cuts
    fall between any two characters, so that the model also learns to go on from half a word.
    Example, cut at 3 and 6: "abcdefgh" -> <fim_begin> "abc" <fim_hole> "gh" <fim_end> "def".
    """
    first, second = sorted(generator.integers(0, len(text) + 1, size=2))
    prefix, middle, suffix = text[:first], text[first:second], text[second:]
    return [tokenizer.fim_begin_id, *tokenizer.encode(prefix),
            tokenizer.fim_hole_id, *tokenizer.encode(suffix),
            tokenizer.fim_end_id, *tokenizer.encode(middle)]


def validation_windows(
    documents: list[Document], tokenizer: Tokenizer, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Documents -> inputs (W, T), targets (W, T), int64, T = window, without overlap.

    One EOS in front is the context of the very first token; the last window is filled up with EOS,
    its targets with IGNORE. Example, T = 3, documents "ab" and "c" of one token a letter (. = EOS):
    inputs [. a b] [. c .], targets [a b .] [c . IGNORE].
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

    Sample n is number n mod windows_per_epoch of epoch n // windows_per_epoch. Each epoch puts the
    documents into a new order, picks anew which of them to rearrange (`fim`), and shuffles the
    windows. A window holds T + 1 tokens and shares one with its neighbour, so that each token but
    the first of an epoch is a target.
    """

    def __init__(self, documents: list[Document], tokenizer: Tokenizer, window: int,
                 fim_rate: float = 0.1, seed: int = 0):
        if not 0 <= fim_rate <= 1:
            raise UserError(f"fim_rate must lie between 0 and 1, got {fim_rate}")
        if seed < 0:
            raise UserError(f"seed must be 0 or more, got {seed}")
        self.documents, self.tokenizer, self.window = documents, tokenizer, window
        self.fim_rate, self.seed = fim_rate, seed
        self.encoded = encode_documents(documents, tokenizer)
        length = sum(map(len, self.encoded))
        # Counted before FIM, which adds tokens: an epoch then has the same number of windows each
        # time, and what is left over is cut off, a different piece in each epoch.
        self.windows_per_epoch = (length - 1) // window
        self.tokens_per_epoch = self.windows_per_epoch * window
        if self.windows_per_epoch < 1:
            raise UserError(f"the training text has {length} tokens, fewer than one window of "
                            f"{window} + 1; give more text or a shorter window")
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def take(self, start: int, count: int) -> torch.Tensor:
        """Samples start .. start + count - 1 -> (N, T+1) int64, across the ends of epochs."""
        batch = np.empty((count, self.window + 1), dtype=np.int64)           # (N, T+1)
        for row, sample in enumerate(range(start, start + count)):
            epoch, place = divmod(sample, self.windows_per_epoch)
            stream, order = self._epoch(epoch)
            first = order[place] * self.window
            batch[row] = stream[first:first + self.window + 1]
        return torch.from_numpy(batch)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Stream and order of the windows of one epoch; two epochs are kept, for batches across."""
        if epoch not in self._epochs:
            while len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = self._make_epoch(epoch)
        return self._epochs[epoch]

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shuffle, rearrange and pack: stream (windows_per_epoch * T + 1,), order of windows."""
        generator = np.random.default_rng([self.seed, epoch])
        pieces = []
        for number in generator.permutation(len(self.documents)):
            piece = self.encoded[number]
            if generator.random() < self.fim_rate:
                ids = fim(self.documents[number].text, self.tokenizer, generator)
                piece = np.array(ids + [self.tokenizer.eos_id], dtype=np.int32)
            pieces.append(piece)
        # resize cuts the rest off; should FIM ever have saved tokens, it starts over instead.
        stream = np.resize(np.concatenate(pieces), self.tokens_per_epoch + 1)
        return stream, generator.permutation(self.windows_per_epoch)
