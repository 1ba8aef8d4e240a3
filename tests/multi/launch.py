"""Start a function in several processes that torch.distributed connects, and collect the results.

    results = run_ranks(function, 4, *args)      function(rank, *args) on ranks 0 to 3

The function must be one of a module, not a local one: where fork is missing, it is pickled.
"""

import faulthandler
import multiprocessing
import pickle
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist


def run_ranks(function, world, *args, limit=60):
    """Call function(rank, *args) on `world` processes, connected by gloo -> results by rank.

    Raises AssertionError if a process raises, dies, or is not ready after `limit` seconds; the
    text has its traceback or its exit code. No process is left behind.
    """
    # Fork starts at once, because torch is loaded already; it is only safe without accelerators.
    forks = sys.platform == "linux" and not torch.accelerator.is_available()
    context = multiprocessing.get_context("fork" if forks else "spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        workers, ends = [], []
        try:
            for rank in range(world):
                end, theirs = context.Pipe(duplex=False)
                worker = context.Process(target=work, daemon=True, args=(
                    theirs, function, rank, world, meeting, limit, args))
                worker.start()
                theirs.close()                   # so that the pipe closes when the worker ends
                workers.append(worker)
                ends.append(end)
            return collect(workers, ends, time.monotonic() + limit)
        finally:
            for worker in workers:
                worker.kill()
                worker.join()


def work(end, function, rank, world, meeting, limit, args):
    """What each process does: join the group, call the function, send its result or traceback."""
    faulthandler.dump_traceback_later(limit, exit=True)      # shows where a rank hangs
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world,
                                timeout=timedelta(seconds=limit))
        answer = True, function(rank, *args)
        dist.barrier()                           # nobody leaves while another still needs it
    except BaseException:
        answer = False, traceback.format_exc()
    # Plain bytes: tensors sent through multiprocessing would stay in the memory of this process.
    end.send_bytes(pickle.dumps(answer))
    if dist.is_initialized():
        dist.destroy_process_group()


def collect(workers, ends, deadline):
    """The result of every rank; AssertionError with the reason of each rank that failed."""
    results, failures, waiting = {}, {}, dict(zip(ends, range(len(ends)), strict=True))
    while waiting:
        ready = wait(waiting, timeout=max(0, deadline - time.monotonic()))
        for end in ready:
            rank = waiting.pop(end)
            try:
                succeeded, answer = pickle.loads(end.recv_bytes())
            except EOFError:
                workers[rank].join()
                succeeded, answer = False, f"ended with exit code {workers[rank].exitcode}"
            (results if succeeded else failures)[rank] = answer
        if failures and ready:                   # others may fail in turn: wait a moment for them
            deadline = min(deadline, time.monotonic() + 0.5)
        if not ready:
            break
    if failures or waiting:
        late = {rank: "not ready in time" for rank in waiting.values()}
        reasons = failures if failures else late
        raise AssertionError("\n".join(f"rank {rank}: {reason}" for rank, reason
                                       in sorted(reasons.items())))
    return [results[rank] for rank in range(len(workers))]
