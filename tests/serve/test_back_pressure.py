"""Requests that find no free place wait as tokens, not as latents: 40 requests for 4 places.

The separated form is tested without processes: each engine gets ends of pipes that the test plays.
"""

import itertools
import json
import multiprocessing
import threading
from collections import deque
from types import SimpleNamespace

import pytest
import torch

from minidsv3.infer import generate
from minidsv3.infer.decoder import Sequence
from minidsv3.serve.handover import Decode, Handover, Prefill
from minidsv3.serve.serving import run_decode, run_prefill, serve_colocated

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


def to_bytes(sequences):
    """The requests as the parent gives them to the prefill process."""
    return [Handover(i, each, torch.empty(0)).to_bytes() for i, each in enumerate(sequences)]


def test_prefill_is_ahead_by_no_more_handovers_than_places(folder):
    """Oracle: handovers said minus confirmed ones. Decode confirms one when prefill waits for it,
    and prefill waits only when it is ahead by 4.
    """
    begun, confirmed, ahead, sent = [], [], [], []

    def hear(data):
        if "begun" in (message := json.loads(data)):
            begun.append(message["begun"])
            ahead.append(len(begun) - len(confirmed))

    def poll(timeout):
        assert timeout == 0 or len(begun) - len(confirmed) == PLACES
        return timeout is None

    def confirm():
        confirmed.append(b"taken")
        return confirmed[-1]

    run_prefill(SimpleNamespace(send_bytes=hear), folder, None, "cpu", 0, PLACES, 40,
                SimpleNamespace(recv_bytes=lambda: b"go"), SimpleNamespace(send_bytes=sent.append),
                SimpleNamespace(poll=poll, recv_bytes=confirm), to_bytes(requests()), [0.0] * COUNT)
    assert max(ahead) == PLACES and len(confirmed) == COUNT - PLACES
    handovers = [Handover.from_bytes(data) for data in sent]
    assert begun == [handover.number for handover in handovers] == list(range(COUNT))
    for handover, prompt in zip(handovers, prompts()):
        assert handover.latents.size(1) == len(prompt) and len(handover.sequence.new) == 1


def test_prefill_ends_quietly_when_decode_has_ended(folder):
    """Oracle: no error said, since the parent reports the other process; no more than 4 read."""
    said = []

    def broken(*_):
        raise BrokenPipeError

    run_prefill(SimpleNamespace(send_bytes=lambda data: said.append(json.loads(data))), folder,
                None, "cpu", 0, PLACES, 40, SimpleNamespace(recv_bytes=lambda: b"go"),
                SimpleNamespace(send_bytes=broken),
                SimpleNamespace(poll=lambda timeout: timeout is None, recv_bytes=broken),
                to_bytes(requests()), [0.0] * COUNT)
    assert [*said[0]] == ["ready"] and len(said) == 1 + PLACES
    assert all("begun" in message for message in said[1:])


def test_decode_reads_its_pipe_only_while_it_has_a_free_place(exact, folder, alone):
    """Oracle: handovers received minus texts that have ended; a pipe that is empty at every third
    look. Decode waits at the pipe only when it is idle. Nobody is left to confirm the last ones to.
    """
    prefill = Prefill(exact, 40)
    for request in requests():
        prefill.add(request)
    waiting = deque()
    while prefill.queue:
        waiting.extend(handover.to_bytes() for handover in prefill.step(COUNT))
    received, confirmed, texts, held, looks = [], [], {}, [], itertools.count()

    def poll(timeout):
        assert len(received) - len(texts) < PLACES
        assert (timeout is None) == (len(received) == len(texts))
        return timeout is None or next(looks) % 3 > 0

    def receive():
        if not waiting:
            raise EOFError
        received.append(waiting.popleft())
        held.append(len(received) - len(texts))
        return received[-1]

    def confirm(data):
        confirmed.append(data)
        if len(confirmed) > COUNT - PLACES:
            raise BrokenPipeError

    def hear(data):
        if "ended" in (message := json.loads(data)):
            texts[message["ended"]] = message["new"]

    run_decode(SimpleNamespace(send_bytes=hear), folder, None, "cpu", 0, PLACES, MAX_LEN,
               SimpleNamespace(poll=poll, recv_bytes=receive), SimpleNamespace(send_bytes=confirm))
    assert max(held) == PLACES and len(confirmed) == len(received) == COUNT
    assert texts == alone


@pytest.mark.parametrize("places", [1, PLACES])
def test_the_two_never_wait_for_each_other(folder, alone, places):
    """Oracle: the texts, through real pipes, in a minute; half of the requests arrive later."""
    (wait_for_go, go), (handovers, hand_over), (confirmed, confirm), (hear, say) = (
        multiprocessing.Pipe(duplex=False) for _ in range(4))
    arrivals = [0.0] * 20 + [0.2] * 20
    texts = {}

    def prefill():
        run_prefill(SimpleNamespace(send_bytes=len), folder, None, "cpu", 0, places, 40,
                    wait_for_go, hand_over, confirmed, to_bytes(requests()), arrivals)
        for end in (hand_over, confirmed):       # as the end of its process does
            end.close()

    def decode():
        run_decode(say, folder, None, "cpu", 0, places, MAX_LEN, handovers, confirm)
        say.close()

    threads = [threading.Thread(target=work, daemon=True) for work in (prefill, decode)]
    for thread in threads:
        thread.start()
    go.send_bytes(b"go")
    while len(texts) < COUNT and hear.poll(60):
        message = json.loads(hear.recv_bytes())
        texts |= {message["ended"]: message["new"]} if "ended" in message else {}
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert texts == alone
