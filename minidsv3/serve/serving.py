"""Serve many requests with prefill and decode in one process, or in two (report, section 3.4).

    colocated    one process takes turns: a pass of Prefill, a pass of Decode
    separated    requests -> [process: Prefill] -- Handover bytes --> [process: Decode] -> texts

Both forms are timed from outside. The clock of a request starts when the request arrives; it is
read when the parent hears of its first token, and again when it hears of its last.

Back-pressure: a request that finds no free place waits as tokens, not as latents. So memory does
not grow with the number of requests that wait.

    colocated    Prefill works on at most as many prompts as Decode has free places; each handover
                 joins at once, and none ever waits.
    separated    At most `places` handovers are under way: being read, sent, or waiting in the pipe.
                 Decode takes one from the pipe only when it has a free place, and confirms it. With
                 `places` handovers unconfirmed, Prefill waits for a confirmation. Until then it
                 reads on while Decode decodes.

The two cannot wait for each other: Decode waits only while it is idle, and then takes whatever
comes; Prefill waits only while `places` handovers are coming. A process that ends closes its pipes,
so the others notice at once.
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
    """The text of each request, and the times from its arrival to its first and last token [s]."""

    def __init__(self, requests, arrivals, progress):
        self.arrivals = list(arrivals or [0.0] * len(requests))        # seconds after `begin`
        if not requests or len(self.arrivals) != len(requests):
            raise ValueError(f"{len(requests)} requests with {len(self.arrivals)} arrivals; give "
                             "at least one request, and a time for each.")
        self.progress, self.begin = progress, time.perf_counter()
        self.first, self.last, self.new = {}, {}, {}
        self.nbytes = self.expanded_nbytes = 0

    @property
    def unfinished(self):
        """How many requests have no text yet."""
        # The two pipes are not in step: an end may be heard before the first token of its request.
        return len(self.arrivals) - min(len(self.first), len(self.new))

    def has_begun(self, number, nbytes, expanded_nbytes):
        """Note that the first token of a request is known; its handover has so many bytes."""
        self.first[number] = time.perf_counter() - self.begin - self.arrivals[number]
        self.nbytes += nbytes
        self.expanded_nbytes += expanded_nbytes

    def has_ended(self, number, new):
        """Note that the text of a request is complete."""
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
    """Tokens of the longest prompt with its text, and with drafts that reach beyond its end."""
    return max(len(request.tokens) + request.limit for request in requests) + speculative


def add_arrived(prefill, coming, begin, may_sleep):
    """Add the requests (arrival, sequence) that have arrived; may_sleep: wait for the next one."""
    if coming and may_sleep:
        time.sleep(max(0.0, coming[0][0] - (time.perf_counter() - begin)))
    while coming and coming[0][0] <= time.perf_counter() - begin:
        prefill.add(coming.popleft()[1])


def serve_colocated(model, requests, places=16, budget=256, speculative=0, arrivals=None,
                    progress=None):
    """Serve Sequences, which it changes, with both engines in turn -> Served.

    arrivals: when each arrives [s], ascending; None: all at once. progress: called after each text.
    """
    served = Served(requests, arrivals, progress)
    prefill = Prefill(model, budget, speculative)
    places = min(places, len(requests))
    decode = Decode(model, places, room_for(requests, speculative), speculative)
    numbers = {request: number for number, request in enumerate(requests)}
    coming = deque(zip(served.arrivals, requests))
    while served.unfinished:
        add_arrived(prefill, coming, served.begin, not prefill.queue and decode.is_idle)
        for handover in prefill.step(decode.free):
            served.has_begun(handover.number, handover.nbytes,
                             handover.expanded_nbytes(model.config))
            decode.admit(handover)
        for sequence in decode.step():
            served.has_ended(numbers[sequence], sequence.new)
    return served


def serve_separated(folder, requests, places=16, budget=256, speculative=0, arrivals=None,
                    progress=None, dtype=None, device="cpu"):
    """Serve Sequences with two processes, which load the checkpoint in `folder` -> Served.

    dtype None keeps the file's. If one of the two dies this raises ChildProcessError, and does not
    hang.
    """
    context = multiprocessing.get_context("spawn")         # the one method that every system has
    served = Served(requests, arrivals, progress)
    data = [Handover(i, request, torch.empty(0)).to_bytes() for i, request in enumerate(requests)]
    wait_for_go, go = context.Pipe(duplex=False)
    handovers, hand_over = context.Pipe(duplex=False)
    confirmed, confirm = context.Pipe(duplex=False)
    hear_prefill, prefill_says = context.Pipe(duplex=False)
    hear_decode, decode_says = context.Pipe(duplex=False)
    shared = (max(1, torch.get_num_threads() // 2), folder, dtype, device, speculative,
              min(places, len(requests)))
    prefill = context.Process(target=run_child, name="prefill", daemon=True, args=(
        run_prefill, prefill_says, *shared, budget, wait_for_go, hand_over, confirmed, data,
        served.arrivals))
    decode = context.Process(target=run_child, name="decode", daemon=True, args=(
        run_decode, decode_says, *shared, room_for(requests, speculative), handovers, confirm))
    try:
        prefill.start()
        decode.start()
        # A pipe ends with the process that holds its other end only if we hold no copy of it.
        for end in (wait_for_go, handovers, hand_over, confirmed, confirm, prefill_says,
                    decode_says):
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


def listen(pipes, go, served):
    """Note what the processes say, {pipe: process}, until all texts are complete.

    Messages are JSON objects: a process is ready, a request has begun or ended, or an error.
    """
    ready = 0
    while served.unfinished:
        # Looked up before listening, so that what a process said before it died is heard first.
        dead = [process for process in pipes.values() if process.exitcode is not None]
        alive = [process.sentinel for process in pipes.values() if process not in dead]
        heard = connection.wait([*pipes, *alive], timeout=1)
        for pipe, process in list(pipes.items()):
            message = hear(pipe) if pipe in heard else {}
            if message is None or (not message and process in dead):
                check_end(process, served)
                del pipes[pipe]
            elif "error" in message:
                raise ChildProcessError(f"the {process.name} process: {message['error']}")
            elif "ready" in message:
                ready += 1
                if ready == 2:
                    served.begin = time.perf_counter()
                    go.send_bytes(b"go")
            elif "begun" in message:
                served.has_begun(message["begun"], message["nbytes"], message["expanded"])
            elif "ended" in message:
                served.has_ended(message["ended"], message["new"])


def check_end(process, served):
    """Raise ChildProcessError, unless it is the prefill process, which may end before decode."""
    process.join(timeout=5)
    if process.name != "prefill" or process.exitcode != 0:
        raise ChildProcessError(
            f"the {process.name} process ended (exit code {process.exitcode}) with "
            f"{served.unfinished} of {len(served.arrivals)} requests unfinished; see what it said "
            "above. If it said nothing, free some memory, or choose fewer --places; start again.")


def hear(pipe):
    """The next message; None if its process has ended."""
    data = receive(pipe, may_wait=True)
    return json.loads(data) if data else None


def receive(pipe, may_wait):
    """The next bytes in a pipe; b"" if there are none yet, None if its other end is closed.

    may_wait: wait until there are some, or the other end is closed.
    """
    try:
        return pipe.recv_bytes() if pipe.poll(None if may_wait else 0) else b""
    except (EOFError, OSError):
        return None


def say(pipe, **message):
    """Send a message to the parent."""
    pipe.send_bytes(json.dumps(message).encode())


def run_child(work, parent, threads, *arguments):
    """Run either engine; what goes wrong is said to the parent, if there still is one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)                       # the parent handles Ctrl-C
    torch.set_num_threads(threads)
    try:
        work(parent, *arguments)
    except (UserError, EOFError, OSError) as error:
        with suppress(OSError):
            say(parent, error=str(error) or type(error).__name__)


