"""Drafts change only the speed: greedy texts stay equal, sampled texts keep their distribution."""

import itertools

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig, hf
from minidsv3.infer import generate, speculative
from minidsv3.infer.decoder import Decoder, Sequence
from minidsv3.infer.sampling import Sampler, draw

TOY = ModelConfig.preset("tiny").replace(
    vocab_size=6, hidden_size=16, num_hidden_layers=2, intermediate_size=24, q_lora_rank=8,
    kv_lora_rank=8, num_attention_heads=2, moe_intermediate_size=8, max_position_embeddings=64,
    initializer_range=0.5, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def toy():
    """Six tokens; the main model and its MTP module have sharp distributions that differ."""
    torch.manual_seed(5)
    return DeepSeekV3(TOY).double().eval()


def made(result):
    return [row[:length].tolist() for row, length in zip(result.tokens, result.lengths)]


@pytest.fixture(scope="module")
def fifty(exact):
    """50 prompts of 1 to 20 tokens, in batches of ten, each batch with its text without drafts."""
    generator = torch.Generator().manual_seed(9)
    prompts = [torch.randint(5, 300, (1 + i % 20,), generator=generator) for i in range(50)]
    batches = [prompts[first:first + 10] for first in range(0, 50, 10)]
    return [(batch, made(generate(exact, batch, 24))) for batch in batches]


@pytest.mark.parametrize("drafts", [1, 2, 3])
def test_greedy_text_is_the_plain_one_on_50_prompts(exact, fifty, drafts):
    """Oracle: generation without drafts, float64."""
    for batch, plain in fifty:
        fast = generate(exact, batch, 24, speculative=drafts)
        assert made(fast) == plain
        assert len(fast.stats["acceptance"]) == drafts


def test_drafts_of_a_perfect_module_are_all_accepted(exact, monkeypatch):
    """Oracle: the drafts are replaced by the text made without drafts: k+1 tokens per pass."""
    prompt = torch.tensor([[5, 9, 33]])
    plain = generate(exact, prompt, 25).tokens[0].tolist()

    def draft(self, sequences):
        place = len(sequences[0].new)
        return torch.tensor([(plain + [0] * 3)[place:place + 3]]), None

    monkeypatch.setattr(speculative.Drafter, "draft", draft)
    fast = generate(exact, prompt, 25, speculative=3)
    assert fast.tokens[0].tolist() == plain
    assert fast.stats["passes"] == 1 + 6 and fast.stats["acceptance"] == [1.0, 1.0, 1.0]


def test_a_draft_is_what_the_module_says_of_the_whole_text(exact):
    """Oracle: mtp_states over the finished text, without a cache: the draft at each position."""
    decoder = Decoder(exact, 1, 60, speculative=1)
    sequence, guesses = Sequence([7, 8, 9, 10], 30, {1}), {}
    draft = decoder.drafter.draft

    def listen(sequences):
        tokens, q = draft(sequences)
        guesses[len(sequence.tokens) + len(sequence.new)] = tokens[0, 0].item()
        return tokens, q

    decoder.drafter.draft = listen
    decoder.start([sequence])
    while not sequence.ended:
        decoder.step()
    text = torch.tensor([sequence.tokens + sequence.new])
    with torch.no_grad():
        states, _ = exact.mtp_states(exact.hidden_states(text)[0], text)
        choices = exact.lm_head(states[0])[0].argmax(-1)         # at i: the draft of token i+2
    assert len(guesses) > 8
    assert guesses == {place: choices[place - 2].item() for place in guesses}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_acceptance_counts_the_drafts_that_are_in_the_text(exact, temperature):
    """Oracle: drafts and new tokens of every step, compared one by one."""
    decoder = Decoder(exact, 1, 60, speculative=2)
    sequence, seen = Sequence([7, 8, 9], 40, {1}, Sampler(temperature)), []
    choose = decoder.choose

    def listen(hidden, guesses=None, q=None):
        new = choose(hidden, guesses, q)
        if guesses is not None:
            seen.append((guesses[0].tolist(), new[0]))
        return new

    decoder.choose = listen
    decoder.start([sequence])
    while not sequence.ended:
        decoder.step()
    tried, accepted = [0, 0], [0, 0]
    for drafts, new in seen:                     # new ends with the first token that is no draft
        for place, (draft, token) in enumerate(zip(drafts, new)):
            tried[place] += 1
            accepted[place] += draft == token
    assert (decoder.tried, decoder.accepted) == (tried, accepted) and sum(accepted) < sum(tried)


def chi_square(counts, p):
    """p-value of the counts under p; cells with fewer than five expected counts are merged."""
    expected = p * counts.sum()
    small = expected < 5
    if small.any():
        counts = torch.cat([counts[~small], counts[small].sum()[None]])
        expected = torch.cat([expected[~small], expected[small].sum()[None]])
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2)


def always_accept(p, q, draft, generator):
    """A common mistake: every draft is accepted."""
    return draft


def redraw_from_p(p, q, draft, generator):
    """A less obvious mistake: after a rejection it draws from p, not from (p - q)+."""
    accepted = speculative.accept_or_replace(p, q, draft, generator)
    return draft if accepted == draft else draw(p, generator)


P = torch.tensor([0.30, 0.02, 0.25, 0.00, 0.33, 0.10], dtype=torch.float64)
Q = torch.tensor([0.05, 0.40, 0.25, 0.10, 0.20, 0.00], dtype=torch.float64)


