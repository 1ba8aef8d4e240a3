"""Requests that find no free place wait as tokens, not as latents: 40 requests for 4 places.

The separated form is tested without processes: each engine gets ends of pipes that the test plays.
"""

import itertools
import json
import multiprocessing
import threading

import pytest
import torch

from minidsv3.infer import generate
from minidsv3.infer.decoder import Sequence
from minidsv3.serve import processes
from minidsv3.serve.handover import Decode, Handover, Prefill
from minidsv3.serve.processes import run_decode, run_prefill
from minidsv3.serve.serving import serve_colocated
from tests.serve.conftest import End

COUNT, PLACES, MAX_LEN = 40, 4, 48


def prompts():
    """40 prompts of 1 to 30 tokens."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(5, 300, (1 + 7 * i % 30,), generator=generator) for i in range(COUNT)]


def requests():
    """Up to 1 to 12 new tokens for each prompt."""
    return [Sequence(prompt.tolist(), 1 + 5 * i % 12, {1}) for i, prompt in enumerate(prompts())]


@pytest.fixture(scope="module")
def alone(exact):
    """The text of each request, made by itself."""
    return {i: generate(exact, [prompt], 1 + 5 * i % 12, stop=(1,)).tokens[0].tolist()
            for i, prompt in enumerate(prompts())}


@pytest.mark.parametrize("budget", [7, 256])
def test_colocated_latents_never_exceed_the_places(exact, alone, monkeypatch, budget):
    """Oracle: prompts that Prefill has read or begun to read, minus texts that have ended.

    Between two passes every finished handover has been taken in by Decode.
    """
    made, taken, ended, latents = [], [], [], []
    step, admit = Prefill.step, Decode.admit

    def watched_step(self, most):
        assert len(made) == len(taken)
        made.extend(handovers := step(self, most))
        begun = sum(handover.latents.size(1) > 0 for handover in self.queue)
        latents.append(len(made) - len(ended) + begun)
        return handovers

    def watched_admit(self, handover):
        taken.append(handover)
        admit(self, handover)

    monkeypatch.setattr(Prefill, "step", watched_step)
    monkeypatch.setattr(Decode, "admit", watched_admit)
    served = serve_colocated(exact, requests(), PLACES, budget, progress=lambda: ended.append(1))
    assert max(latents) == PLACES and len(made) == len(taken) == len(ended) == COUNT
    assert served.new == alone


def orders_of(sequences):
    """The requests as the parent sends them to the prefill process: an object, then its bytes."""
    pairs = [(json.dumps({"read": i}).encode(), Handover(i, each, torch.empty(0)).to_bytes())
             for i, each in enumerate(sequences)]
    return [message for pair in pairs for message in pair]


def said(end, kind):
    """The numbers of all messages of one kind."""
    return [message[kind] for message in map(json.loads, end.sent) if kind in message]


def test_prefill_is_ahead_by_no_more_handovers_than_places(folder, monkeypatch):
    """Oracle: handovers said minus confirmed ones. Decode confirms one when prefill waits for it,
    and prefill waits only when it is ahead by 4, or has nothing to read.
    """
    parent, orders, sent, confirmed, waits = End(), End(*orders_of(requests())), End(), End(), []

    def wait(pipes, timeout):
        assert pipes == [orders, confirmed]
        if orders.messages:
            return [orders]
        begun = len(said(parent, "begun"))
        ahead = begun - len(waits)
        assert ahead <= PLACES and (timeout is None) == (ahead == PLACES or begun == COUNT)
        if timeout is None and len(waits) < COUNT:
            waits.append(ahead)
            confirmed.messages.append(b"taken")
            return [confirmed]
        return [confirmed] if timeout is None else []

    monkeypatch.setattr(processes.connection, "wait", wait)
    run_prefill(parent, orders, folder, None, "cpu", 0, PLACES, 40, sent, confirmed)
    assert waits[0] == PLACES and len(waits) == COUNT
    handovers = [Handover.from_bytes(data) for data in sent.sent]
    begun = said(parent, "begun")
    assert begun == [handover.number for handover in handovers] == list(range(COUNT))
    for handover, prompt in zip(handovers, prompts()):
        assert handover.latents.size(1) == len(prompt) and len(handover.sequence.new) == 1


def test_prefill_ends_quietly_when_decode_has_ended(folder, monkeypatch):
    """Oracle: no error said, since the parent reports the other process; no more than 4 read."""
    parent, orders, confirmed, broken = End(), End(*orders_of(requests())), End(), End()
    monkeypatch.setattr(broken, "send_bytes", broken.recv_bytes)
    monkeypatch.setattr(processes.connection, "wait", lambda _, timeout: (
        [orders] if orders.messages else [] if timeout == 0 else [confirmed]))
    run_prefill(parent, orders, folder, None, "cpu", 0, PLACES, 40, broken, confirmed)
    assert said(parent, "ready") and len(parent.sent) == 1 + PLACES
    assert said(parent, "begun") == list(range(PLACES))


def test_decode_reads_its_pipe_only_while_it_has_a_free_place(exact, folder, alone, monkeypatch):
    """Oracle: handovers received minus texts that have ended; a pipe that is empty at every third
    look. Decode waits at the pipe only when it is idle. Nobody is left to confirm the last ones to.
    """
    prefill = Prefill(exact, 40)
    for request in requests():
        prefill.add(request)
    parent, orders, handovers, confirm = End(), End(), End(), End()
    while prefill.queue:
        handovers.messages.extend(each.to_bytes() for each in prefill.step(COUNT))
    held, looks = [], itertools.count()

    def wait(pipes, timeout):
        held.append(COUNT - len(handovers.messages) - len(said(parent, "ended")))
        assert (handovers in pipes) == (held[-1] < PLACES) and (timeout is None) == (held[-1] == 0)
        may_read = handovers in pipes and (timeout is None or handovers.messages)
        return [handovers] if may_read and (timeout is None or next(looks) % 3) else []

    def refuse(data):
        confirm.sent.append(data)
        if len(confirm.sent) > COUNT - PLACES:
            raise BrokenPipeError

    monkeypatch.setattr(processes.connection, "wait", wait)
    monkeypatch.setattr(confirm, "send_bytes", refuse)
    run_decode(parent, orders, folder, None, "cpu", 0, PLACES, MAX_LEN, handovers, confirm)
    assert max(held) == PLACES and len(confirm.sent) == COUNT
    texts = [message for message in map(json.loads, parent.sent) if "ended" in message]
    assert {message["ended"]: message["new"] for message in texts} == alone


@pytest.mark.parametrize("places", [1, PLACES])
def test_the_two_never_wait_for_each_other(folder, alone, places):
    """Oracle: the texts, through real pipes, in a minute; half of the requests come when the first
    five texts are complete.
    """
    (to_prefill, orders), (to_decode, more), (handovers, hand_over), (confirmed, confirm), (
        hear, say) = (multiprocessing.Pipe(duplex=False) for _ in range(5))
    texts = {}
    engines = [
        threading.Thread(daemon=True, target=run_prefill, args=(
            End(), to_prefill, folder, None, "cpu", 0, places, 40, hand_over, confirmed)),
        threading.Thread(daemon=True, target=run_decode, args=(
            say, to_decode, folder, None, "cpu", 0, places, MAX_LEN, handovers, confirm))]
    for thread in engines:
        thread.start()
    messages = orders_of(requests())
    first, later = messages[:COUNT], messages[COUNT:]
    threading.Thread(target=lambda: [orders.send_bytes(each) for each in first]).start()
    while len(texts) < COUNT and hear.poll(60):
        message = json.loads(hear.recv_bytes())
        texts |= {message["ended"]: message["new"]} if "ended" in message else {}
        if len(texts) == 5 and later:
            threading.Thread(target=lambda: [orders.send_bytes(each) for each in messages[COUNT:]]
                             ).start()
            later = None
    for end in (orders, more):                   # as the end of the parent does
        end.close()
    for thread in engines:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert texts == alone
