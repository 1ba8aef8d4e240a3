"""Live engines: requests given up, requests that do not fit, 1,000 at the door, silent processes.

Each text is compared with that of `generate` for the same prompt alone. tests/multi/test_live.py
repeats what concerns the separated form with two processes.
"""

import json
import time
from collections import Counter, deque

import pytest
import torch

from minidsv3.infer import generate
from minidsv3.infer.decoder import Sequence
from minidsv3.serve import processes, serving
from minidsv3.serve.door import Door
from minidsv3.serve.handover import Decode, Handover, Prefill
from minidsv3.serve.serving import Supervisor, Watch, serve_colocated
from tests.serve.conftest import End

LENGTHS = [9, 4, 30, 12, 7, 3]                   # prompts [tokens]
NEW = 8


def requests(new=NEW):
    """Six requests that stop nowhere before `new` tokens."""
    generator = torch.Generator().manual_seed(4)
    return [Sequence(torch.randint(5, 300, (length,), generator=generator).tolist(), new, ())
            for length in LENGTHS]


@pytest.fixture(scope="module")
def alone(exact):
    """The text of each request, made by itself."""
    return [generate(exact, [torch.tensor(each.tokens)], NEW, stop=()).tokens[0].tolist()
            for each in requests()]


def watch_for(monkeypatch, where):
    """-> a callable for cancel=, which gives request 2 up when it has come to `where`, once."""
    state = Counter()
    step, decode_step = Prefill.step, Decode.step

    def watched_step(self, most):
        done = step(self, most)
        if any(each.number == 2 and each.latents.size(1) for each in self.queue):
            state["being read"] += 1
        return done

    def watched_decode(self):
        ended = decode_step(self)
        if any(len(each.tokens) == 30 and len(each.new) == 3 for each in self.decoder.sequences):
            state["being decoded"] += 1
        return ended

    monkeypatch.setattr(Prefill, "step", watched_step)
    monkeypatch.setattr(Decode, "step", watched_decode)
    state["outside"] = state["waiting"] = 1

    def cancel():
        state["calls"] += 1
        is_now = state[where] and not state["done"] and (where != "waiting" or state["calls"] == 2)
        state["done"] += bool(is_now)
        return [2, 2, 77] if is_now else []

    return cancel


@pytest.mark.parametrize("where, places, has", [
    ("outside", 1, 0), ("waiting", 3, 0), ("being read", 3, 0), ("being decoded", 3, 3)])
def test_a_request_is_cancelled_wherever_it_is(exact, alone, monkeypatch, where, places, has):
    """Oracle: `generate` for the others; of request 2, the first tokens of its text."""
    cancel, ends = watch_for(monkeypatch, where), []
    served = serve_colocated(exact, requests(), places, 10, cancel=cancel,
                             progress=lambda: ends.append(1))
    assert served.new.pop(2) == alone[2][:has] and served.cancelled == {2}
    assert served.new == {i: text for i, text in enumerate(alone) if i != 2}
    assert len(ends) == 6 and served.figures()["cancelled"] == 1


def test_a_cancelled_place_is_taken_by_the_next(exact, alone):
    """Oracle: with one place, request 1 begins while request 0 would need 7 more passes."""
    engine, handovers = Decode(exact, 1, 48), []
    prefill = Prefill(exact)
    for each in requests()[:2]:
        prefill.add(each)
    handovers = prefill.step(2)
    engine.admit(handovers[0])
    assert engine.free == 0
    engine.cancel(handovers[0].sequence)
    assert engine.free == 1
    engine.admit(handovers[1])
    while not engine.is_idle:
        engine.step()
    assert handovers[1].sequence.new == alone[1] and handovers[0].sequence.new == alone[0][:1]


def test_all_requests_may_be_cancelled(exact):
    """Oracle: no text, no figures from nothing; the engines stop."""
    served = serve_colocated(exact, requests(), 2, cancel=lambda: range(6))
    assert served.cancelled == set(range(6)) and all(len(new) <= 1 for new in served.new.values())
    assert served.figures()["first_token_ms_median"] == 0


def test_what_is_too_long_is_refused_in_one_line(exact, alone, capsys):
    """Oracle: by hand, for a window of 64: up to it silence, beyond it a notice, far beyond no."""
    extra = [Sequence([], 5, ()), Sequence([7] * 60, 4037, ()), Sequence([7] * 60, 5, ()),
             Sequence([7] * 60, 4, ())]
    served = serve_colocated(exact, requests() + extra, 3)
    assert [served.new[i] for i in range(6)] == alone
    assert served.refused == {
        6: "request 6 has no token; give at least 1.",
        7: "request 7 (prompt 60, new 4,037): 4,097 tokens are more than 64 times the 64 that this "
           "model was trained on (max_position_embeddings); choose up to 4,096."}
    assert served.new[6] == served.new[7] == [] and len(served.new[8]) == 5
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("65 tokens are more than the 64 that this model was trained on")
    assert served.figures()["refused"] == 2


