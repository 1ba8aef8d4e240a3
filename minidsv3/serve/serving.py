"""Serve many requests with prefill and decode in one process, or in two (report, section 3.4).

    colocated    one process takes turns: a pass of Prefill, a pass of Decode
    separated    requests -> [process: Prefill] -- Handover bytes --> [process: Decode] -> texts

Both forms are timed from outside. The clock of a request starts when the request arrives; it is
read when the parent hears of its first token, and again when it hears of its last.

Back-pressure: a request that finds no free place waits as tokens, not as latents, and most wait
outside, with the caller (`door.py`). So memory does not grow with the number of requests.

    colocated    `places` requests are inside. Prefill works on at most as many prompts as Decode
                 has free places; each handover joins at once, and none ever waits.
    separated    3 * `places` requests are inside. Up to `places` of them are decoded, and up to
                 `places` handovers are under way: being read, sent, or waiting in the pipe. The
                 others are those that Prefill reads next. Decode takes a handover from the pipe
                 only when it has a free place, and confirms it. With `places` handovers
                 unconfirmed, Prefill waits; until then it reads on while Decode decodes.

The two cannot wait for each other: Decode waits only while it is idle, and then takes whatever
comes; Prefill waits only while `places` handovers are coming, or while it has nothing to read.

A request that its user gives up leaves wherever it is, between two passes, with the text it has. A
handover that is under way is dropped when Decode takes it from the pipe. `processes.py` has what
runs in the two processes.
"""

import multiprocessing
import queue
import time
from contextlib import suppress

import torch

from .. import hf
from .door import Door, room_for
from .handover import Decode, Handover, Prefill
from .processes import Child, run_decode, run_prefill

PATIENCE = 7.0                                   # a silent process is given up after this time [s]
PATIENCE_AT_START = 120.0                        # before its first word: it imports torch
LOOK = 0.5                                       # how often the parent looks whether all live [s]


def serve_colocated(model, requests, places=16, budget=256, speculative=0, arrivals=None,
                    progress=None, cancel=None, max_len=None):
    """Serve Sequences, which it changes, with both engines in turn -> Served.

    requests, arrivals and cancel: see Door. progress: called whenever a request has left. max_len:
    tokens of the longest prompt with its text; by default the longest in a list of requests, and
    the model's window if they come from an iterator.
    """
    room = max_len or room_for(requests, model.config)
    door = Door(requests, arrivals, cancel, places, model.config, room, progress)
    served, numbers = door.served, {}
    prefill = Prefill(model, budget, speculative)
    # Drafts may reach beyond the end of the longest text.
    decode = Decode(model, min(places, door.count or places), room + speculative, speculative)
    while not door.is_done:
        for number, sequence in door.let_in():
            prefill.add(sequence, number)
            numbers[sequence] = number
        for number in door.given_up():
            sequence = door.inside[number]
            if not prefill.cancel(number):
                decode.cancel(sequence)
            door.leave(numbers.pop(sequence), sequence.new, is_cancelled=True)
        if not door.inside and not door.is_done:
            time.sleep(door.pause)
        for handover in prefill.step(decode.free):
            served.has_begun(handover.number, handover.nbytes,
                             handover.expanded_nbytes(model.config))
            decode.admit(handover)
        for sequence in decode.step():
            door.leave(numbers.pop(sequence), sequence.new)
    return served


def serve_separated(folder, requests, places=16, budget=256, speculative=0, arrivals=None,
                    progress=None, dtype=None, device="cpu", cancel=None, max_len=None):
    """Serve Sequences with two processes, which load the checkpoint in `folder` -> Served.

    The settings are those of `serve_colocated`; dtype None keeps the file's. If one of the two
    dies, is stopped or hangs, this raises ChildProcessError and ends both.
    """
    context = multiprocessing.get_context("spawn")         # the one method that every system has
    config = hf.stored_config(folder)
    room = max_len or room_for(requests, config)
    door = Door(requests, arrivals, cancel, 3 * places, config, room, progress)
    shared = folder, dtype, device, speculative, min(places, door.count or places)
    handovers, hand_over = context.Pipe(duplex=False)
    confirmed, confirm = context.Pipe(duplex=False)
    inbox = queue.SimpleQueue()
    prefill = Child(context, inbox, "prefill", run_prefill, *shared, budget, hand_over, confirmed)
    decode = Child(context, inbox, "decode", run_decode, *shared, room + speculative, handovers,
                   confirm)
    try:
        prefill.start()
        decode.start()
        for end in (handovers, hand_over, confirmed, confirm):
            end.close()
        Supervisor(prefill, decode, door).run(inbox)
    finally:
        prefill.end()
        decode.end()
    return door.served


