"""How a run is asked to stop: by Ctrl-C, by `kill`, by a closed terminal."""

import signal
import threading

# SIGHUP: the terminal is gone; SIGBREAK: the same on Windows. Not every system has all of them.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
           if hasattr(signal, name)]


class Stop:
    """Within this context the first signal that asks a Trainer to stop ends it after its step.

    A second Ctrl-C has its usual effect. The other signals have not, because a terminal that
    closes may send several. Signals that are ignored, as under `nohup`, stay so; and outside the
    main thread, which alone gets signals, nothing is changed.
    """

    def __init__(self, trainer):
        self.trainer, self.usual = trainer, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # None: a handler that Python does not know and could not restore.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.usual[number] = signal.signal(number, self.note)

    def note(self, number, _):
        """Remember that the run is to stop; after Ctrl-C the next one does what it usually does."""
        self.trainer.interrupted, self.trainer.signal = True, number
        if number == signal.SIGINT:
            signal.signal(number, self.usual[number])

    def __exit__(self, *_):
        for number, handler in self.usual.items():
            signal.signal(number, handler)
