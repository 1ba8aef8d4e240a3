"""How long a run takes: planned before it, printed after its first steps, then monitored."""

import copy
import math
import statistics
import time

import torch

from ..command import UserError
from ..device import clock, disturbance, reads_are_free, send
from ..measure.evaluate import bits_per_byte, evaluate

FIRST = 10                                       # steps after which a run prints its length
SLOW = 2.0                                       # times its best step: another program runs
DISTURBED = 1.5                                  # the same for a matrix product, at the start


class TooFewMinutes(UserError):
    """No time is left to train; `least` minutes would leave some."""

    def __init__(self, minutes, spent, least):
        self.least = math.ceil(10 * least) / 10
        super().__init__(f"--minutes {minutes:g} leave no time to train: to start and to evaluate "
                         f"take {duration(spent)} on this machine; give at least {self.least}.")


class Pace:
    """The seconds of a run's steps; `note` returns a line for the user, or None."""

    def __init__(self, trainer):
        self.trainer, self.seconds, self.best, self.complained = trainer, [], float("inf"), False

    def note(self, seconds):
        """Note the seconds of the step just made -> a line for the user, or None."""
        # Per sequence, because steps at the beginning of a run may have fewer of them.
        self.seconds.append(seconds / self.trainer.sizes[self.trainer.step - 1])
        if len(self.seconds) % FIRST:
            return None
        recent = statistics.median(self.seconds[-FIRST:])
        self.best = min(self.best, recent)
        lines = [self.prospect(recent)] if len(self.seconds) == FIRST else []
        if not self.complained:
            lines.append(self.slowness(recent))
            self.complained = lines[-1] is not None
        return "\n".join(line for line in lines if line) or None

    def prospect(self, recent):
        """How long the rest takes, from recent seconds per sequence; None near the end."""
        sizes, step = self.trainer.sizes, self.trainer.step
        if len(sizes) - step < FIRST:
            return None
        return (f"{recent * sizes[step - 1]:.2g} s a step: about "
                f"{duration(recent * sum(sizes[step:]))} of training to go")

    def slowness(self, recent):
        """Why steps are slower than they could be, as a line, or None."""
        on_cpu = reads_are_free(self.trainer.device)
        advice = "another program is probably busy; close it" + (
            ", or stop with Ctrl-C and go on with --resume --threads 1."
            if on_cpu and torch.get_num_threads() > 1 else ".")
        if recent > SLOW * self.best:
            return (f"steps take {recent / self.best:.1f} times as long as they did before: "
                    + advice)
        if len(self.seconds) == FIRST and on_cpu:
            times = disturbance(self.trainer.device)
            if times > DISTURBED:
                return (f"a product of matrices takes {times:.1f} times as long as it does "
                        f"undisturbed: {advice}")
        return None


def duration(seconds):
    """A time in a convenient unit: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def seconds_a_step(trainer, until):
    """Seconds per optimiser step, from trial steps of one micro-batch that begin before `until`."""
    config, seconds = trainer.config, []
    size = min(config.batch_size, config.micro_batch)
    tokens = send(trainer.data.batches.take(0, size), trainer.device)          # (B, T+1)
    period = math.lcm(config.mtp_every, config.expert_every)   # steps after which all have moved
    while not seconds or (len(seconds) < FIRST and time.perf_counter() < until):
        start = clock(trainer.device)
        for number in range(period):
            trainer.update(tokens, 0.0, number)
        seconds.append((clock(trainer.device) - start) / period)
    step = statistics.median(seconds[1:] or seconds)     # the first is slow: new moments, kernels
    if size < config.batch_size:                 # other micro-batches add only gradients
        start = clock(trainer.device)
        trainer.update.rehearse(tokens)
        step += (config.batch_size / size - 1) * (clock(trainer.device) - start)
    return step


def plan_steps(trainer, minutes, begin):
    """How many steps this machine makes until `minutes` after `begin`, evaluation included.

    Takes some trial steps; afterwards the trainer is as it was before. begin: the time at which the
    program started, by time.perf_counter. Raises TooFewMinutes, a UserError.
    """
    config, data, before = trainer.config, trainer.data, copy.deepcopy(trainer.state())
    try:
        step = seconds_a_step(trainer, until=time.perf_counter() + 60 * minutes / 20)
    except FloatingPointError as error:          # a layer in 8 bits
        raise UserError(f"--minutes {minutes:g}: a first step fails, {error}; try a lower "
                        "learning_rate.") from None
    some = max(1, 8192 // config.window)         # windows
    few = data.inputs[:some], data.targets[:some], 1
    for _ in range(2):                           # the first time also loads kernels
        start = clock(trainer.device)
        evaluate(trainer.model, *few)
        bits_per_byte(trainer.model, *few)
        window = (clock(trainer.device) - start) / len(few[0])
    trainer.restore(before)
    # At the end raw and averaged weights are evaluated on everything; then pictures and a sample.
    rest = window * len(data.inputs) + 5.0
    # A quick evaluation comes every `eval_every` steps; see `Trainer.run`.
    quick = window / 2 * len(data.quick_sample()[0]) / config.eval_every
    share = sum(trainer.sizes) / len(trainer.sizes) / config.batch_size    # mean size of a step
    step = step * share + quick
    spent = time.perf_counter() - begin + rest
    steps = int((60 * minutes - spent) / step)
    if steps < FIRST:
        raise TooFewMinutes(minutes, spent, (spent + (FIRST + 1) * step) / 60)
    return steps
