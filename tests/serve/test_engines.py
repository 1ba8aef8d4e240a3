"""Prefill, handover and decode against `generate` of one request at a time, in float64."""

import itertools
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minidsv3.data import corpus
from minidsv3.data.corpus import Corpus, Document
from minidsv3.infer import generate
from minidsv3.infer.decoder import Sequence
from minidsv3.infer.sampling import Sampler
from minidsv3.infer.text import HealedSequence
from minidsv3.serve import door, engines, serving
from minidsv3.serve.door import Served
from minidsv3.serve.handover import Decode, Handover, Prefill
from minidsv3.serve.serving import serve_colocated

LENGTHS = [5, 17, 1, 30, 8, 2, 11]               # prompts [tokens]
NEW = [9, 4, 12, 1, 7, 12, 3]                    # new tokens at most; STOP may end it earlier
STOP = range(5, 25)
SAMPLED = Sampler(temperature=1.0, top_p=0.95)


def prompts_of(lengths):
    generator = torch.Generator().manual_seed(6)
    return [torch.randint(5, 300, (length,), generator=generator) for length in lengths]


def sequences_of(model, sampler=None):
    """Seven requests of different lengths; number i draws from a generator of seed 70 + i."""
    stop = {model.config.eos_token_id, *STOP}
    return [Sequence(prompt.tolist(), new, stop, sampler, 70 + i)
            for i, (prompt, new) in enumerate(zip(prompts_of(LENGTHS), NEW))]


@pytest.fixture(scope="module")
def alone(exact):
    """alone(sampler, speculative) -> the text of each request, made by itself; computed once."""
    made = {}

    def texts(sampler=None, speculative=0):
        key = sampler, speculative
        if key not in made:
            settings = (sampler or Sampler())._asdict()
            made[key] = [generate(exact, [prompt], new, speculative=speculative, seed=[70 + i],
                                  stop=STOP, **settings).tokens[0].tolist()
                         for i, (prompt, new) in enumerate(zip(prompts_of(LENGTHS), NEW))]
        return made[key]

    return texts


def read_all(model, sequences, budget=256, speculative=0):
    """Prefill all sequences -> their handovers."""
    prefill = Prefill(model, budget, speculative)
    for sequence in sequences:
        prefill.add(sequence)
    handovers = []
    while prefill.queue:
        handovers += prefill.step(len(sequences))
    return handovers


def write_all(decode):
    """Step until the engine is idle -> the sequences in the order in which they end."""
    ended = []
    while not decode.is_idle:
        ended += decode.step()
    return ended


@pytest.mark.parametrize("speculative", [0, 2])
@pytest.mark.parametrize("budget", [*range(1, 18), 65, 257, 256])
def test_every_budget_gives_the_same_texts(exact, alone, budget, speculative):
    """Oracle: `generate`, one request at a time. Odd budgets sample, even ones are greedy."""
    sampler = SAMPLED if budget % 2 else None
    sequences = sequences_of(exact, sampler)
    served = serve_colocated(exact, sequences, 3, budget, speculative)
    assert [served.new[i] for i in range(7)] == alone(sampler, speculative)


@pytest.mark.parametrize("budget", [1, 4, 17, 40, 256])
def test_no_pass_is_larger_than_the_budget(exact, monkeypatch, budget):
    """Oracle: the shapes given to the model; it reads every prompt token once, in order."""
    passes, read = [], []
    whole = type(exact).hidden_states

    def watched(self, tokens, cache=None, counts=None):
        passes.append(tokens.shape)
        read.extend(token for row, n in zip(tokens.tolist(), counts) for token in row[:n])
        return whole(self, tokens, cache, counts)

    monkeypatch.setattr(type(exact), "hidden_states", watched)
    handovers = read_all(exact, sequences_of(exact), budget)
    assert max(B * T for B, T in passes) <= budget
    assert read == torch.cat(prompts_of(LENGTHS)).tolist()
    assert [handover.number for handover in handovers] == list(range(7))
    if budget == 1:
        assert len(passes) == sum(LENGTHS)
    if budget == 40:                             # by hand: 5 and 17; 1; 30; 8, 2 and 11
        assert [tuple(each) for each in passes] == [(2, 17), (1, 1), (1, 30), (3, 11)]