class Supervisor:
    """The parent's part: hands requests and cancellations on, and notes what the two say."""

    def __init__(self, prefill, decode, door):
        self.prefill, self.decode, self.door, self.served = prefill, decode, door, door.served
        self.loading = {prefill.name, decode.name}
        self.cancelling = set()                  # numbers that prefill was told to cancel
        self.early = {}                          # texts that were complete before we heard of them

    def run(self, inbox):
        """Until all requests have left. Raises ChildProcessError if a process fails."""
        watch = Watch([self.prefill.name, self.decode.name])
        while not self.door.is_done:
            if not self.loading:
                self.hand_on()
            for name, message in news(inbox, min(LOOK, self.door.pause)):
                watch.has_spoken(name)
                self.note(name, message)
            if silent := watch.too_silent():
                raise ChildProcessError(
                    f"the {silent} process has said nothing for {watch.silences[silent]:.0f} s, "
                    f"{self.open_requests()}; it was stopped, or its machine is overloaded. Both "
                    "processes were ended; start again.")

    def hand_on(self):
        """Send prefill what the door lets in; send cancellations to the process that can obey."""
        for number, sequence in self.door.let_in():
            data = Handover(number, sequence, torch.empty(0)).to_bytes()
            self.prefill.tell(data, read=number)
        for number in self.door.given_up():
            if number in self.served.first:
                self.decode.tell(cancel=number)
            else:
                self.prefill.tell(cancel=number)
                self.cancelling.add(number)

    def note(self, name, message):
        """Note one message of a process; None: it has ended."""
        if message is None:
            raise ChildProcessError(self.describe_end(name))
        if "error" in message:
            raise ChildProcessError(f"the {name} process: {message['error']}")
        if "ready" in message:
            self.loading.remove(name)
            self.served.begin = time.perf_counter()
        elif "begun" in message:
            self.has_begun(message["begun"], message["nbytes"], message["expanded"])
        elif "cancelled" in message:
            self.cancelling.discard(message["cancelled"])
            self.door.leave(message["cancelled"], message["new"], is_cancelled=True)
        elif "ended" in message:
            self.early[message["ended"]] = message["new"]
            self.let_out(message["ended"])

    def has_begun(self, number, nbytes, expanded_nbytes):
        """The handover of a request is under way; decode must hear that it was given up."""
        self.served.has_begun(number, nbytes, expanded_nbytes)
        if number in self.cancelling:
            self.cancelling.remove(number)
            self.decode.tell(cancel=number)
        self.let_out(number)

    def let_out(self, number):
        """A request leaves when prefill has said that it has begun, and decode that it has ended.

        The two are not in step, so the end may be heard first.
        """
        if number in self.early and number in self.served.first:
            self.door.leave(number, self.early.pop(number))

    def open_requests(self):
        """How many requests have not left, in words."""
        total = self.door.count or self.door.taken
        return f"with {self.door.unfinished} of {total} requests unfinished"

    def describe_end(self, name):
        """One line about a process that has ended too early."""
        process = {child.name: child.process for child in (self.prefill, self.decode)}[name]
        process.join(timeout=5)
        return (f"the {name} process ended (exit code {process.exitcode}) {self.open_requests()}; "
                "see what it said above. If it said nothing, free some memory, or choose fewer "
                "--places; start again.")


def news(inbox, seconds):
    """All that has been said and not heard; if there is nothing, wait for it so many seconds."""
    with suppress(queue.Empty):
        yield inbox.get(timeout=seconds)
        while True:
            yield inbox.get_nowait()


class Watch:
    """Adds up for how long each process has been silent.

    A long time between two looks counts as a short one: then the parent itself was stopped, and has
    not heard what the others said.
    """

    def __init__(self, names):
        self.silences = dict.fromkeys(names, 0.0)                      # [s]
        self.known, self.looked = set(), time.monotonic()

    def has_spoken(self, name):
        """A process is alive."""
        self.silences[name] = 0.0
        self.known.add(name)

    def too_silent(self):
        """The name of a process that has been silent for too long; None if there is none."""
        now = time.monotonic()
        passed, self.looked = min(now - self.looked, 2 * LOOK), now
        for name in self.silences:
            self.silences[name] += passed
            if self.silences[name] > (PATIENCE if name in self.known else PATIENCE_AT_START):
                return name
        return None
