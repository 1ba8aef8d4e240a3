"""The runs of a study: one in its folder, and many in parallel, in processes of their own.

They survive Ctrl-C and a killed process.
"""

import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch
from tqdm import tqdm

from ..command import SafeStream, UserError
from ..train.checkpoint import RunFolder
from ..train.owner import owned
from ..train.prepare import make_trainer
from ..train.stop import Stop

CPU = torch.device("cpu")


def train(config, recipe, folder, device=CPU):
    """Train a model in a run folder, unless it is finished; an unfinished one goes on.

    After Ctrl-C the run is saved, and this process ends as Ctrl-C ends any other.
    """
    if (folder / "summary.json").exists():
        return
    with owned(folder):
        resume = (folder / "state.pt").exists()
        run_folder = RunFolder(folder, resume)
        saved = run_folder.load_state() if resume else None
        summary = make_trainer(config, recipe, run_folder, device, saved).run()
    if summary is None:
        # Else this process would begin the next run of the study. It may ignore Ctrl-C.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)


def begin_process():
    """What a process of a study begins with: Ctrl-C ends it at once, unless it is ignored."""
    sys.stderr = SafeStream(sys.stderr)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class StopAll(Stop):
    """Within this context a signal that asks this process to stop asks its processes, too.

    Their runs finish their step and save. Without it they would go on alone. On Windows nothing is
    sent: there Ctrl-C reaches them by itself, and `terminate` would not let them save.
    """

    def __init__(self):
        super().__init__(None)

    def note(self, number, _):
        """Ask all of them, then end the work as Ctrl-C does."""
        for process in multiprocessing.active_children() if sys.platform != "win32" else ():
            process.terminate()
        raise KeyboardInterrupt(number)


def run_all(function, tasks, jobs, keep=lambda result: None):
    """Call function(*task) for each of the tasks, `jobs` at once, in processes of their own.

    The function stores its own result, so that it is kept if another one fails. Or keep(result)
    does, which is called in this process, one at a time, so that all results can share a file.
    Raises UserError if a process was killed, KeyboardInterrupt after a signal.
    """
    spawn = multiprocessing.get_context("spawn")
    if jobs > 1:
        os.environ["TQDM_DISABLE"] = "1"         # in the processes, whose bars would overlap
    with (ProcessPoolExecutor(jobs, spawn, begin_process) as pool, StopAll(),
          tqdm(total=len(tasks), unit="run", disable=not tasks) as bar):
        under_way = [pool.submit(function, *task) for task in tasks]
        try:
            for done in as_completed(under_way):
                keep(done.result())
                bar.update()
        except BrokenProcessPool:
            raise UserError("the process of a run was killed; if memory ran out, take fewer "
                            "--jobs. Finished runs are kept; repeat the command.") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
