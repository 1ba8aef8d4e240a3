"""All that a run reads, made from the name of a source: text -> tokenizer -> batches."""

import torch

from ..command import UserError
from . import corpus
from .batches import IGNORE, Batches, raw_bytes, validation_windows
from .tokenizer import Tokenizer


class Dataset:
    """Corpus, tokenizer, training batches and validation windows of a run.

    The tokenizer is trained on the text unless one is given. token_bytes (V,): bytes that each
    token stands for, 0 for special tokens.
    """

    def __init__(self, source, vocab_size, window, fim_rate, seed, tokenizer=None):
        loaded = corpus.load(source)
        self.sha256 = loaded.sha256
        train, validation = corpus.split(loaded.documents)
        self.tokenizer = tokenizer or Tokenizer.train([each.text for each in train], vocab_size)
        if fim_rate and self.tokenizer.fim_hole_id is None:
            raise UserError(f"fim_rate={fim_rate}, but this tokenizer has no marks to fill in the "
                            "middle; use --set fim_rate=0.")
        self.batches = Batches(train, self.tokenizer, window, fim_rate, seed)
        self.inputs, self.targets = validation_windows(validation, self.tokenizer, window)
        self.validation_bytes = raw_bytes(validation)
        self.token_bytes = torch.tensor([len(data) for data in self.tokenizer.token_bytes])

    def quick_sample(self, windows=96):
        """Evenly spread validation windows and the bytes of their targets, for looks in between."""
        chosen = torch.linspace(0, len(self.inputs) - 1, min(windows, len(self.inputs))).long()
        targets = self.targets[chosen]
        size = self.token_bytes[targets[targets != IGNORE]].sum().item()
        return self.inputs[chosen], targets, size
