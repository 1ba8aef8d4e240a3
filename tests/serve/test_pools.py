"""The event simulation of pools: queueing theory, conservation, and a slow simulation beside it."""

import math
import time

import numpy as np
import pytest

from minidsv3.command import UserError
from minidsv3.serve.pools import simulate
from minidsv3.serve.requests import Requests, decode_steps, poisson, read_trace, summarise
from minidsv3.serve.step_cost import Work
from minidsv3.serve.units import Failure, Unit


def seconds(work):
    """A step cost that depends on everything that a step does."""
    return (1e-3 + 1e-5 * work.new + 2e-6 * work.earlier + 1e-8 * work.pairs
            + 3e-5 * work.sequences + 1e-8 * work.context)


SEPARATED = [Unit("prefill", 4, seconds, 300, 100), Unit("prefill", 4, seconds, 300, 100),
             Unit("decode", 8, seconds, places=20, room=30_000)]
POOLS = {"separated": SEPARATED,
         "chunked": 2 * [Unit("both", 4, seconds, 64, 32, places=15, room=20_000)],
         "whole": 2 * [Unit("both", 4, seconds, 400, places=15, room=20_000)]}


def some_requests(count=300, rate=20):
    return poisson(count, rate, 200, 30, cached=0.3, seed=5)


def arrivals(load, count):
    """Requests that one server with a service time of 1 s serves at this load."""
    return poisson(count, load, 10, 1, spread=0, seed=1)


def waiting_times(requests):
    """Waiting times of an M/D/1 queue with a service time of 1 s, simulated by pools -> (N,)."""
    units = [Unit("prefill", 1, lambda work: 1.0, budget=10), Unit("decode", 1, lambda work: 1.0)]
    return simulate(requests, units).first - requests.arrival - 1


def test_a_queue_waits_as_theory_says():
    """Oracle: M/D/1, mean waiting time load / (2 (1 - load)) service times, within 3 %."""
    waited = waiting_times(arrivals(0.6, 100_000))
    assert waited.mean() == pytest.approx(0.6 / (2 * (1 - 0.6)), rel=0.03)


def waits_of_the_recursion(arrival):
    """Lindley: who comes next waits as long as this one, and its service of 1 s, less the gap."""
    walk = np.cumsum(np.append(0, 1 - np.diff(arrival)))
    return walk - np.minimum.accumulate(walk)    # nobody waits for less than no time


@pytest.mark.slow
@pytest.mark.parametrize("load, count", [(0.3, 400_000), (0.6, 800_000), (0.9, 4_000_000)])
def test_long_queues_wait_as_theory_says(load, count):
    """Oracle: M/D/1, within 3 %; the standard error, from 100 batches, is below 1 %.

    So many requests wait by the recursion, in seconds; the pools give each of 100,000 its time.
    """
    few = arrivals(load, 100_000)
    assert waiting_times(few) == pytest.approx(waits_of_the_recursion(few.arrival), abs=1e-6)
    waited = waits_of_the_recursion(arrivals(load, count).arrival)
    error = waited.reshape(100, -1).mean(1).std(ddof=1) / 10 / waited.mean()
    assert error < 0.01
    assert waited.mean() == pytest.approx(load / (2 * (1 - load)), rel=0.03)
    print(f"load {load}: {waited.mean():.4f}, standard error {error:.2%}")


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("acceptance", [None, 0.8])
def test_no_token_is_lost(name, acceptance):
    """Oracle: sums over the requests; each ends once, after its first token and its arrival."""
    requests = some_requests()
    served = simulate(requests, POOLS[name], lambda tokens: 1e-5 * tokens, acceptance)
    assert served.written == pytest.approx(requests.output.sum(), abs=1e-6)
    assert served.read == (requests.prompt - requests.cached).sum()
    assert (served.first > requests.arrival).all()
    several = requests.output > 1
    assert (served.end > served.first)[several].all()
    assert (served.end == served.first)[~several].all()


def test_a_failure_reads_lost_sequences_again():
    """Oracle: every fourth sequence, or all, is read again; all outputs are complete."""
    requests, again = some_requests(rate=400), []          # more than the decode unit has places
    whole = simulate(requests, SEPARATED)
    for share in (1 / 4, 1.0):
        failed = simulate(requests, SEPARATED, failures=[Failure(0.5, 2, 0.5, share)])
        assert not np.isnan(failed.end).any() and failed.end.max() > whole.end.max()
        assert failed.written == pytest.approx(requests.output.sum(), abs=1e-6)
        again.append(failed.read - (requests.prompt - requests.cached).sum())
    # 20 places; of a mean prompt of 200 tokens, 140 are not cached, and some are written.
    assert 10 * 140 < again[1] < 20 * 230 and 2 < again[1] / again[0] < 6


