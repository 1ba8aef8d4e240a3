"""When each rank of a pipeline computes and when it waits: simulated and drawn.

    timeline = simulate("dualpipe", ranks=8, micro_batches=20)
    timeline.bubble                              6: the largest idle time of a rank
    draw(timeline)                               the report's Figure 5

The simulation walks through the programme (`programme.py`), which `pipeline.py` executes. Every
rank computes its list in order, and waits only where the list says that it receives something.

    python -m minidsv3.scale.timeline --schedule dualpipe --ranks 8 --micro-batches 20
"""

import json
import sys
from collections import deque
from numbers import Real
from pathlib import Path
from typing import NamedTuple

from ..command import Parser, UserError, answer, check_out
from .gantt import draw
from .programme import (
    PHASES,
    SCHEDULES,
    Chunk,
    Compute,
    Receive,
    Send,
    make_programme,
    number_of_stages,
    phase_counts,
)

LONGEST = 1e12                                   # of a duration, so that sums stay finite
MOST_RANKS = 256                                 # that can be drawn, one row each


class Cell(NamedTuple):
    """One computation on the time axis; an overlapped pair is one cell with two chunks."""

    rank: int
    chunks: tuple
    phase: int
    start: float
    end: float


class Transfer(NamedTuple):
    """An activation or a gradient on its way between two ranks."""

    chunk: Chunk                     # whose input it is
    sender: int
    receiver: int
    start: float
    end: float


class Timeline(NamedTuple):
    """What happened when; times in the unit of the durations."""

    schedule: str
    ranks: int
    micro_batches: int
    cells: list                      # of Cell, in the order of their start on each rank
    transfers: list                  # of Transfer, in no particular order
    total: float                     # end of the last computation
    idle: list                       # per rank: total minus the time in which it computes
    bubble: float                    # the largest of these
    alive: list                      # per rank: the most stage inputs it kept for a backward pass
    peak_activations: int            # the largest of these, in units of one stage, one micro-batch


def simulate(schedule, ranks, micro_batches, forward=1, backward=2, weight=1, overlapped=3,
             communication=0):
    """Run a schedule on paper -> Timeline.

    The durations are those of the report's Table 2: forward chunk F, whole backward chunk B, of
    which the weight gradient W is a part, and an overlapped pair F&B. communication: time from the
    end of a chunk until another rank has its result; the sender goes on meanwhile. Raises
    UserError, a ValueError, for a duration or a schedule that cannot be.
    """
    durations = check_durations(forward, backward, weight, overlapped, communication)
    todo = [deque(actions) for actions in make_programme(schedule, ranks, micro_batches)]
    clocks, cells = [0] * ranks, [[] for _ in range(ranks)]            # of each rank
    arrivals, transfers = {}, []                 # {chunk: when its input has arrived}
    while any(todo):
        left = sum(map(len, todo))
        for rank, actions in enumerate(todo):
            # Each rank goes on until it waits for something that is not sent yet.
            while actions and (type(actions[0]) is not Receive or actions[0].chunk in arrivals):
                action, start = actions.popleft(), clocks[rank]
                if isinstance(action, Compute):
                    kind = "F&B" if len(action.chunks) == 2 else action.chunks[0].kind
                    clocks[rank] = start + durations[kind]
                    cells[rank].append(Cell(rank, *action, start, clocks[rank]))
                elif isinstance(action, Send):
                    arrivals[action.chunk] = start + communication
                    transfers.append(Transfer(action.chunk, rank, action.rank, start,
                                              start + communication))
                else:
                    clocks[rank] = max(start, arrivals[action.chunk])
        if sum(map(len, todo)) == left:
            raise RuntimeError("every rank waits for another one; the programme is wrong.")
    return make_timeline(schedule, ranks, micro_batches, cells, transfers)


def check_durations(forward, backward, weight, overlapped, communication):
    """{kind of computation: its duration}; UserError for one that is negative or no number."""
    named = {"forward": forward, "backward": backward, "weight": weight,
             "overlapped": overlapped, "communication": communication}
    for name, value in named.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= LONGEST:
            raise UserError(f"{name}={value!r} must be a duration: a number from 0 to "
                            f"{LONGEST:g}.")
    if weight > backward:
        raise UserError(f"weight={weight} is longer than backward={backward}, of which it is a "
                        f"part; choose a weight of at most {backward}.")
    return {"F": forward, "B": backward, "I": backward - weight, "W": weight, "F&B": overlapped}


def make_timeline(schedule, ranks, micro_batches, cells, transfers=()):
    """A Timeline from the cells of each rank, [[Cell]], simulated or measured; it begins at 0."""
    begin = min(cell.start for row in cells for cell in row)
    cells = [[cell._replace(start=cell.start - begin, end=cell.end - begin) for cell in row]
             for row in cells]
    total = max(cell.end for row in cells for cell in row)
    idle = [total - sum(cell.end - cell.start for cell in row) for row in cells]
    alive = [most_alive(row) for row in cells]
    return Timeline(schedule, ranks, micro_batches, sum(cells, []), list(transfers), total, idle,
                    max(idle), alive, max(alive))


