"""The prefill and the decode process: what runs in each, and how their parent talks with them.

    parent --- requests, cancellations ---> prefill --- Handover bytes ---> decode
    parent <-- ready, alive, begun, cancelled --- prefill <--- taken --- decode
    parent --- cancellations ---> decode --- ready, alive, ended, cancelled ---> parent

Every arrow is a pipe. Its messages are JSON objects; the bytes of a request follow the object that
announces them. A process that ends closes its pipes, so the others notice at once. A process that
is stopped closes nothing. It is noticed because it no longer says that it is alive: a thread of its
own says so every second, also while the engine loads the model or computes.

The parent never waits at a pipe, so that no child can hold it up: one thread writes to each child,
one thread hears it.
"""

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import connection

import torch

from .. import hf
from ..command import UserError
from .handover import Decode, Handover, Prefill

BEAT = 1.0                                       # how often a process says that it is alive [s]


class Child:
    """A process as its parent sees it. What it says arrives in `inbox` as (name, message).

    The message is None when the process has ended.
    """

    def __init__(self, context, inbox, name, work, *arguments):
        self.name, self.inbox = name, inbox
        self.hears, says = context.Pipe(duplex=False)
        orders, self.orders = context.Pipe(duplex=False)
        threads = max(1, torch.get_num_threads() // 2)
        self.process = context.Process(target=run_child, name=name, daemon=True,
                                       args=(work, threads, says, orders, *arguments))
        self.theirs, self.writer = [says, orders], ThreadPoolExecutor(1)
        self.listener = threading.Thread(target=self.listen, daemon=True)

    def start(self):
        """Start the process and listen to it."""
        self.process.start()
        # A pipe ends with the process that holds its other end only if we hold no copy of it.
        for end in self.theirs:
            end.close()
        self.listener.start()

    def listen(self):
        """Put each message into the inbox; runs in a thread."""
        message = True
        while message is not None:
            message = hear(self.hears)
            self.inbox.put((self.name, message))

    def tell(self, data=None, **order):
        """Send an order, followed by the bytes `data` if there are any; never waits."""
        self.writer.submit(self.write, order, data)

    def write(self, order, data):
        """Send; an error means that the process has ended, which its listener notices."""
        with suppress(OSError):
            say(self.orders, **order)
            if data is not None:
                self.orders.send_bytes(data)

    def end(self):
        """End the process, stopped or not, and close the pipes."""
        if self.process.pid:
            self.process.kill()
            self.process.join()
        if self.listener.ident:
            self.listener.join()
        self.writer.shutdown(cancel_futures=True)
        for end in (self.hears, self.orders, *self.theirs):
            end.close()


class Heart:
    """The pipe to the parent, with a thread that says {"alive": true} every second.

    Two threads write to the pipe, so a lock keeps each message in one piece.
    """

    def __init__(self, pipe):
        self.pipe, self.lock, self.has_ended = pipe, threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self.beat, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.has_ended.set()
        self.thread.join()

    def send_bytes(self, data):
        """Send one message."""
        with self.lock:
            self.pipe.send_bytes(data)

    def beat(self):
        """Runs in the thread, until the work or the parent has ended."""
        with suppress(OSError):
            while not self.has_ended.wait(BEAT):
                say(self, alive=True)


def hear(pipe):
    """The next message; None if the other end is closed."""
    data = receive(pipe)
    return None if data is None else json.loads(data)


def receive(pipe):
    """The next bytes in a pipe, waited for; None if its other end is closed."""
    try:
        return pipe.recv_bytes()
    except (EOFError, OSError):
        return None


def say(pipe, **message):
    """Send a message."""
    pipe.send_bytes(json.dumps(message).encode())


def run_child(work, threads, says, *arguments):
    """Run either engine; what goes wrong is said to the parent, if there still is one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)                       # the parent handles Ctrl-C
    torch.set_num_threads(threads)
    with Heart(says) as parent:
        try:
            work(parent, *arguments)
        except (UserError, EOFError, OSError) as error:
            with suppress(OSError):
                say(parent, error=str(error) or type(error).__name__)


def await_end(orders):
    """The other process or the parent has ended. A parent that lives notices, and ends this one."""
    while receive(orders) is not None:
        pass


def run_prefill(parent, orders, folder, dtype, device, speculative, places, budget, hand_over,
                confirmed):
    """The prefill process: reads the requests that the parent sends, and sends the handovers."""
    prefill = Prefill(hf.load(folder, dtype, device), budget, speculative)
    say(parent, ready=True)
    under_way = 0
    with ThreadPoolExecutor(1) as sender:        # so that the next pass need not wait for the pipe
        while True:
            while pipes := connection.wait([orders, confirmed], timeout=(
                    0 if prefill.queue and under_way < places else None)):
                for pipe in pipes:
                    if pipe is orders:
                        has_ended = not obey_prefill(prefill, orders, parent)
                    else:
                        has_ended = receive(confirmed) is None
                        under_way -= 1
                    if has_ended:
                        return await_end(orders)
            for handover in prefill.step(places - under_way):
                under_way += 1
                say(parent, begun=handover.number, nbytes=handover.nbytes,
                    expanded=handover.expanded_nbytes(prefill.model.config))
                # An error here means that decode has ended, so the result is not needed.
                sender.submit(hand_over.send_bytes, handover.to_bytes())


def obey_prefill(prefill, orders, parent):
    """Queue a request, or cancel one -> False if the parent has ended.

    A request that is not in the queue has been handed over: the parent asks decode, too.
    """
    order = hear(orders)
    if order is None:
        return False
    if "read" in order:
        handover = Handover.from_bytes(orders.recv_bytes())
        prefill.add(handover.sequence, handover.number)
    elif prefill.cancel(order["cancel"]):
        say(parent, cancelled=order["cancel"], new=[])
    return True


def run_decode(parent, orders, folder, dtype, device, speculative, places, max_len, handovers,
               confirm):
    """The decode process: between two passes it takes as many handovers as it has free places."""
    decode = Decode(hf.load(folder, dtype, device), places, max_len, speculative)
    say(parent, ready=True)
    inside, newest, awaited = {}, -1, set()      # handovers come in the order of their numbers
    while True:
        while pipes := connection.wait([orders, handovers] if decode.free else [orders],
                                       timeout=None if decode.is_idle else 0):
            # A cancellation comes first: it may be about the handover beside it.
            data = receive(orders if orders in pipes else handovers)
            if data is None:
                return await_end(orders)
            if orders in pipes:
                number = json.loads(data)["cancel"]
                if number in inside:
                    sequence = inside.pop(number)
                    decode.cancel(sequence)
                    say(parent, cancelled=number, new=sequence.new)
                elif number > newest:
                    awaited.add(number)
                continue
            handover = Handover.from_bytes(data)
            newest = handover.number
            with suppress(OSError):              # prefill may have ended
                confirm.send_bytes(b"taken")
            if newest in awaited:
                awaited.remove(newest)
                say(parent, cancelled=newest, new=handover.sequence.new)
            else:
                decode.admit(handover)
                inside[newest] = handover.sequence
        ended = set(decode.step())
        for number in [number for number, sequence in inside.items() if sequence in ended]:
            say(parent, ended=number, new=inside.pop(number).new)
