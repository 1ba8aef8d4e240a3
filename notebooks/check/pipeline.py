"""Exercises of notebook 09: why do pipelines have bubbles? Each has a hint in two steps."""

import oracles

from .verdict import compare


def squared_paper(student, hint=1):
    """Three ranks, four micro-batches: the rules of the paper, then the number of empty cells."""
    return compare(lambda ranks, n: oracles.idle_cells(student(), ranks, n), (3, 4),
                   lambda ranks, n: oracles.fewest_idle_cells(ranks), (
        "Which cells does another rank wait for? W is never one of them, so move it to a place "
        "where its rank would wait.",
        "Rank 2 needs no gap after its first cell: F0 I0 F1 I1 F2 I2, and only then W0. Rank 1 "
        "delays one W, and rank 0 none."), hint)


def one_forward_one_backward(student, hint=1):
    """By hand: the last of three ranks; then other ranks, and too few micro-batches."""
    cases = [(2, 3, 2), (0, 3, 4), (1, 3, 4), (0, 4, 8), (2, 4, 3), (0, 4, 2), (0, 1, 2)]
    return compare(student, cases, oracles.one_forward_one_backward, (
        "Rank r goes forwards ranks - 1 - r times before its first pair of one forward and one "
        "backward.",
        "The order: the first forwards; then a forward and a backward in turn until no forward is "
        "left; then the other backwards. With few micro-batches all forwards may be in the first "
        "part."), hint)


def peak_alive(student, hint=1):
    """By hand: F I F W; then the lists of real schedules."""
    cases = [("FIFW",), ("FFBFB",), ("FFIWFIW",), ("FIFIFIFWIWWW",), ("FBFBFB",), ("FFFIIIWWW",)]
    return compare(student, cases, oracles.peak_alive, (
        "What does W need of the forward pass? Count until then.",
        "F adds one. B takes one away, and so does W. I takes none away."), hint)
