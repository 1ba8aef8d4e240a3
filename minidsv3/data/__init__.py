"""What the model reads: documents, their tokens, and the batches cut from them (report, 4.1).

    sources.py    where documents come from
    corpus.py     which of them are kept, and the split into training and validation
    tokenizer.py  byte-level BPE, trained on the corpus in about a second
    foreign.py    the tokenizers of other checkpoints
    batches.py    FIM, packing with EOS, windows; a batch is a function of (seed, index)
    dataset.py    all of this together: what one run reads

Letters: N samples in a batch, W windows of a split, T tokens in a window.
"""