@pytest.mark.parametrize("speculative", [0, 2])
@pytest.mark.parametrize("sampler", [None, SAMPLED], ids=["greedy", "sampled"])
def test_any_order_of_joining_gives_the_same_texts(exact, alone, sampler, speculative):
    """Oracle: each request alone. Seven requests for two places, in three orders."""
    for order in itertools.islice(itertools.permutations(range(7)), 0, 5040, 1700):
        handovers = read_all(exact, sequences_of(exact, sampler), 16, speculative)
        decode, ended = Decode(exact, 2, 48, speculative), []
        for number in order:
            while not decode.free:
                ended += decode.step()
            decode.admit(handovers[number])
            ended += decode.step()
        ended += write_all(decode)
        assert len(ended) == 7 and len(decode.decoder.sequences) == 0
        assert [part.sequence.new for part in handovers] == alone(sampler, speculative)


@pytest.mark.parametrize("speculative", [0, 2])
def test_a_handover_survives_its_bytes(exact, alone, speculative):
    """Oracle: all parts and the bytes made again are equal bit for bit, and so are the texts."""
    handovers = read_all(exact, sequences_of(exact, SAMPLED), 16, speculative)
    copies = [Handover.from_bytes(part.to_bytes()) for part in handovers]
    for part, copy in zip(handovers, copies):
        assert torch.equal(copy.latents, part.latents) and copy.latents.dtype == torch.float64
        assert part.latents.abs().sum() > 0
        mine, other = part.sequence, copy.sequence
        assert (mine.tokens, mine.new, mine.limit, mine.stop, mine.sampler, mine.ended) == (
            other.tokens, other.new, other.limit, other.stop, other.sampler, other.ended)
        assert torch.equal(mine.generator.get_state(), other.generator.get_state())
        assert part.number == copy.number and copy.to_bytes() == part.to_bytes()
        if speculative:
            assert torch.equal(copy.draft_latents, part.draft_latents)
            assert torch.equal(copy.state, part.state)
    decode = Decode(exact, 7, 48, speculative)
    for copy in copies:
        decode.admit(copy)
    write_all(decode)
    assert [copy.sequence.new for copy in copies] == alone(SAMPLED, speculative)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("speculative", [0, 1])
def test_bytes_are_those_of_the_formula(model, exact, dtype, speculative):
    """Oracle: layers * tokens * (Rkv + Dr) * bytes, and `cost.cache_bytes` for both forms."""
    from minidsv3.measure.cost import cache_bytes
    twin, width = model if dtype == torch.float32 else exact, dtype.itemsize
    config = model.config.replace(v_head_dim=20)                       # so that D and Dv differ
    table, layers = cache_bytes(config, width), config.num_hidden_layers + speculative
    heads = config.num_attention_heads * (config.qk_head_dim + 20)
    for part in read_all(twin, sequences_of(twin), 16, speculative):
        tokens = len(part.sequence.tokens)
        latent = config.kv_lora_rank + config.qk_rope_head_dim
        assert part.nbytes == layers * tokens * latent * width
        assert part.nbytes == tokens * table["mla_with_mtp" if speculative else "mla"]
        assert part.expanded_nbytes(config) == layers * tokens * heads * width
        if not speculative:
            assert part.expanded_nbytes(config) == tokens * table["expanded"]
        assert part.nbytes < len(part.to_bytes()) < part.nbytes + 8192     # 5 kB of generator


def test_what_does_not_fit_is_refused(exact):
    """Oracle: each message names the numbers and what to do; a sequence that fits is accepted."""
    handovers = read_all(exact, sequences_of(exact))
    decode = Decode(exact, 2, 20)
    with pytest.raises(ValueError, match="handover 1 needs room for 21 .*max_len=20.*larger"):
        decode.admit(handovers[1])               # 17 + 4
    decode.admit(handovers[0])                   # 5 + 9
    assert write_all(decode) == [handovers[0].sequence]
    with pytest.raises(ValueError, match="handover 0 .*MTP.* speculative=2 .*prefill with it"):
        Decode(exact, 2, 48, 2).admit(handovers[0])
    with pytest.raises(ValueError, match="budget=0 .*at least 1"):
        Prefill(exact, 0)
    with pytest.raises(ValueError, match="places=0 .*at least 1"):
        Decode(exact, 0, 48)
    full = Decode(exact, 1, 48)
    full.admit(handovers[1])
    with pytest.raises(ValueError, match="places for 1 sequences .*number 2"):
        full.admit(handovers[2])
    assert full.free == 0 and len(write_all(full)) == 1