def counts_of(rule, seed, draws=20_000):
    """How often each token results when a rule accepts or replaces a draft from Q."""
    generator, counts = torch.Generator().manual_seed(seed), torch.zeros(6, dtype=torch.float64)
    for _ in range(draws):
        counts[rule(P, Q, draw(Q, generator), generator)] += 1
    return counts


@pytest.mark.parametrize("seed", [0, 1])
def test_the_rule_draws_from_p(seed):
    """Oracle: P itself, chi-square over 20,000 draws."""
    counts = counts_of(speculative.accept_or_replace, seed)
    assert counts[3] == 0 and chi_square(counts[P > 0], P[P > 0]) > 0.01


def test_rounding_that_leaves_nothing_to_draw_from_is_harmless(monkeypatch):
    """Oracle: a token of p, if q exceeds p everywhere by rounding and the draft is rejected."""
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(1 - 2.0**-53).double())
    p = torch.tensor([0.5, 0.5])
    assert speculative.accept_or_replace(p, p * (1 + 1e-6), 0, None) in (0, 1)


@pytest.mark.parametrize("rule", [always_accept, redraw_from_p])
def test_the_test_notices_a_broken_rule(rule):
    """Oracle: the same chi-square, which must reject it, after a quarter of the draws."""
    counts = counts_of(rule, 0, draws=5_000)
    assert counts[3] > 0 or chi_square(counts[P > 0], P[P > 0]) < 1e-6


def distribution_of_three(model, prompt, sampler):
    """The exact probability of any three tokens after a prompt, by the chain rule: (V, V, V)."""
    V = model.config.vocab_size
    texts = torch.tensor([[*prompt, a, b] for a, b in itertools.product(range(V), repeat=2)])
    with torch.no_grad():
        p = sampler.probabilities(model(texts))                    # (V*V, T, V)
    p = p.view(V, V, -1, V)
    first, second, third = p[0, 0, -3], p[:, 0, -2], p[:, :, -1]
    return first[:, None, None] * second[:, :, None] * third


def count_threes(model, prompt, sampler, seed, batches, size=1000):
    """Counts of three tokens after a prompt, sampled with two drafts per step."""
    V = model.config.vocab_size
    counts = torch.zeros(V**3, dtype=torch.float64)
    for batch in range(batches):
        seeds = range(seed + size * batch, seed + size * (batch + 1))
        new = generate(model, [torch.tensor(prompt)] * size, 3, *sampler, speculative=2,
                       seed=seeds).tokens
        counts += (new * torch.tensor([V * V, V, 1])).sum(1).bincount(minlength=V**3)
    return counts.view(V, V, V)


def p_value_of_texts(model, sampler, seed, batches=20):
    """p-value of texts of three tokens, sampled with drafts, under the model's own distribution."""
    p = distribution_of_three(model, [2, 5, 3], sampler)
    counts = count_threes(model, [2, 5, 3], sampler, seed, batches)
    # After EOS (1) there is only EOS, so all texts with the same beginning are merged.
    p[1], counts[1] = p[1].sum() / 36, counts[1].sum() / 36
    p[:, 1], counts[:, 1] = (x[:, 1].sum(-1, keepdim=True) / 6 for x in (p, counts))
    assert not counts[p == 0].any()
    return chi_square(counts[p > 0], p[p > 0])


@pytest.mark.slow
@pytest.mark.parametrize("sampler, seed", [
    (Sampler(1.0), 0), (Sampler(0.7, top_p=0.9), 100_000)], ids=["plain", "top-p"])
def test_sampled_texts_have_the_model_s_distribution(toy, sampler, seed):
    """Oracle: probabilities of all texts of three tokens, by the chain rule; 20,000 texts."""
    assert p_value_of_texts(toy, sampler, seed) > 0.01


@pytest.mark.slow
def test_the_test_of_texts_notices_a_broken_rule(toy, monkeypatch):
    """Oracle: the same test with drafts that are always accepted; 5,000 texts are enough."""
    monkeypatch.setattr(speculative, "accept_or_replace", always_accept)
    assert p_value_of_texts(toy, Sampler(1.0), 0, batches=5) < 1e-6


def test_without_a_module_drafts_are_refused(exact):
    """Oracle: the message names the number of drafts and the cause."""
    bare = DeepSeekV3(exact.config.replace(num_nextn_predict_layers=0))
    with pytest.raises(ValueError, match="speculative=2 drafts .*num_nextn_predict_layers=0"):
        generate(bare, torch.tensor([[5]]), 4, speculative=2)


def test_the_shipped_checkpoint_keeps_its_text(tmp_path):
    """Oracle: greedy text without drafts of the shipped checkpoint, float32, four prompts."""
    from pathlib import Path

    from minidsv3.data.tokenizer import Tokenizer
    shipped = Path(__file__).resolve().parents[2] / "checkpoints" / "tiny"
    model, tokenizer = hf.load(shipped, dtype=torch.float32), Tokenizer.load(shipped)
    prompts = [torch.tensor(tokenizer.encode_prompt(text)) for text in
               ("def read(self", "class Point:\n    def __init__", "import os\n\n", "for i in")]
    plain = generate(model, prompts, 48)
    fast = generate(model, prompts, 48, speculative=2)
    assert made(fast) == made(plain)
    assert fast.stats["passes"] < 0.75 * plain.stats["passes"]
