"""Serve many requests with prefill and decode in one process, or in two (report, section 3.4).

    colocated    one process takes turns: a pass of Prefill, a pass of Decode
    separated    requests -> [process: Prefill] -- Handover bytes --> [process: Decode] -> texts

Both are timed from outside: a request's clock starts when it arrives and is read when whoever asked
is told of its first token, and of its last. Messages run one way only, from the prefill process to
the decode process and from both to their parent, so nobody can wait in a circle; and whoever dies
closes its pipes, which the parent notices at once.
"""

import json
import multiprocessing
import signal
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import connection

import torch

from .. import hf
from ..command import UserError
from .handover import Decode, Handover, Prefill


class Served:
    """What became of the requests, and when it was known."""

    def __init__(self, requests, arrivals, progress):
        self.arrivals = list(arrivals or [0.0] * len(requests))        # seconds after `begin`
        if not requests or len(self.arrivals) != len(requests):
            raise UserError(f"{len(requests)} requests with {len(self.arrivals)} arrivals; give "
                            "at least one request, and a time for each.")
        self.progress, self.begin = progress, time.perf_counter()
        self.first, self.last, self.new = {}, {}, {}
        self.nbytes = self.expanded_nbytes = 0

    @property
    def unfinished(self):
        """How many requests have no text yet."""
        # Of two pipes the later news may come first, so an end alone is not enough.
        return len(self.arrivals) - min(len(self.first), len(self.new))

    def has_begun(self, number, nbytes, expanded_nbytes):
        """The first token of a request is there, and a handover of so many bytes is due."""
        self.first[number] = time.perf_counter() - self.begin - self.arrivals[number]
        self.nbytes += nbytes
        self.expanded_nbytes += expanded_nbytes

    def has_ended(self, number, new):
        """A request is answered."""
        self.last[number] = time.perf_counter() - self.begin - self.arrivals[number]
        self.new[number] = new
        if self.progress:
            self.progress()

    def figures(self):
        """Medians and 95th percentiles [ms], tokens per second, bytes handed over."""
        seconds = max(last + self.arrivals[i] for i, last in self.last.items())
        waits = list(self.first.values())
        paces = [(self.last[i] - self.first[i]) / (len(new) - 1)
                 for i, new in self.new.items() if len(new) > 1]
        figures = {}
        for name, values in (("first_token", waits), ("per_token", paces or [0.0])):
            for share, label in ((0.5, "median"), (0.95, "95")):
                quantile = torch.tensor(values).quantile(share).item()
                figures[f"{name}_ms_{label}"] = round(1000 * quantile, 1)
        tokens = sum(map(len, self.new.values()))
        return figures | {"seconds": round(seconds, 2), "tokens_per_s": round(tokens / seconds, 1),
                          "handed_over_bytes": self.nbytes,
                          "expanded_bytes": self.expanded_nbytes}


def room_for(requests, speculative):
    """Tokens of the longest text, drafts that look beyond its end included."""
    return max(len(request.tokens) + request.limit for request in requests) + speculative


def let_in(prefill, coming, begin, may_sleep):
    """Queue the requests (arrival, sequence) that are due; may_sleep: wait for one."""
    if coming and may_sleep:
        time.sleep(max(0.0, coming[0][0] - (time.perf_counter() - begin)))
    while coming and coming[0][0] <= time.perf_counter() - begin:
        prefill.add(coming.popleft()[1])


def serve_colocated(model, requests, places=16, budget=256, speculative=0, arrivals=None,
                    progress=None):
    """Serve Sequences, which change by it, by both engines in turn -> Served.

    arrivals: when each comes [s], ascending; None: all at once. progress: called at every end.
    """
    served = Served(requests, arrivals, progress)
    prefill = Prefill(model, budget, speculative)
    places = min(places, len(requests))
    decode = Decode(model, places, room_for(requests, speculative), speculative)
    numbers = {request: number for number, request in enumerate(requests)}
    coming = deque(zip(served.arrivals, requests))
    while served.unfinished:
        let_in(prefill, coming, served.begin, not prefill.queue and decode.is_idle)
        for handover in prefill.step():
            served.has_begun(handover.number, handover.nbytes,
                             handover.expanded_nbytes(model.config))
            decode.admit(handover)
        for sequence in decode.step():
            served.has_ended(numbers[sequence], sequence.new)
    return served