def most_alive(cells):
    """The most stage inputs that a rank keeps at once: from F until B, or until W if split."""
    now = most = 0
    for cell in cells:
        kinds = [chunk.kind for chunk in cell.chunks]
        now += kinds.count("F")
        most = max(most, now)                    # an overlapped pair keeps both until it ends
        now -= kinds.count("B") + kinds.count("W")
    return most


def table_2(schedule, ranks, forward=1, backward=2, weight=1, overlapped=3):
    """The bubble by the report's Table 2, whose PP is the number of stages.

    For zb1p, dualpipe and dualpipev it is exact if F = W = B - W, and an approximation otherwise;
    zb1p needs as many micro-batches as ranks for it.
    """
    stages = number_of_stages(schedule, ranks)
    if schedule == "1f1b":
        return (stages - 1) * (forward + backward)
    if schedule == "zb1p":
        return (stages - 1) * (forward + backward - 2 * weight)
    return (stages / 2 - 1) * (overlapped + backward - 3 * weight)


# ----------------------------------------------------------------------------------- the command

DURATIONS = {"forward": (1.0, "forward chunk, F"), "backward": (2.0, "whole backward chunk, B"),
             "weight": (1.0, "weight gradient, a part of the backward chunk, W"),
             "overlapped": (3.0, "overlapped pair, F&B"),
             "communication": (0.0, "from one rank to the next")}


def run(arguments):
    """Simulate, draw and print one schedule -> exit code."""
    parser = Parser(prog="python -m minidsv3.scale.timeline", description=__doc__)
    parser.add_argument("--schedule", default="dualpipe", help=f"{', '.join(SCHEDULES)} [dualpipe]")
    parser.add_argument("--ranks", type=int, default=8, metavar="P", help="processes [8]")
    parser.add_argument("--micro-batches", type=int, default=20, metavar="N",
                        help="micro-batches of one step, at least 2P for dualpipe(v) [20]")
    for name, (default, what) in DURATIONS.items():
        parser.add_argument(f"--{name}", type=float, default=default, metavar="TIME",
                            help=f"{what}, any unit [{default:g}]")
    parser.add_argument("--out", type=Path, metavar="PNG",
                        help="the picture; an existing one is replaced [runs/SCHEDULE.png]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    path = options.out or Path("runs") / f"{options.schedule}.png"
    check_out(path, ".png")
    if options.ranks > MOST_RANKS:
        raise UserError(f"--ranks {options.ranks} is more than a picture has room for, "
                        f"{MOST_RANKS}; choose fewer.")
    if (product := options.ranks * options.micro_batches) > 5_000:
        raise UserError(f"--ranks times --micro-batches is {product:,}, but a picture has room for "
                        "5,000; choose fewer.")
    place = options.schedule, options.ranks
    durations = {name: getattr(options, name) for name in DURATIONS}
    timeline = simulate(*place, options.micro_batches, **durations)
    from ..measure.plots import save
    save(draw(timeline), path)
    durations.pop("communication")
    figures = {"total": timeline.total, "bubble": timeline.bubble,
               "table_2": table_2(*place, **durations), "idle": timeline.idle,
               "peak_activations": timeline.peak_activations, "alive": timeline.alive,
               "phases": [phase_counts(*place, options.micro_batches, rank)
                          for rank in range(options.ranks)], "picture": str(path)}
    given = {name: value for name, value in vars(options).items() if name not in ("out", "json")}
    print(json.dumps(given | figures, indent=2) if options.json else as_text(options, figures))


def as_text(options, figures):
    """The figures as lines: the whole, then one row per rank."""
    phases = "".join(f"{i:>5}" for i in range(1, PHASES[options.schedule] + 1))
    counted = "repeats" if options.schedule.startswith("dualpipe") else " chunks"
    return "\n".join([
        f"{options.schedule}, {options.ranks} ranks, {options.micro_batches} micro-batches",
        f"total {figures['total']:.6g}, bubble {figures['bubble']:.6g}; "
        f"by Table 2 {figures['table_2']:.6g}, without communication",
        f"peak activations {figures['peak_activations']}, in stages times micro-batches",
        f"rank      idle   alive  {counted} of phase{phases}",
        *(f"{rank:>4}{idle:>10.6g}{alive:>8}" + " " * 18 + "".join(f"{n:>5}" for n in counts)
          for rank, (idle, alive, counts) in enumerate(zip(
              figures["idle"], figures["alive"], figures["phases"], strict=True))),
        f"wrote {figures['picture']}"])


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
