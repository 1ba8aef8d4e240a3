"""All that a run reads, made from the name of a source: text, tokenizer, batches."""

import torch

from ..command import UserError
from . import corpus
from .batches import IGNORE, Batches, raw_bytes, validation_windows
from .retrieval import Mixture, Notes, some_notes
from .tokenizer import Tokenizer


class Dataset:
    """Tokenizer, training batches and validation windows of a run.

    The tokenizer is trained on the training text unless one is given. inputs, targets (W, T);
    token_bytes (V,) is the number of bytes of each token, 0 for special tokens. Raises UserError if
    documents are to be rearranged (`fim`) and the tokenizer has no marks for it. retrieval: the
    share of training windows with retrieval text; the tokenizer learns its words, too. splits: what
    a new tokenizer splits texts by, wide or released.
    """

    def __init__(self, source, vocab_size, window, fim_rate, seed, tokenizer=None, retrieval=0.0,
                 splits="wide"):
        _, documents, self.sha256, _ = corpus.load(source)
        train, validation = corpus.split(documents)
        del documents                            # the sections of a long text are a copy of it
        texts = [each.text for each in train]
        if retrieval:
            texts.append(some_notes(retrieval * sum(map(len, texts))))
        self.tokenizer = tokenizer or Tokenizer.train(texts, vocab_size, splits)
        if fim_rate and self.tokenizer.fim_hole_id is None:
            raise UserError(f"fim_rate={fim_rate} needs a tokenizer with FIM marks, and this one "
                            "has none; use --set fim_rate=0.")
        self.batches = Batches(train, self.tokenizer, window, fim_rate, seed)
        if retrieval:
            self.batches = Mixture(self.batches, Notes(self.tokenizer), retrieval, seed)
        self.inputs, self.targets = validation_windows(validation, self.tokenizer, window)
        self.validation_bytes = raw_bytes(validation)
        self.token_bytes = torch.tensor([len(data) for data in self.tokenizer.token_bytes])

    def quick_sample(self, tokens=24_576):
        """Some validation windows, evenly spread, for quick evaluations during training.

        -> inputs (W, T), targets (W, T), and the number of bytes that the targets stand for.
        """
        windows = min(max(1, tokens // self.inputs.size(1)), len(self.inputs))
        chosen = torch.linspace(0, len(self.inputs) - 1, windows).long()
        targets = self.targets[chosen]
        size = self.token_bytes[targets[targets != IGNORE]].sum().item()
        return self.inputs[chosen], targets, size