def serve_separated(folder, requests, places=16, budget=256, speculative=0, arrivals=None,
                    progress=None, dtype=None, device="cpu"):
    """Serve Sequences by two processes, which load the checkpoint in `folder` -> Served.

    dtype None keeps the file's. Raises ChildProcessError, never hangs, if one of the two dies.
    """
    context = multiprocessing.get_context("spawn")                     # on every system the same
    served = Served(requests, arrivals, progress)
    data = [Handover(i, request, torch.empty(0)).to_bytes() for i, request in enumerate(requests)]
    wait_for_go, go = context.Pipe(duplex=False)
    handovers, hand_over = context.Pipe(duplex=False)
    hear_prefill, prefill_says = context.Pipe(duplex=False)
    hear_decode, decode_says = context.Pipe(duplex=False)
    shared = (max(1, torch.get_num_threads() // 2), folder, dtype, device, speculative)
    prefill = context.Process(target=child, name="prefill", daemon=True, args=(
        run_prefill, prefill_says, *shared, budget, wait_for_go, hand_over, data, served.arrivals))
    decode = context.Process(target=child, name="decode", daemon=True, args=(
        run_decode, decode_says, *shared, min(places, len(requests)),
        room_for(requests, speculative), handovers))
    try:
        prefill.start()
        decode.start()
        # Only with our copies closed does a pipe end when the process at its other end does.
        for end in (wait_for_go, handovers, hand_over, prefill_says, decode_says):
            end.close()
        listen({hear_prefill: prefill, hear_decode: decode}, go, served)
    finally:
        for process in (prefill, decode):
            if process.pid:
                process.kill()
                process.join()
        for end in (go, hear_prefill, hear_decode):
            end.close()
    return served


def listen(wires, go, served):
    """Note what the processes say, {pipe: process}, until all requests are answered.

    They say, as JSON, that they are ready, which request has begun or ended, or what went wrong.
    """
    ready = 0
    while served.unfinished:
        # Looked up before listening: whatever they said before they died is then heard first.
        dead = [process for process in wires.values() if process.exitcode is not None]
        alive = [process.sentinel for process in wires.values() if process not in dead]
        heard = connection.wait([*wires, *alive], timeout=1)
        for wire, process in list(wires.items()):
            said = hear(wire) if wire in heard else {}
            if said is None or (not said and process in dead):
                check_end(process, served)
                del wires[wire]
            elif "error" in said:
                raise ChildProcessError(f"the {process.name} process: {said['error']}")
            elif "ready" in said:
                ready += 1
                if ready == 2:
                    served.begin = time.perf_counter()
                    go.send_bytes(b"go")
            elif "begun" in said:
                served.has_begun(said["begun"], said["nbytes"], said["expanded"])
            elif "ended" in said:
                served.has_ended(said["ended"], said["new"])


def check_end(process, served):
    """ChildProcessError, unless it is prefill, which ends first, and has done its work."""
    process.join(timeout=5)
    if process.name != "prefill" or process.exitcode != 0:
        raise ChildProcessError(
            f"the {process.name} process ended (exit code {process.exitcode}) with "
            f"{served.unfinished} of {len(served.arrivals)} requests unfinished; see what it said "
            "above. If it said nothing, free some memory, or choose fewer --places; start again.")


def hear(wire):
    """The next message; None if its process has ended."""
    try:
        return json.loads(wire.recv_bytes())
    except (EOFError, OSError):
        return None


def say(wire, **words):
    """Tell the parent."""
    wire.send_bytes(json.dumps(words).encode())


def child(work, parent, threads, folder, dtype, *arguments):
    """Either process: load the model, work, and leave quietly when the others are gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)                       # Ctrl-C is the parent's
    torch.set_num_threads(threads)
    try:
        work(parent, folder, dtype, *arguments)
    except (UserError, EOFError, OSError) as error:
        with suppress(OSError):
            say(parent, error=str(error) or type(error).__name__)


def run_prefill(parent, folder, dtype, device, speculative, budget, wait_for_go, hand_over, data,
                arrivals):
    """The prefill process: requests come by the clock, handovers go to the other process."""
    prefill = Prefill(hf.load(folder, dtype, device), budget, speculative)
    coming = deque(zip(arrivals, (Handover.from_bytes(each).sequence for each in data)))
    say(parent, ready=True)
    wait_for_go.recv_bytes()
    begin = time.perf_counter()
    with ThreadPoolExecutor(1) as sender:        # so that the next pass need not wait for the pipe
        while coming or prefill.queue:
            let_in(prefill, coming, begin, may_sleep=not prefill.queue)
            for handover in prefill.step():
                say(parent, begun=handover.number, nbytes=handover.nbytes,
                    expanded=handover.expanded_nbytes(prefill.model.config))
                # If it fails the other process is gone, and the parent knows.
                sender.submit(hand_over.send_bytes, handover.to_bytes())


def run_decode(parent, folder, dtype, device, speculative, places, max_len, handovers):
    """The decode process: between any two passes it takes in what has arrived."""
    decode = Decode(hf.load(folder, dtype, device), places, max_len, speculative)
    say(parent, ready=True)
    numbers, is_open = {}, True
    while is_open or not decode.is_idle:
        while is_open and handovers.poll(None if decode.is_idle else 0):
            try:
                handover = Handover.from_bytes(handovers.recv_bytes())
            except (EOFError, OSError):          # the other process has ended
                is_open = False
            else:
                numbers[handover.sequence] = handover.number
                decode.admit(handover)
        for sequence in decode.step():
            say(parent, ended=numbers.pop(sequence), new=sequence.new)
