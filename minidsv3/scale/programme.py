"""The programme of a pipeline: what each rank does, in order (report, section 3.2.1).

    make_programme("dualpipe", ranks=8, micro_batches=20) -> one list of actions for each rank

A model is cut into stages, a batch into micro-batches. The work of a stage on a micro-batch is a
chunk, of one of four kinds:

    F   forward                           B   whole backward: I and W together
    I   gradient of the stage's input     W   gradient of its weights, of an earlier I

Splitting B fills bubbles: the next rank waits only for I, and W may be done at any later time
(ZeroBubble). An action computes one chunk, or a forward and a backward chunk together, whose
communication and computation overlap on a GPU; or it sends or receives the input of a chunk.

`timeline.py` simulates and draws these lists, and `pipeline.py` executes them.
"""

from collections import Counter, deque
from numbers import Integral
from typing import NamedTuple

from ..command import UserError

SCHEDULES = ("1f1b", "zb1p", "dualpipe", "dualpipev")
PHASES = {"1f1b": 3, "zb1p": 4, "dualpipe": 8, "dualpipev": 8}


class Chunk(NamedTuple):
    """The work of a stage on a micro-batch."""

    kind: str                        # F, B, I, or W
    stage: int
    micro_batch: int

    def __str__(self):
        return f"{self.kind}{self.micro_batch}@{self.stage}"


class Compute(NamedTuple):
    """Compute one chunk, or an overlapped pair of a forward and a backward chunk."""

    chunks: tuple
    phase: int                       # of the programme, from 1

    def __str__(self):
        return "&".join(map(str, self.chunks))


class Send(NamedTuple):
    """Send the input of a chunk to the rank that computes it: an activation, or its gradient."""

    chunk: Chunk
    rank: int                        # the other one

    def __str__(self):
        return f"send {self.chunk} to {self.rank}"


class Receive(NamedTuple):
    """Wait for the input of a chunk, which this rank computes next."""

    chunk: Chunk
    rank: int                        # the other one

    def __str__(self):
        return f"receive {self.chunk} from {self.rank}"


def make_programme(schedule, ranks, micro_batches):
    """The actions of every rank in order: [[Compute, Send or Receive, ...] for each rank].

    1f1b and zb1p have one stage per rank. dualpipe has two: rank r holds stages r and P-1-r, and
    the second half of the micro-batches enters at the other end, so each stage is on two ranks.
    dualpipev has 2P stages in a V: rank r holds stages r and 2P-1-r, and all micro-batches enter
    at rank 0. Raises UserError if the schedule cannot have these numbers.
    """
    check(schedule, ranks, micro_batches)
    return [add_messages(schedule, ranks, micro_batches, rank,
                         computations(schedule, ranks, micro_batches, rank))
            for rank in range(ranks)]


def check(schedule, ranks, micro_batches):
    """Raise UserError, a ValueError, that names what is wrong and what would do."""
    if schedule not in SCHEDULES:
        raise UserError(f"schedule={schedule!r} is unknown; choose one of {', '.join(SCHEDULES)}.")
    for name, number in (("ranks", ranks), ("micro_batches", micro_batches)):
        if not isinstance(number, Integral) or isinstance(number, bool) or number < 1:
            raise UserError(f"{name}={number!r} must be a whole number, at least 1.")
    if schedule == "dualpipe" and ranks % 2:
        raise UserError(f"ranks={ranks} is odd, but in DualPipe ranks r and P-1-r hold the same "
                        f"stages; choose {ranks + 1}.")
    if schedule == "dualpipe" and micro_batches % 2:
        raise UserError(f"micro_batches={micro_batches} is odd, but in DualPipe one half enters at "
                        f"each end; choose {max(micro_batches + 1, 2 * ranks)}.")
    if schedule in ("dualpipe", "dualpipev") and micro_batches < 2 * ranks:
        raise UserError(f"micro_batches={micro_batches} is too few for {schedule} on {ranks} "
                        f"ranks; choose at least {2 * ranks}.")


def stages_of(schedule, ranks, rank):
    """The stages that a rank holds; side 0 of its programme is the first of them.

    In DualPipe, side 0 is the direction in which micro-batches reach this rank earlier.
    """
    if schedule == "dualpipe":
        return min(rank, ranks - 1 - rank), max(rank, ranks - 1 - rank)
    if schedule == "dualpipev":
        return rank, 2 * ranks - 1 - rank
    return (rank,)


def number_of_stages(schedule, ranks):
    """Into how many stages the model is cut: P, or 2P for dualpipev."""
    return 2 * ranks if schedule == "dualpipev" else ranks


def rank_of(schedule, ranks, micro_batches, stage, micro_batch):
    """The rank that computes this stage for this micro-batch; None if there is no such stage."""
    if not 0 <= stage < number_of_stages(schedule, ranks):
        return None
    if schedule == "dualpipev":
        return min(stage, 2 * ranks - 1 - stage)
    enters_at_the_other_end = schedule == "dualpipe" and micro_batch >= micro_batches // 2
    return ranks - 1 - stage if enters_at_the_other_end else stage


# ------------------------------------------------------------------- what one rank computes