@pytest.mark.parametrize("share", [0.3, 0.6, 0.7, 0.9])
def test_a_failure_loses_the_share_that_it_names(share):
    """Oracle: this share of the tokens that are read again if all 100 sequences are lost."""
    requests = made((0.0,) * 100, prompt=4, output=9)
    units = [Unit("prefill", 1, lambda work: 0.1, budget=400), Unit("decode", 1, lambda work: 0.1)]
    plain, some, every = (simulate(requests, units, failures=failures).read for failures in (
        [], [Failure(0.45, 1, 0.1, share)], [Failure(0.45, 1, 0.1, 1.0)]))
    assert every - plain > 400
    assert (some - plain) / (every - plain) == pytest.approx(share, abs=0.01)


def test_equal_seeds_give_equal_times():
    """Oracle: the same simulation again, bit for bit; another seed differs."""
    runs = [simulate(poisson(200, 20, 200, 30, seed=seed), SEPARATED, acceptance=0.5, seed=seed)
            for seed in (1, 1, 2)]
    assert (runs[0].end == runs[1].end).all() and (runs[0].first == runs[1].first).all()
    assert (runs[0].end != runs[2].end).any()


# ------------------------------------------------- a slow simulation, one sequence at a time

def slow_prefill(requests, unit):
    """First tokens of one unit that reads prompts in chunks -> times, by a plain loop."""
    arrival, prompt, done = (list(each) for each in requests[:3])
    first, now = [None] * len(prompt), 0.0
    while None in first:
        here = [r for r in range(len(prompt)) if first[r] is None and arrival[r] <= now]
        if not here:
            now = min(arrival[r] for r in range(len(prompt)) if first[r] is None)
            continue
        left, chunks = unit.budget, {}
        for r in here:
            chunks[r] = min(left, unit.chunk, prompt[r] - done[r])
            left -= chunks[r]
        chunks = {r: n for r, n in chunks.items() if n}
        now += unit.seconds(Work(
            sum(chunks.values()), max(chunks.values()), sum(done[r] for r in chunks),
            sum(n * done[r] + n * n / 2 for r, n in chunks.items())))
        for r, n in chunks.items():
            done[r] += n
            if done[r] == prompt[r]:
                first[r] = now
    return first


def slow_decode(requests, ready, unit):
    """Last tokens of one unit that decodes; ready: when the latents arrive -> times."""
    prompt, output, size = requests.prompt, requests.output, len(ready)
    made, end, now, held = [1] * size, [None] * size, 0.0, []
    waiting = sorted(range(size), key=lambda r: ready[r])
    while waiting or held:
        if not held and ready[waiting[0]] > now:
            now = ready[waiting[0]]
        while waiting and ready[waiting[0]] <= now and len(held) < unit.places and sum(
                prompt[r] + output[r] for r in [*held, waiting[0]]) <= unit.room:
            held.append(waiting.pop(0))
        now += unit.seconds(Work(sequences=len(held), context=sum(prompt[r] + made[r]
                                                                  for r in held)))
        for r in list(held):
            made[r] += 1
            if made[r] == output[r]:
                end[r] = now
                held.remove(r)
    return end


def test_times_equal_those_of_a_plain_loop():
    """Oracle: the two loops above, which follow each sequence; the pool holds sums."""
    requests = some_requests(60, rate=40)._replace(output=2 + np.arange(60) * 7 % 40)
    prefill, _, decode = SEPARATED
    served = simulate(requests, [prefill, decode], lambda tokens: 0.0)
    first = slow_prefill(requests, prefill)
    np.testing.assert_allclose(served.first, first, rtol=1e-9)
    np.testing.assert_allclose(served.end, slow_decode(requests, first, decode), rtol=1e-9)


def one_by_one(*lengths, gap=100.0):
    """Requests (prompt, output) that never meet."""
    prompt, output = (np.array(each) for each in zip(*lengths))
    return Requests(gap * np.arange(len(prompt), dtype=float), prompt, 0 * prompt, output)