def test_an_iterator_fills_the_window_at_most(exact, alone):
    """Oracle: by hand; engines made before the requests are known have room for the window."""
    served = serve_colocated(exact, iter([*requests(), Sequence([7] * 60, 5, ())]), 3)
    assert [served.new[i] for i in range(6)] == alone
    assert served.refused[6] == (
        "request 6 needs room for 65 tokens (prompt 60, new 5), but the engines have room for 64; "
        "shorten it, or serve with a larger max_len.")
    served = serve_colocated(exact, iter([Sequence([7] * 60, 5, ())]), max_len=65)
    assert len(served.new[0]) == 5 and not served.refused


def test_an_iterator_may_have_no_request_right_now(exact, alone):
    """Oracle: the texts; None stands between the requests and is no request."""
    each = requests()
    served = serve_colocated(exact, iter([None, each[0], None, None, *each[1:], None]), 2)
    assert [served.new[i] for i in range(6)] == alone


class Crowd:
    """Requests by number, made when they are asked for; counts those taken but not answered."""

    def __init__(self, count):
        self.count, self.answered, self.most = count, 0, 0

    def __iter__(self):
        for number in range(1, self.count + 1):
            self.most = max(self.most, number - self.answered)
            yield Sequence([5 + number % 7] * (1 + number % 5), 1 + number % 2, ())

    def has_left(self):
        """Called whenever a request has left."""
        self.answered += 1


@pytest.mark.parametrize("count", [50, 1000])
def test_a_thousand_requests_need_no_more_memory_than_fifty(exact, monkeypatch, count):
    """Oracle: counts. 8 requests inside, 8 * 5 tokens of latents at most; all answered once."""
    crowd, latents = Crowd(count), []
    step = Prefill.step

    def watched_step(self, most):
        done = step(self, most)
        assert len(self.queue) + len(done) <= 8
        latents.append(sum(each.nbytes for each in [*self.queue, *done]))
        return done

    monkeypatch.setattr(Prefill, "step", watched_step)
    served = serve_colocated(exact, crowd, 8, progress=crowd.has_left)
    assert crowd.most == 8 and crowd.answered == count and len(served.new) == count
    assert [len(served.new[i]) for i in range(count)] == [1 + (i + 1) % 2 for i in range(count)]
    assert max(latents) <= 8 * 5 * exact.config.num_hidden_layers * 8 * (
        exact.config.kv_lora_rank + exact.config.qk_rope_head_dim)


class Told:
    """A process that only notes what its parent tells it."""

    def __init__(self, name):
        self.name, self.orders = name, []

    def tell(self, data=None, **order):
        """Note an order and its number of bytes."""
        self.orders.append((order, len(data or b"")))


def test_the_parent_hands_on_no_more_than_the_door_allows(exact):
    """Oracle: counts of requests and bytes that were told and not answered, for 1,000 requests."""
    crowd = Crowd(1000)
    prefill, decode = Told("prefill"), Told("decode")
    door = Door(crowd, None, None, 12, exact.config, 64, crowd.has_left)
    parent, queued, sizes = Supervisor(prefill, decode, door), deque(), []
    while not door.is_done:
        parent.hand_on()
        queued += prefill.orders
        prefill.orders.clear()
        sizes.append(sum(size for _, size in queued))
        if queued:
            number = queued.popleft()[0]["read"]
            for name, message in [("prefill", {"begun": number, "nbytes": 1, "expanded": 3}),
                                  ("decode", {"ended": number, "new": [9]})][::-1 if number % 2
                                                                            else 1]:
                parent.note(name, message)
    assert crowd.most == 12 and crowd.answered == 1000 and not parent.early
    assert max(sizes) < 12 * 8192                # 5 kB each, of a generator
    served = door.served                         # also where the end was heard before the beginning
    assert served.nbytes == 1000 and all(served.first[i] <= served.last[i] for i in range(1000))


