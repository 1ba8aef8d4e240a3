"""The door of a server: where requests wait, and what is known of each (back-pressure).

    requests of the caller -> Door: at most `most` inside -> the engines -> Served: texts and times

The door takes a request from the caller only when the engines have room for one. So whatever they
hold, as tokens or as latents, is bounded by `most` requests, however many there are in all.

A request leaves in one of three ways, and always exactly once:

    answered     its text is complete
    cancelled    its user gave it up; it keeps the text it has so far
    refused      it is empty, or too long for the model or the engines; one line says so
"""

import time
from collections.abc import Sized
from itertools import repeat

import torch

from ..command import UserError
from ..config import FARTHEST

PAUSE = 0.02                                     # between two looks for new requests [s]


class Served:
    """The text of each request, and the times from its arrival to its first and last token [s].

    cancelled: numbers of the requests given up. refused: {number: why}.
    """

    def __init__(self, progress=None):
        self.progress, self.begin = progress, time.perf_counter()
        self.arrivals = {}                       # seconds after `begin`
        self.first, self.last, self.new = {}, {}, {}
        self.cancelled, self.refused = set(), {}
        self.nbytes = self.expanded_nbytes = 0

    def now(self):
        """Seconds since the beginning."""
        return time.perf_counter() - self.begin

    def has_begun(self, number, nbytes, expanded_nbytes):
        """Note that the first token of a request is known; its handover has so many bytes."""
        self.first[number] = self.now() - self.arrivals[number]
        self.nbytes += nbytes
        self.expanded_nbytes += expanded_nbytes

    def has_ended(self, number, new):
        """Note that no token will be added to the text of a request."""
        self.last[number] = self.now() - self.arrivals[number]
        self.new[number] = new
        if self.progress:
            self.progress()

    def figures(self):
        """Medians and 95th percentiles [ms] of the answered ones, tokens per second, bytes."""
        answered = [i for i in self.new if i not in self.cancelled and i not in self.refused]
        seconds = max((last + self.arrivals[i] for i, last in self.last.items()), default=0.0)
        waits = [self.first[i] for i in answered]
        paces = [(self.last[i] - self.first[i]) / (len(self.new[i]) - 1)
                 for i in answered if len(self.new[i]) > 1]
        figures = {}
        for name, values in (("first_token", waits), ("per_token", paces)):
            for share, label in ((0.5, "median"), (0.95, "95")):
                quantile = torch.tensor(values or [0.0]).quantile(share).item()
                figures[f"{name}_ms_{label}"] = round(1000 * quantile, 1)
        tokens = sum(map(len, self.new.values()))
        return figures | {"seconds": round(seconds, 2),
                          "tokens_per_s": round(tokens / seconds, 1) if seconds else 0.0,
                          "handed_over_bytes": self.nbytes, "expanded_bytes": self.expanded_nbytes,
                          "cancelled": len(self.cancelled), "refused": len(self.refused)}


class Door:
    """Takes requests from the caller, numbered in their order, while fewer than `most` are inside.

    requests: Sequences, in a list or in an iterator, which must not wait; it may give None for "no
    request right now". arrivals: when each arrives [s], ascending; without them, a list is there at
    once, and a request of an iterator arrives when it is taken. cancel: called between passes, it
    returns the numbers of requests that were given up since. room: tokens of the longest request.
    """

    def __init__(self, requests, arrivals, cancel, most, config, room, progress=None):
        self.count = len(requests) if isinstance(requests, Sized) else None
        arrivals = None if arrivals is None else [*map(float, arrivals)]       # also of an array
        if arrivals is not None and len(arrivals) != self.count or self.count == 0:
            raise ValueError(f"{self.count} requests with {len(arrivals or [])} arrivals; give "
                             "at least one request, and a time for each.")
        self.requests, self.served = iter(requests), Served(progress)
        self.arrivals = iter(arrivals or repeat(0.0 if self.count else None))
        self.arrival, self.cancel = next(self.arrivals), cancel or tuple
        self.most, self.config, self.room = most, config, room
        self.inside, self.cancelled_early, self.taken, self.is_closed = {}, set(), 0, False

    @property
    def is_done(self):
        """Whether every request has left."""
        return self.is_closed and not self.inside

    @property
    def unfinished(self):
        """How many requests have not left yet; of an iterator, those that were taken."""
        return (self.count or self.taken) - self.taken + len(self.inside)

    @property
    def pause(self):
        """Seconds for which the caller need not be asked for requests or cancellations."""
        if self.cancel is not tuple:
            return PAUSE
        if self.is_closed or len(self.inside) == self.most:
            return float("inf")
        return max(PAUSE, (self.arrival or 0.0) - self.served.now())

    def let_in(self):
        """The requests (number, sequence) that have arrived and find room."""
        entered = []
        while len(self.inside) < self.most and (self.arrival or 0.0) <= self.served.now():
            number, sequence = self.taken, next(self.requests, self)
            if sequence is None or sequence is self:
                self.is_closed = sequence is self
                break
            self.taken += 1
            self.served.arrivals[number] = (self.served.now() if self.arrival is None
                                            else self.arrival)
            self.arrival = next(self.arrivals, 0.0)
            self.inside[number] = sequence
            if number in self.cancelled_early:
                self.cancelled_early.remove(number)
                self.leave(number, [], is_cancelled=True)
            elif why := self.objection(number, sequence):
                self.served.refused[number] = why
                self.leave(number, [])
            else:
                entered.append((number, sequence))
        return entered

    def objection(self, number, sequence):
        """Why a request is refused, or "". Just beyond the trained window there is a notice."""
        prompt, new = len(sequence.tokens), sequence.limit
        farthest = FARTHEST * self.config.max_position_embeddings
        if not prompt:
            return f"request {number} has no token; give at least 1."
        if self.room < prompt + new <= farthest:
            return (f"request {number} needs room for {prompt + new:,} tokens (prompt {prompt:,}, "
                    f"new {new:,}), but the engines have room for {self.room:,}; shorten it, or "
                    "serve with a larger max_len.")
        try:
            self.config.check_length(prompt + new)
        except UserError as error:
            return f"request {number} (prompt {prompt:,}, new {new:,}): {error}"
        return ""

    def given_up(self):
        """Numbers of requests inside that were given up since the last call.

        One that is still outside leaves when its turn comes; one that has left is ignored.
        """
        numbers = set(self.cancel())
        self.cancelled_early.update(number for number in numbers if number >= self.taken)
        return sorted(numbers & self.inside.keys())

    def leave(self, number, new, is_cancelled=False):
        """A request leaves with the text that it has."""
        del self.inside[number]
        if is_cancelled:
            self.served.cancelled.add(number)
        self.served.has_ended(number, new)


def room_for(requests, config):
    """Tokens of the longest request that is not refused; the window, if they are not all known."""
    if not isinstance(requests, Sized):
        return config.max_position_embeddings
    farthest = FARTHEST * config.max_position_embeddings
    lengths = (len(request.tokens) + request.limit for request in requests)
    return max((length for length in lengths if length <= farthest), default=1)
