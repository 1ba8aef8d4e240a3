"""The separated form while it is in use: requests given up, 1,000 requests, a stopped process."""

import multiprocessing
import os
import signal
import time

import pytest
import torch

from minidsv3.infer import generate
from minidsv3.infer.decoder import Sequence
from minidsv3.serve import serving
from minidsv3.serve.serving import serve_separated

pytestmark = pytest.mark.multi


def text_of(model, tokens, new):
    """The oracle: the text of one request, made by itself in this process."""
    return generate(model, [torch.tensor(tokens)], new, stop=()).tokens[0].tolist() if new else []


def test_given_up_requests_leave_and_the_others_do_not_change(model, folder, capfd):
    """Oracle: `generate`. With one place, request 0 is decoded and would take very long; 1 is
    handed over and waits in the pipe; 2 waits to be read, 5 outside; 6 is too long and refused.
    """
    limits, ends, calls = [4000, 5, 5, 5, 5, 5, 5000, 5], [], []

    def cancel():
        calls.append(len(ends))
        if len(calls) == 1:
            return [2, 5]
        return [0, 1] if calls.count(1) == 40 else []

    requests = [Sequence([7 + i] * 9, new, ()) for i, new in enumerate(limits)]
    served = serve_separated(folder, requests, 1, cancel=cancel, progress=lambda: ends.append(1))
    assert served.cancelled == {0, 1, 2, 5} and len(ends) == 8
    lengths = [len(served.new[i]) for i in range(8)]
    assert 1 < lengths[0] < 4000 and lengths[1] == 1 and lengths[2] <= 1 and lengths[5] == 0
    assert lengths[3] == lengths[4] == lengths[7] == 5
    for i, length in enumerate(lengths):
        assert served.new[i] == text_of(model, requests[i].tokens, length)
    assert list(served.refused) == [6] and "5,009 tokens are more than 64 times the 64" in (
        served.refused[6])
    assert "4,009 tokens are more than the 64" in capfd.readouterr().err
    assert not multiprocessing.active_children()


def test_1000_requests_are_answered_once_and_never_all_inside(model, folder):
    """Oracle: `generate` for each kind of request; counts of those taken and not answered."""
    most, ends = [], []

    def crowd():
        for i in range(1000):
            most.append(i + 1 - len(ends))
            yield Sequence([5 + i % 7] * (1 + i % 5), 1 + i % 2, ())

    served = serve_separated(folder, crowd(), 8, progress=lambda: ends.append(1))
    assert len(ends) == len(served.new) == len(served.first) == 1000 and max(most) == 24
    texts = [text_of(model, [5 + i % 7] * (1 + i % 5), 1 + i % 2) for i in range(70)]
    assert [served.new[i] for i in range(1000)] == [texts[i % 70] for i in range(1000)]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process")
@pytest.mark.parametrize("victim, patience", [("prefill", serving.PATIENCE), ("decode", 2.0)])
def test_a_stopped_process_is_noticed(folder, monkeypatch, victim, patience):
    """Oracle: the message, at most 10 s after SIGSTOP; both processes are gone."""
    monkeypatch.setattr(serving, "PATIENCE", patience)
    stopped, children = [], []

    def stop_once():
        if not stopped:
            stopped.append(time.monotonic())
            children.extend(multiprocessing.active_children())
            os.kill(next(each.pid for each in children if each.name == victim), signal.SIGSTOP)

    requests = [Sequence([5 + i % 9] * 9, 12, ()) for i in range(64)]
    arrivals = [0.0] * 8 + [3600.0] * 56         # with nothing to do, the other one is silent too
    with pytest.raises(ChildProcessError) as caught:
        serve_separated(folder, requests, 4, arrivals=arrivals, progress=stop_once)
    assert time.monotonic() - stopped[0] < 10
    text = str(caught.value)
    assert text.startswith(f"the {victim} process has said nothing for {patience:.0f} s, with ")
    assert " of 64 requests unfinished; it was stopped, or" in text and "start again" in text
    assert len(children) == 2 and all(each.exitcode is not None for each in children)
    assert not multiprocessing.active_children()
