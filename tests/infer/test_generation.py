"""`generate` against forward passes without a cache, one prompt at a time."""

import pytest
import torch

from minidsv3.infer import Generation, generate
from minidsv3.infer.decoder import Decoder, Sequence
from minidsv3.infer.sampling import Sampler


def alone(model, prompt, count, stop=()):
    """Greedy by definition: the model reads the whole text again for each token."""
    text, new = list(prompt), []
    while len(new) < count:
        with torch.no_grad():
            new.append(int(model(torch.tensor([text]))[0, -1].argmax()))
        text.append(new[-1])
        if new[-1] in {model.config.eos_token_id, *stop}:
            break
    return new


def made(result):
    """The rows of a result without the EOS that pads them."""
    return [row[:length].tolist() for row, length in zip(result.tokens, result.lengths)]


def prompts_of(lengths, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 300, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("lengths", [[7], [7, 7, 7], [1, 9, 4], [30, 2, 2, 17]], ids=str)
def test_greedy_is_the_argmax_of_uncached_passes(exact, lengths):
    """Oracle: the model reads the whole text again for each token, one prompt at a time."""
    prompts = prompts_of(lengths)
    result = generate(exact, prompts, 12)
    expected = [[token for token in alone(exact, prompt.tolist(), 12) if token != 1]
                for prompt in prompts]
    assert made(result) == expected


@pytest.mark.parametrize("speculative", [0, 2])
def test_a_text_does_not_depend_on_its_batch_mates(exact, speculative):
    """Oracle: the same prompt and seed alone, sampled; the others have other lengths and ends."""
    prompts = prompts_of([3, 11, 6, 11])
    options = {"temperature": 1.0, "top_p": 0.95, "speculative": speculative}
    together = generate(exact, prompts, 15, seed=40, **options)
    for i, prompt in enumerate(prompts):
        single = generate(exact, [prompt], 15, seed=[40 + i], **options)
        assert made(together)[i] == made(single)[0]


@pytest.mark.parametrize("speculative", [0, 2])
def test_each_sequence_of_a_batch_has_its_own_sampler(exact, speculative):
    """Oracle: each sequence alone."""
    samplers = [Sampler(), Sampler(1.0), Sampler(0.7, top_p=0.9), Sampler(2.0, top_k=5)]

    def texts(*numbers):
        batch = [Sequence([5, 6 + i], 12, {1}, samplers[i], i) for i in numbers]
        decoder = Decoder(exact, len(batch), 40, speculative)
        decoder.start(batch)
        while decoder.sequences:
            for row in reversed(range(len(decoder.sequences))):
                if decoder.sequences[row].ended:
                    decoder.leave(row)
            if decoder.sequences:
                decoder.step()
        return [sequence.new for sequence in batch]

    assert texts(0, 1, 2, 3) == [texts(i)[0] for i in range(4)]


def test_seeds_repeat_and_differ(model):
    """Oracle: the same call again; two sequences of a batch draw different tokens."""
    prompt = torch.tensor([[5, 6, 7], [5, 6, 7]])
    once, again, other = (generate(model, prompt, 20, temperature=1.0, seed=seed).tokens
                          for seed in (4, 4, 6))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert not torch.equal(once[0], once[1])
    assert torch.equal(generate(model, prompt, 20, temperature=1.0, seed=5).tokens[0], once[1])


def test_a_stop_token_ends_a_text(exact):
    """Oracle: greedy by definition, which stops after that token."""
    prompts = prompts_of([4, 8, 5])
    stop = [alone(exact, prompts[0].tolist(), 6)[3], alone(exact, prompts[1].tolist(), 6)[1]]
    result = generate(exact, prompts, 10, stop=stop)
    assert made(result) == [alone(exact, prompt.tolist(), 10, stop) for prompt in prompts]


def planned_ends(monkeypatch, decoder, ends):
    """Let sequence i produce token 9 ends[i] times, and then EOS."""
    def verify(sequence, drafts, q, logits, likeliest, p):
        token = 1 if len(sequence.new) == ends[sequence.tokens[0]] else 9
        sequence.note(token)
        return [token]

    monkeypatch.setattr(decoder, "verify", verify)


def test_after_eos_there_is_only_eos(model, monkeypatch):
    """Oracle: ends planned by hand: sequence 0 after 2 tokens, 1 after 5, 2 at once, 3 never."""
    from minidsv3.infer import decoder
    ends = [2, 5, 0, 99]
    planned_ends(monkeypatch, decoder, ends)
    prompt = torch.arange(4)[:, None].expand(4, 3)
    result = generate(model, prompt, 7)
    assert isinstance(result, Generation) and result.lengths.tolist() == [2, 5, 0, 7]
    assert result.tokens.tolist() == [[9, 9, 1, 1, 1, 1, 1], [9, 9, 9, 9, 9, 1, 1],
                                      [1, 1, 1, 1, 1, 1, 1], [9] * 7]
    assert result.stats["new_tokens"] == 14 and result.stats["passes"] == 7
    assert set(result.stats) == {"new_tokens", "seconds", "tokens_per_s", "prefill_s",
                                 "cache_bytes", "passes", "acceptance"}
    ends[3] = 6
    assert generate(model, prompt, 50).tokens.shape == (4, 7)          # stops with the last one


@pytest.mark.parametrize("ends, expected", [
    ((4, 1), [2, 5, 0, 7]), ((1, 4), [2, 5, 0, 7]), (None, [7, 7, 7, 7])])
def test_every_end_token_ends_a_text_and_null_none(model, monkeypatch, ends, expected):
    """Oracle: the planned ends with token 1, and all else token 9; an end token is not counted."""
    from minidsv3.infer import decoder
    planned_ends(monkeypatch, decoder, [2, 5, 0, 99])
    monkeypatch.setattr(model, "config", model.config.replace(eos_token_id=ends))
    result = generate(model, torch.arange(4)[:, None].expand(4, 3), 7)
    assert result.lengths.tolist() == expected
    padding = 0 if ends is None else model.config.end_ids[0]
    for row, length in zip(result.tokens.tolist(), expected):
        assert row[length + 1:] == [padding] * len(row[length + 1:])


@pytest.mark.parametrize("options, words", [
    ({"temperature": -0.1}, "temperature=-0.1 .*0 is greedy"), ({"top_p": 1.01}, "top_p=1.01"),
    ({"seed": -1}, "seed=-1 .*between 0"), ({"seed": 2**64}, "seed=1844.*between 0"),
    ({"seed": [1, 2]}, "seed=.1, 2. has 2 numbers for 1 sequences"),
    ({"speculative": -1}, "speculative=-1 .*0 .no drafts."),
    ({"speculative": 500}, "speculative=500 .*to 16"),
    ({"max_new_tokens": 0}, "max_new_tokens=0 .*at least 1"),
    ({"max_new_tokens": 10**9}, "1,000,000,003 tokens .* 64 times the 64 .*up to 4,096")])
def test_bad_settings_are_refused(model, options, words):
    """Oracle: the message names the value and what to choose."""
    with pytest.raises(ValueError, match=words):
        generate(model, torch.tensor([[5, 6, 7]]), **{"max_new_tokens": 5, **options})


def test_beyond_the_window_there_is_a_notice(exact, capsys):
    """Oracle: greedy by definition, also beyond the window of 64; one line names both numbers."""
    prompts = prompts_of([40, 3])
    assert made(generate(exact, prompts, 24)) and capsys.readouterr().err == ""
    result = generate(exact, prompts, 60)
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("100 tokens are more than the 64 that this model was trained on")
    assert made(result) == [[token for token in alone(exact, prompt.tolist(), 60) if token != 1]
                            for prompt in prompts]


@pytest.mark.parametrize("prompt", [torch.zeros(1, 0, dtype=torch.long), [], [torch.tensor([])]])
def test_an_empty_prompt_is_refused(model, prompt):
    """Oracle: the message says what to do instead."""
    with pytest.raises(ValueError, match="begin with EOS"):
        generate(model, prompt, 5)


def test_damaged_weights_are_refused(model):
    """Oracle: the message says that the weights are damaged."""
    from copy import deepcopy
    damaged = deepcopy(model)
    damaged.norm.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="weights are damaged"):
        generate(damaged, torch.tensor([[5, 6, 7]]), 5)