@pytest.mark.parametrize("new, longest, said", [
    (10, 54, ""), (48, 16, ""), (60, 16, "76 tokens are more than the 64")])
def test_the_prompts_of_the_command_fit_the_window(exact, monkeypatch, capsys, new, longest, said):
    """Oracle: by hand, for a window of 64; without room for 16 tokens they reach beyond it."""
    text = Document("long", "x" * 9999)
    monkeypatch.setattr(corpus, "load", lambda: Corpus("x", [text], ""))
    monkeypatch.setattr(corpus, "split", lambda documents: ([], documents))
    tokenizer = SimpleNamespace(encode_prompt=list)                    # a token per character
    arguments = engines.parse_arguments(["--requests", "400", "--max-new-tokens", str(new)])
    prompts = engines.synthetic_prompts(tokenizer, exact.config, arguments)
    assert {len(prompt) for prompt in prompts} == set(range(16, longest + 1))
    notices = capsys.readouterr().err
    assert notices.startswith(said) and notices.count("\n") == bool(said)


def test_only_plain_sequences_travel(exact, tokenizer):
    """Oracle: the message names the kind of sequence, whose `ending` would be lost."""
    kind = partial(HealedSequence, tokenizer=tokenizer, ending="(")
    part = read_all(exact, [kind([5, 6, 7], 4, [1])])[0]
    with pytest.raises(ValueError, match="HealedSequence .*plain Sequence"):
        part.to_bytes()


class Clock:
    """A clock that advances by a millisecond per reading, and by the time slept."""

    now, slept = 0.0, ()

    def perf_counter(self):
        self.now += 0.001
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.slept += (seconds,)


def test_arrivals_are_waited_for(exact, alone, monkeypatch):
    """Oracle: the texts, and a simulated clock; the last two requests arrive an hour later."""
    clock = Clock()
    for module in (door, serving):
        monkeypatch.setattr(module, "time", clock)
    served = serve_colocated(exact, sequences_of(exact), 2, 16,
                             arrivals=np.array([0, 0, 0, 0.01, 0.01, 3600, 3600]))
    assert [served.new[i] for i in range(7)] == alone()
    assert all(0 < wait < 1 for wait in [*served.first.values(), *served.last.values()])
    assert max(clock.slept) > 3599 and served.figures()["seconds"] > 3600
    with pytest.raises(ValueError, match="7 requests with 2 arrivals"):
        serve_colocated(exact, sequences_of(exact), arrivals=[0.0, 1.0])


def test_the_figures_by_hand(monkeypatch):
    """Oracle: three requests at 0, 1 and 2 s whose first tokens take 1, 2 and 4 s."""
    clock = Clock()
    for module in (door, serving):
        monkeypatch.setattr(module, "time", clock)
    served = Served()
    served.begin, served.arrivals = 0.0, {0: 0.0, 1: 1.0, 2: 2.0}
    for now, number, new in [(1, 0, None), (3, 1, None), (5, 0, 5), (6, 2, None), (7, 1, 3),
                             (10, 2, 1)]:
        clock.now = now - 0.001
        if new is None:
            served.has_begun(number, 100, 300)
        else:
            served.has_ended(number, [9] * new)
    figures = served.figures()
    assert figures["first_token_ms_median"] == 2000 and figures["first_token_ms_95"] == 3800
    assert figures["per_token_ms_median"] == 1500              # 4 s for 4, 4 s for 2, none for 0
    assert figures["seconds"] == 10 and figures["tokens_per_s"] == 0.9
    assert figures["handed_over_bytes"] == 300 and figures["expanded_bytes"] == 900
    assert figures["cancelled"] == figures["refused"] == 0