def run_prefill(parent, folder, dtype, device, speculative, places, budget, wait_for_go, hand_over,
                confirmed, data, arrivals):
    """The prefill process: adds requests as they arrive, reads them, and sends the handovers."""
    prefill = Prefill(hf.load(folder, dtype, device), budget, speculative)
    coming = deque(zip(arrivals, (Handover.from_bytes(each).sequence for each in data)))
    say(parent, ready=True)
    wait_for_go.recv_bytes()
    begin, under_way = time.perf_counter(), 0
    with ThreadPoolExecutor(1) as sender:        # so that the next pass need not wait for the pipe
        while coming or prefill.queue:
            while taken := receive(confirmed, may_wait=prefill.queue and under_way == places):
                under_way -= 1
            if taken is None:                    # decode has ended, which the parent notices
                return
            add_arrived(prefill, coming, begin, may_sleep=not prefill.queue)
            for handover in prefill.step(places - under_way):
                under_way += 1
                say(parent, begun=handover.number, nbytes=handover.nbytes,
                    expanded=handover.expanded_nbytes(prefill.model.config))
                # An error here means that decode has ended, so the result is not needed.
                sender.submit(hand_over.send_bytes, handover.to_bytes())


def run_decode(parent, folder, dtype, device, speculative, places, max_len, handovers, confirm):
    """The decode process: between two passes it takes as many handovers as it has free places."""
    decode = Decode(hf.load(folder, dtype, device), places, max_len, speculative)
    say(parent, ready=True)
    numbers, is_open = {}, True
    while is_open or not decode.is_idle:
        while is_open and decode.free:
            data = receive(handovers, may_wait=decode.is_idle)
            if not data:
                is_open = data is not None       # the pipe ends with the prefill process
                break
            handover = Handover.from_bytes(data)
            numbers[handover.sequence] = handover.number
            decode.admit(handover)
            with suppress(OSError):              # prefill ends when all requests are handed over
                confirm.send_bytes(b"taken")
        for sequence in decode.step():
            say(parent, ended=numbers.pop(sequence), new=sequence.new)