def test_a_request_alone_by_hand():
    """Oracle: steps counted by hand; a step takes 1 s, a handover 0.5 s."""
    units = [Unit("prefill", 1, lambda work: 1.0, 10, 10), Unit("decode", 1, lambda work: 1.0)]
    served = simulate(one_by_one((25, 4), (10, 1)), units, lambda tokens: 0.5)
    assert served.first.tolist() == [3, 101]               # chunks of 10, 10 and 5; one of 10
    assert served.end.tolist() == [3 + 0.5 + 3, 101]


def test_whole_prompts_stop_decoding_and_chunks_do_not():
    """Oracle: by hand. The second prompt arrives while the first one's output is written."""
    requests = one_by_one((10, 11), (30, 1), gap=2.5)
    whole = [Unit("both", 1, lambda work: 1.0 + work.new, 10)]
    chunked = [whole[0]._replace(chunk=10)]
    served = simulate(requests, whole)
    assert served.first.tolist() == [11, 11 + 31]          # it waits for the first prompt
    assert served.end[0] == 11 + 31 + 10
    served = simulate(requests, chunked)
    assert served.first.tolist() == [11, 11 + 3 * 11] and served.end[0] == 11 + 3 * 11 + 7


def test_a_gpu_sends_one_handover_after_the_other():
    """Oracle: by hand; the unit that reads has one GPU, or two."""
    requests = one_by_one((5, 2), (5, 2), gap=0.0)
    # The first arrival begins a step alone, so that the second is read one step later.
    for gpus, ends in ((1, [1 + 4 + 1, 1 + 4 + 4 + 1]), (2, [1 + 4 + 1, 2 + 4 + 1])):
        units = [Unit("prefill", gpus, lambda work: 1.0, 10), Unit("decode", 1, lambda work: 1.0)]
        assert simulate(requests, units, lambda tokens: 4.0).end.tolist() == ends


def test_drafts_save_the_expected_number_of_steps():
    """Oracle: a step makes 1 + acceptance tokens in the mean; 0 and 1 are exact."""
    output = np.full(400, 1001)
    assert decode_steps(output, None, 0).tolist() == [1000] * 400
    assert decode_steps(output, 0.0, 0).tolist() == [1000] * 400
    assert decode_steps(output, 1.0, 0).tolist() == [500] * 400
    assert decode_steps(output, 0.85, 0).mean() == pytest.approx(1000 / 1.85, rel=0.005)
    assert decode_steps(np.array([1, 2]), 0.5, 0).tolist() == [0, 1]


def test_lengths_have_the_mean_and_the_spread():
    """Oracle: mean, standard deviation and rate that were asked for, within 2 %."""
    requests = poisson(200_000, 7.0, 1000, 400, spread=1.0, cached=0.5, seed=3)
    assert requests.arrival[-1] / 200_000 == pytest.approx(1 / 7, rel=0.02)
    assert requests.prompt.mean() == pytest.approx(1000, rel=0.02)
    assert requests.output.std() == pytest.approx(400, rel=0.05)
    assert requests.cached.sum() / requests.prompt.sum() == pytest.approx(0.5, rel=0.02)
    assert set(poisson(9, 1, 10, 4, spread=0).prompt.tolist()) == {10}


def test_figures_of_a_summary_by_hand():
    """Oracle: eight equal requests that never meet; the middle half is counted."""
    requests = one_by_one(*8 * [(10, 5)])
    units = [Unit("prefill", 1, lambda work: 1.5, 10), Unit("decode", 1, lambda work: 0.04)]
    figures = summarise(requests, simulate(requests, units), gpus=2)
    assert figures["ttft"]["50"] == pytest.approx(1.5) and figures["good"] == 1
    assert figures["tpot"]["99"] == pytest.approx(0.04)
    assert figures["output_tokens_per_s"] == pytest.approx(5 / 100)
    assert figures["goodput_per_s_and_gpu"] == pytest.approx(1 / 100 / 2)


@pytest.mark.slow
def test_a_hundred_thousand_requests_take_less_than_a_minute():
    """Oracle: the clock; the service of the published day at its own load, on one core."""
    from minidsv3.serve.disaggregate import DAY, deploy
    deployed = deploy("service")
    requests = poisson(100_000, DAY.rate * 30, DAY.prompt, DAY.output, cached=DAY.cached)
    begin = time.process_time()
    served = simulate(requests, deployed.units, deployed.handover)
    took = time.process_time() - begin
    assert not np.isnan(served.end).any() and took < 60
    print(f"{took:.1f} s")


