"""Requests on their way through units that prefill, decode, or do both: an event simulation.

A unit works in steps; Unit.seconds says how long one takes (`step_cost.py`). A prefill unit reads
up to `budget` prompt tokens per step. The step that ends a prompt gives the first token. Its
latents then travel to a decode unit, and wait there until there is room. A unit for both decodes
itself:

    whole prompts     a step reads waiting prompts while the decoding waits, or it decodes
    in chunks         a step decodes all its sequences and reads up to `budget` prompt tokens

A request goes to the unit with the fewest prompt tokens waiting, its latents to the unit with the
fewest tokens cached or expected. Room is reserved for whole sequences, so that none is interrupted.
Three things are assumed: the length of the output is known when room is reserved; latents that
wait for a decode unit take no room; and handovers do not slow the other transfers.
"""

import heapq
import math

import numpy as np

from .requests import Served, check, decode_steps
from .step_cost import Work
from .units import Engine


class Simulation:
    """All units and requests, and the events between them in the order of time."""

    def __init__(self, requests, units, handover, acceptance, seed, failures):
        self.prompt, self.cached, self.output = (each.tolist() for each in requests[1:])
        self.arrival, count = requests.arrival.tolist(), len(requests.arrival)
        self.engines = [Engine(unit) for unit in units]
        self.readers = [each for each in self.engines if each.unit.role != "decode"]
        self.writers = [each for each in self.engines if each.unit.role == "decode"]
        self.handover = handover
        self.left = decode_steps(requests.output, acceptance, seed).tolist()   # steps to decode
        self.made = [0] * count                            # tokens when decoding began
        self.rate, self.joined = [0.0] * count, [0] * count    # tokens per step; the first step
        self.done = list(self.cached)                      # prompt tokens whose latents are there
        self.first, self.end = [math.nan] * count, [math.nan] * count
        self.read = self.written = self.window_read = self.window_written = 0.0
        self.steps = self.decoding_steps = self.decoded = 0
        self.window = self.arrival[count // 4], self.arrival[count - 1 - count // 4]
        self.events, self.pushed = [], 0
        for failure in failures:
            self.at(failure.time, self.fail, failure)

    def at(self, time, action, what):
        """Call action(time, what) later; events of equal time stay in their order."""
        heapq.heappush(self.events, (time, self.pushed, action, what))
        self.pushed += 1

    def run(self):
        """All events until nothing is left to do -> Served."""
        arrival, number, events = self.arrival, 0, self.events
        while events or number < len(arrival):
            if number < len(arrival) and (not events or arrival[number] <= events[0][0]):
                self.send_to_reader(arrival[number], number)
                number += 1
            else:
                now, _, action, what = heapq.heappop(events)
                action(now, what)
        return Served(np.array(self.first), np.array(self.end), self.read, self.written, self.steps,
                      self.window, self.window_read, self.window_written,
                      self.decoded / max(1, self.decoding_steps))

    def size(self, request):
        """Tokens of a sequence when it is complete."""
        return self.prompt[request] + self.output[request]

    # ---- reading ----

    def send_to_reader(self, now, request):
        """A prompt comes to the unit with the fewest prompt tokens waiting."""
        engine = min(self.readers, key=lambda each: (each.tokens_waiting, each.room))
        engine.waiting.append(request)
        engine.tokens_waiting += self.unread(request)
        self.start(now, engine)

    def unread(self, request):
        """Tokens to read: of the prompt, and after a failure also of what was written before."""
        return self.prompt[request] + self.made[request] - self.done[request]

    def take_prompts(self, engine):
        """The next chunks to read, [(request, tokens)]: up to the budget, in the order of arrival.

        A prompt that stays whole is read even if it alone is longer than the budget.
        """
        unit, left, chunks, unfinished = engine.unit, engine.unit.budget, [], []
        while engine.waiting and left > 0:
            request = engine.waiting[0]
            tokens = self.unread(request)
            if unit.chunk == math.inf and chunks and tokens > left:
                break
            if unit.role == "both" and self.done[request] == self.cached[request]:
                if not engine.has_room(self.size(request)):
                    break
                engine.reserve(self.size(request))
            chunk = tokens if unit.chunk == math.inf else min(tokens, left, unit.chunk)
            chunks.append((request, chunk))
            left -= chunk
            engine.waiting.popleft()
            if chunk < tokens:
                unfinished.append(request)
        engine.waiting.extendleft(reversed(unfinished))    # they stay first
        return chunks

    def has_read(self, now, engine, request):
        """A prompt is complete: it gives a token, and goes on to be decoded."""
        self.made[request] += 1
        self.count_written(now, 1)
        if self.window[0] <= now < self.window[1]:
            self.window_read += self.prompt[request]
        if math.isnan(self.first[request]):                # not after a failure
            self.first[request] = now
        if self.made[request] == self.output[request]:
            self.end[request] = now
            if engine.unit.role == "both":
                engine.reserve(self.size(request), -1)
        elif engine.unit.role == "both":
            self.join(engine, request)
        else:
            link = request % engine.unit.gpus              # the GPU that has the latents
            begin = max(now, engine.links[link])
            engine.links[link] = begin + self.handover(self.prompt[request] + self.made[request])
            writer = min(self.writers, key=lambda each: each.expected)
            writer.expected += self.size(request)
            self.at(engine.links[link], self.has_arrived, (writer, request))

    # ---- decoding ----

    def has_arrived(self, now, what):
        """Latents have arrived at a decode unit."""
        engine, request = what
        engine.pending.append(request)
        self.start(now, engine)

    def join(self, engine, request):
        """A sequence is decoded from the next step on."""
        self.rate[request] = (self.output[request] - self.made[request]) / self.left[request]
        self.joined[request] = engine.step
        engine.sequences += 1
        engine.context += self.prompt[request] + self.made[request]
        engine.growth += self.rate[request]
        engine.ends.setdefault(engine.step + self.left[request], []).append(request)

    def leave(self, engine, request, tokens):
        """A sequence of so many tokens is decoded no longer."""
        engine.sequences -= 1
        engine.context -= tokens
        engine.growth -= self.rate[request]
        engine.reserve(self.size(request), -1)
        if engine.unit.role == "decode":
            engine.expected -= self.size(request)
        if not engine.sequences:
            engine.context = engine.growth = 0.0           # what rounding has left

    def decode(self, now, engine):
        """A step has decoded all sequences."""
        engine.step += 1
        engine.context += engine.growth
        self.count_written(now, engine.growth)
        self.decoding_steps += 1
        self.decoded += engine.sequences
        for request in engine.ends.pop(engine.step, ()):
            self.end[request] = now
            self.leave(engine, request, self.size(request))

    def count_written(self, now, tokens):
        """Add to the output tokens."""
        self.written += tokens
        if self.window[0] <= now < self.window[1]:
            self.window_written += tokens

    # ---- steps ----

    def start(self, now, engine):
        """Begin the next step of a unit, unless one is under way or there is nothing to do."""
        if engine.busy:
            return
        unit = engine.unit
        while engine.pending and engine.has_room(self.size(engine.pending[0])):
            engine.reserve(self.size(engine.pending[0]))
            self.join(engine, engine.pending.popleft())
        chunks = self.take_prompts(engine) if engine.waiting else []
        decodes = engine.sequences > 0 and not (chunks and unit.chunk == math.inf)
        if not chunks and not decodes:
            return
        new = longest = earlier = pairs = 0
        for request, chunk in chunks:
            new += chunk
            longest = max(longest, chunk)
            earlier += self.done[request]
            pairs += chunk * (self.done[request] + chunk / 2)
        work = Work(new, longest, earlier, pairs,
                    *((engine.sequences, engine.context) if decodes else ()))
        engine.busy, engine.chunks, engine.decodes = True, chunks, decodes
        self.steps += 1
        self.at(now + unit.seconds(work), self.finish, (engine, engine.serial))

    def finish(self, now, what):
        """A step ends, unless its unit has failed since it began; the next one begins."""
        engine, serial = what
        if serial != engine.serial:
            return
        engine.busy = False
        if engine.decodes:
            self.decode(now, engine)
        for request, chunk in engine.chunks:
            self.done[request] += chunk
            self.read += chunk
            engine.tokens_waiting -= chunk
            if not self.unread(request):
                self.has_read(now, engine, request)
        self.start(now, engine)

    # ---- failures ----

    def fail(self, now, failure):
        """A decode unit stops: its step is lost, and some of its sequences must be read again."""
        engine = self.engines[failure.unit]
        engine.busy, engine.serial = True, engine.serial + 1
        engine.down = max(engine.down, now + failure.down)     # two failures may overlap
        self.at(engine.down, self.repaired, (engine, engine.serial))
        sequences = sorted(request for ended in engine.ends.values() for request in ended)
        spread = (round(i / failure.share) for i in range(len(sequences)))   # 1/4: each fourth one
        for request in [sequences[i] for i in spread if i < len(sequences)]:
            engine.ends[self.joined[request] + self.left[request]].remove(request)
            written = self.made[request] + (engine.step - self.joined[request]) * self.rate[request]
            self.leave(engine, request, self.prompt[request] + written)
            self.made[request] = int(written)              # a part of a token is lost
            self.written -= written - self.made[request]
            # Reading gives one token; then go on at the same speed.
            after = self.output[request] - self.made[request] - 1
            self.left[request] = math.ceil(after / self.rate[request])
            self.done[request] = self.cached[request]
            self.send_to_reader(now, request)

    def repaired(self, now, what):
        """The unit works again, unless it has failed once more."""
        engine, serial = what
        if serial == engine.serial:
            engine.busy = False
            self.start(now, engine)


def simulate(requests, units, handover=lambda tokens: 0.0, acceptance=None, seed=0, failures=()):
    """Serve all Requests by units -> Served.

    handover: seconds in which one GPU sends the latents of so many tokens. acceptance: see
    `decode_steps`; seed: of the accepted drafts. failures: of units for decoding alone. Raises
    ValueError if no unit can read, none can decode, a request fits into no unit, or a number is
    such that some request would never end.
    """
    check(requests)
    roles = {unit.role for unit in units}
    if not roles or roles - {"prefill", "decode", "both"} or len(roles) + ("both" in roles) != 2:
        raise ValueError(f"units have the roles {sorted(roles)}; give either units of role both, "
                         "or units of role prefill and units of role decode.")
    for number, unit in enumerate(units):
        needed = {"places": unit.places}
        if unit.role != "decode":
            needed |= {"budget": unit.budget, "chunk": unit.chunk}
        for name, value in needed.items():
            if not value >= 1:
                raise ValueError(f"unit {number} has {name}={value}; give at least 1.")
    longest = int((requests.prompt + requests.output).max())
    room = min(unit.room for unit in units)
    if longest > room:
        raise ValueError(f"a request has {longest:,} tokens, but a unit has room for {room:,}; "
                         "choose shorter requests, or units of more GPUs.")
    if any(units[failure.unit].role != "decode" for failure in failures):
        raise ValueError("a failure names a unit that reads prompts; choose a decode unit.")
    for failure in failures:
        if not (0 < failure.share <= 1 and 0 <= failure.down < math.inf):
            raise ValueError(f"a failure has share={failure.share} and down={failure.down}; give a "
                             "share above 0 and up to 1, and finite seconds.")
    return Simulation(requests, units, handover, acceptance, seed, failures).run()
