"""A unit: GPUs that work in lockstep on prompts, on decoding, or on both; and its state.

`step_cost.py` says how long a step takes, `pools.py` what a unit does next.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple


class Unit(NamedTuple):
    """One unit: what it does, and how much at once."""

    role: str                          # "prefill", "decode" or "both"
    gpus: int
    seconds: Callable                  # Work -> seconds of a step
    budget: int = 0                    # prompt tokens per step
    chunk: float = math.inf            # the most of one prompt per step; inf: prompts stay whole
    places: float = math.inf           # sequences decoded together
    room: float = math.inf             # tokens cached in all


class Failure(NamedTuple):
    """A GPU of a decode unit fails: the unit stops, and sequences lose their latents."""

    time: float                        # [s]
    unit: int                          # its number
    down: float                        # until the unit works again [s]
    share: float                       # of its sequences, which must be read again


class Engine:
    """A unit at work. Its sequences are held as sums, so that a step need not look at each of them.

    `ends` has the sequences by the step with which they are complete. In a step the latents of all
    sequences grow by `growth` tokens together.
    """

    def __init__(self, unit):
        self.unit = unit
        self.waiting, self.tokens_waiting = deque(), 0     # prompts; their tokens not read yet
        self.pending = deque()                             # sequences handed over, without a place
        self.places, self.room = 0, 0                      # taken; room in tokens
        self.expected = 0                                  # room of all sequences sent here
        self.ends, self.step = {}, 0
        self.sequences, self.context, self.growth = 0, 0.0, 0.0
        self.busy, self.serial = False, 0                  # serial: of a step that counts
        self.down = 0.0                                    # until when it has failed [s]
        self.chunks, self.decodes = [], False              # of the step under way
        self.links = [0.0] * unit.gpus                     # when each GPU has sent its handovers

    def has_room(self, tokens):
        """Whether one more sequence of so many tokens can be held."""
        return self.places < self.unit.places and self.room + tokens <= self.unit.room

    def reserve(self, tokens, sign=1):
        """Take a place and its room, or give both back (sign=-1)."""
        self.places += sign
        self.room += sign * tokens