def test_a_cancellation_follows_the_handover(exact):
    """Oracle: by hand; prefill hears of it first, decode when prefill says that it has begun."""
    prefill, decode = Told("prefill"), Told("decode")
    orders = deque([[], [0], [1], []])
    door = Door(requests(), None, lambda: orders.popleft() if orders else [], 6, exact.config, 64)
    parent = Supervisor(prefill, decode, door)
    parent.hand_on()
    parent.note("prefill", {"begun": 1, "nbytes": 1, "expanded": 3})
    parent.hand_on()
    parent.hand_on()
    assert [order for order, _ in prefill.orders[6:]] == [{"cancel": 0}]
    assert [order for order, _ in decode.orders] == [{"cancel": 1}]
    parent.note("prefill", {"begun": 0, "nbytes": 1, "expanded": 3})   # was on its way
    assert [order for order, _ in decode.orders] == [{"cancel": 1}, {"cancel": 0}]
    parent.note("decode", {"cancelled": 0, "new": [9]})
    parent.note("decode", {"ended": 1, "new": [9, 8]})                 # too late to be cancelled
    assert door.served.cancelled == {0} and door.served.new == {0: [9], 1: [9, 8]}
    assert door.unfinished == 4


def test_prefill_and_decode_obey_a_cancellation(exact, alone, folder, monkeypatch):
    """Oracle: by hand. Prefill forgets 1 of 2; decode drops 0 on its way, then 3 after one pass."""
    data = [Handover(i, each, torch.empty(0)).to_bytes() for i, each in enumerate(requests())]
    orders = End(b'{"read": 0}', data[0], b'{"read": 1}', data[1], b'{"cancel": 1}',
                 b'{"cancel": 1}')
    parent, sent = End(), End()

    def wait_for_orders(pipes, timeout):
        if orders.messages or timeout is None:
            return [orders]
        orders.messages.append(b'{"cancel": 0}')           # too late for prefill: it reads 0 now
        return []

    monkeypatch.setattr(processes.connection, "wait", wait_for_orders)
    processes.run_prefill(parent, orders, folder, None, "cpu", 0, 4, 40, sent, End())
    said = [json.loads(each) for each in parent.sent[1:]]
    assert said[0] == {"cancelled": 1, "new": []} and said[1]["begun"] == 0 and len(said) == 2
    assert [Handover.from_bytes(each).number for each in sent.sent] == [0]

    prefill = Prefill(exact)
    for each in requests()[:4]:
        prefill.add(each)
    handovers = End(*(each.to_bytes() for each in prefill.step(4)))
    orders, parent, turns, decoded, step = End(b'{"cancel": 0}'), End(), [], [], Decode.step

    def watched_step(self):
        decoded.append(len(self.decoder.sequences))
        return step(self)

    monkeypatch.setattr(Decode, "step", watched_step)

    def wait(pipes, timeout):
        turns.append(1)
        if handovers.messages and not orders.messages:
            return [handovers]
        if len(turns) == 7:                      # the first look after a pass
            orders.messages.extend([b'{"cancel": 3}', b'{"cancel": 3}'])
        return [orders] if orders.messages or timeout is None else []

    monkeypatch.setattr(processes.connection, "wait", wait)
    processes.run_decode(parent, orders, folder, None, "cpu", 0, 4, 48, handovers, End())
    said = [json.loads(each) for each in parent.sent[1:]]
    assert said[0] == {"cancelled": 0, "new": alone[0][:1]}
    assert said[1] == {"cancelled": 3, "new": alone[3][:2]}
    assert {each["ended"]: each["new"] for each in said if "ended" in each} == {
        1: alone[1], 2: alone[2]}
    assert len(said) == 4 and decoded == [3] + [2] * (NEW - 2)         # the place of 3 is free


def test_a_heart_beats_while_the_engine_computes(monkeypatch):
    """Oracle: messages said while one thread does nothing but multiply matrices."""
    monkeypatch.setattr(processes, "BEAT", 0.01)
    pipe = End()
    with processes.Heart(pipe) as parent:
        a = torch.ones(300, 300)
        for _ in range(2_000):
            a = (a @ a).clamp(max=1)
            if len(pipe.sent) >= 5:
                break
        processes.say(parent, ready=True)
    assert Counter(pipe.sent)[b'{"alive": true}'] >= 5 and b'{"ready": true}' in pipe.sent
    said = len(pipe.sent)
    assert not parent.thread.is_alive() and len(pipe.sent) == said


def test_silence_is_noticed_and_the_parent_s_own_pause_is_not(monkeypatch):
    """Oracle: a clock by hand. 7 s after the last word; 120 s before the first."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Watch(["prefill", "decode"])

    def look_for(seconds):
        for _ in range(round(2 * seconds)):
            now[0] += 0.5
            if silent := watch.too_silent():
                return silent, now[0]
        return None

    assert look_for(100) is None                 # both are loading
    watch.has_spoken("prefill")
    watch.has_spoken("decode")
    now[0] += 3600                               # the parent was stopped, too
    assert watch.too_silent() is None
    watch.has_spoken("decode")
    assert look_for(8) == ("prefill", 3700 + 6.5)
    assert serving.PATIENCE + processes.BEAT + 2 * serving.LOOK < 10