def computations(schedule, ranks, micro_batches, rank):
    """The Compute actions of a rank, in order.

    The lists below name a chunk by its kind and its side: "F0" is the next forward chunk on the
    rank's first stage, "B1" the next backward chunk on its second, and "W" the oldest weight
    gradient that is still open.
    """
    numbers, open_weights = Counter(), deque()
    stages = stages_of(schedule, ranks, rank)
    first = [0, 0]                               # micro-batch that comes first on each side
    if schedule == "dualpipe":
        first[rank < ranks // 2] = micro_batches // 2

    def chunk(text):
        if text == "W":
            return open_weights.popleft()
        side = int(text[1])
        direction = "forward" if text[0] == "F" else "backward"
        found = Chunk(text[0], stages[side], first[side] + numbers[direction, side])
        numbers[direction, side] += 1
        if found.kind == "I":
            open_weights.append(found._replace(kind="W"))
        return found

    if schedule in ("1f1b", "zb1p"):
        texts = one_direction(rank, ranks, micro_batches, split=schedule == "zb1p")
    else:
        texts = two_directions(*place(schedule, ranks, micro_batches, rank))
    return [Compute(tuple(map(chunk, text.split("&"))), phase) for phase, text in texts]


def one_direction(rank, ranks, micro_batches, split):
    """(phase, text) of 1F1B; with `split`, of ZB1P.

    As many forwards first as are needed until a gradient can return; then one forward, one
    backward in turn, so at most P micro-batches are alive. In ZB1P rank r stays r weight
    gradients behind, with which it fills its time at the end; then all ranks have P alive.
    """
    warm_up = min(ranks - 1 - rank, micro_batches)
    yield from [(1, "F0")] * warm_up
    for i in range(micro_batches):
        phase = 2 if i < micro_batches - warm_up else 3
        if phase == 2:
            yield 2, "F0"
        yield phase, "I0" if split else "B0"
        if split and i >= rank:
            yield phase, "W"
    if split:
        yield from [(4, "W")] * min(rank, micro_batches)


def place(schedule, ranks, micro_batches, rank):
    """Distance h from the end, size H of a half, micro-batches n on each of a rank's two sides."""
    if schedule == "dualpipe":
        return min(rank, ranks - 1 - rank), ranks // 2, micro_batches // 2
    return rank, ranks, micro_batches


def iterations(h, H, n):
    """How often each of the eight phases repeats, on the rank at distance h from the end."""
    return (2 * (H - h - 1), h + 1, H - h - 1, n - 2 * H + h + 1,
            H - h - 1, h + 1, H - h - 1, h + 1)


def two_directions(h, H, n):
    """(phase, text) of DualPipe and DualPipeV, as in the repository of DualPipe.

    In each phase a rank repeats what the report's Figure 5 shows there.
    """
    times = iterations(h, H, n)
    for _ in range(times[0]):
        yield 1, "F0"
    for _ in range(times[1]):
        yield from [(2, "F0"), (2, "F1")]
    for _ in range(times[2]):
        yield from [(3, "I1"), (3, "W"), (3, "F1")]
    for i in range(times[3]):
        # In the middle nothing could overlap yet: the neighbour waits for this very F0.
        yield from [(4, "F0"), (4, "B1")] if i == 0 and h == H - 1 else [(4, "F0&B1")]
        yield 4, "F1&B0"
    for _ in range(times[4]):
        yield from [(5, "B1"), (5, "F1&B0")]
    for i in range(2 * times[5]):                # the second half of these is split
        yield 6, ("I" if i >= times[5] else "B") + ("0" if i % 2 else "1")
    for _ in range(times[6]):
        yield from [(7, "W"), (7, "I0")]
    for _ in range(times[7]):
        yield 8, "W"


# --------------------------------------------------------------------------- what it sends


def add_messages(schedule, ranks, micro_batches, rank, computes):
    """The whole list of a rank: every input is received just before, every output sent just after.

    Where the stage before or after is on the same rank, nothing is sent.
    """
    def neighbour(chunk, step):
        other = rank_of(schedule, ranks, micro_batches, chunk.stage + step, chunk.micro_batch)
        return None if other == rank else other

    actions = []
    for compute in computes:
        # An activation goes one stage up, a gradient one stage down; W needs and gives nothing.
        moving = [(chunk, 1 if chunk.kind == "F" else -1)
                  for chunk in compute.chunks if chunk.kind != "W"]
        for chunk, step in moving:
            if (sender := neighbour(chunk, -step)) is not None:
                actions.append(Receive(message(chunk), sender))
        actions.append(compute)
        for chunk, step in moving:
            if (receiver := neighbour(chunk, step)) is not None:
                target = chunk._replace(stage=chunk.stage + step)
                actions.append(Send(message(target), receiver))
    return actions


def message(chunk):
    """The chunk whose input travels: for a gradient always B, since B and I need the same."""
    return chunk._replace(kind="F" if chunk.kind == "F" else "B")


def phase_counts(schedule, ranks, micro_batches, rank):
    """How often each phase repeats on a rank of dualpipe or dualpipev; else its computations."""
    if schedule in ("dualpipe", "dualpipev"):
        return iterations(*place(schedule, ranks, micro_batches, rank))
    phases = Counter(c.phase for c in computations(schedule, ranks, micro_batches, rank))
    return tuple(phases[phase] for phase in range(1, PHASES[schedule] + 1))