@pytest.mark.parametrize("units, words", [
    ([], "give either units of role both"), (SEPARATED[:1], "['prefill']"),
    ([*SEPARATED, *POOLS["whole"]], "give either"),
    ([SEPARATED[0], SEPARATED[2]._replace(room=100)], "room for 100; choose shorter")])
def test_pools_that_cannot_serve_are_named(units, words):
    """Oracle: the words of the error."""
    with pytest.raises(ValueError, match=words.replace("[", r"\[")):
        simulate(some_requests(), units)
    with pytest.raises(ValueError, match="choose a decode unit"):
        simulate(some_requests(), SEPARATED, failures=[Failure(1, 0, 1, 1)])


def test_a_trace_is_read_and_its_mistakes_are_named(tmp_path):
    """Oracle: two lines by hand, sorted by arrival; the words of the errors."""
    path = tmp_path / "trace.jsonl"
    path.write_text('{"arrival": 2, "prompt": 9, "output": 3, "cached": 4}\n'
                    '{"arrival": 1.5, "prompt": 7, "output": 1}\n')
    assert [each.tolist() for each in read_trace(path)] == [[1.5, 2], [7, 9], [0, 4], [1, 3]]
    for line in ("no JSON", "[1]", '{"arrival": 1}', '{"arrival": 1, "prompt": 0, "output": 1}',
                 '{"arrival": -1, "prompt": 5, "output": 1}', '{"arrival": 1, "prompt": "5"}'):
        path.write_text(line + "\n")
        with pytest.raises(UserError, match="line 1: .* is no request; write"):
            read_trace(path)
    path.write_text("")
    with pytest.raises(UserError, match="has no requests"):
        read_trace(path)
    assert math.isinf(Unit("both", 1, seconds).room)


def made(arrival=(1.0,), prompt=5, cached=0, output=2):
    """Equal requests at these times."""
    arrival = np.array(arrival, dtype=float)
    return Requests(arrival, *(np.full(len(arrival), each) for each in (prompt, cached, output)))


@pytest.mark.parametrize("requests, change, words", [
    (made(()), {}, "0 requests"), (made((2, 1)), {}, "not ascending"),
    (made(prompt=0), {}, "prompt=0"), (made(cached=5), {}, "cached=5"),
    (made(output=0), {}, "output=0"), (made(), {"budget": 0}, "unit 0 has budget=0"),
    (made(), {"chunk": 0}, "unit 0 has chunk=0"), (made(), {"places": 0}, "unit 0 has places=0")])
def test_what_would_never_end_is_refused(requests, change, words):
    with pytest.raises(ValueError, match=words):
        simulate(requests, [POOLS["chunked"][0]._replace(**change)])


def test_a_share_of_nothing_and_a_rate_of_nothing_are_refused():
    with pytest.raises(ValueError, match="share=0.0"):
        simulate(some_requests(), SEPARATED, failures=[Failure(1, 2, 1, 0.0)])
    with pytest.raises(ValueError, match="rate=0"):
        poisson(5, 0, 10, 10)


def test_two_failures_may_overlap():
    """A request alone, with two tokens to decode from 3.5 s on, whatever the second one says."""
    units = [Unit("prefill", 1, lambda work: 0.1, budget=10), Unit("decode", 1, lambda work: 0.1)]
    failures = [Failure(1.25, 1, 2.25, 1.0), Failure(2.0, 1, 0.1, 1.0)]
    served = simulate(made(output=5), units, failures=failures)
    assert served.end == pytest.approx([3.7])


def test_no_time_to_measure_is_named():
    """One request, or all at once."""
    for requests in (made(), made((1, 1, 1, 1, 1))):
        with pytest.raises(UserError, match="no time to measure"):
            summarise(requests, simulate(requests, SEPARATED), 16)


@pytest.mark.parametrize("line", [
    b'{"arrival": 1, "prompt": 9e30, "output": 80}', b'{"arrival": 1, "prompt": 9.5, "output": 8}',
    b'{"arrival": 1, "prompt": true, "output": true}', b"\xff\xfe", b"[" * 100_000,
    b'{"arrival": 1' + b"0" * 400 + b', "prompt": 9, "output": 8}'])
def test_lengths_of_a_trace_are_whole_numbers(line, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(UserError, match="line 1"):
        read_trace(path)
