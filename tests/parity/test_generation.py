"""Text generated with our latent cache against transformers, which has its own cache."""

import pytest
import torch

from minidsv3.infer import generate
from tests.parity.models import CASES, V3, Case, both, every_case, relative

# transformers draws initial weights for the shared expert of width 0 as well.
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")

NEW = 64                         # tokens generated
UNSAID, SAID = 42, 28            # a token in no text below; a token in four of V3's


def prompts_of(config):
    """Five prompts (5, 9): one token repeated, a count up, a count down, two at random."""
    V = config.vocab_size
    random = torch.randint(V, (2, 9), generator=torch.Generator().manual_seed(7))
    return torch.stack([torch.full((9,), V - 1), torch.arange(9), V - torch.arange(1, 10),
                        *random])


def theirs_continued(theirs, tokens, **options):
    """What transformers' greedy search adds to tokens (B, T): (B, up to NEW)."""
    text = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False,
                           max_new_tokens=NEW, **options)
    return text[:, tokens.size(1):]


@pytest.mark.parametrize("name, batch", [
    pytest.param("V3", 1, marks=pytest.mark.slow), ("V3", 3), ("V3", 5), ("Moonlight", 3),
    ("Kimi-K2", 3)])
def test_64_greedy_tokens_of_five_prompts_equal(name, batch, tmp_path):
    """Oracle: transformers.generate, token for token, far beyond the first YaRN window.

    The same five prompts one by one, as three and two, or all together.
    """
    # With UNSAID as the end of a text, every text has its full length.
    config = CASES[name].config.replace(eos_token_id=UNSAID)
    ours, theirs, _ = both(Case(config), tmp_path, torch.float32)
    texts = []
    for prompts in prompts_of(config).split(batch):
        new = generate(ours.eval(), prompts, NEW).tokens
        assert torch.equal(new, theirs_continued(theirs.eval(), prompts))
        assert new.shape == (len(prompts), NEW)
        texts.extend(new.tolist())
    assert len({tuple(text) for text in texts}) == 5     # five prompts, five different texts


@pytest.mark.parametrize("name", ["V3", *(pytest.param(name, marks=pytest.mark.slow)
                                          for name in ("Moonlight", "Kimi-K2"))])
def test_64_greedy_tokens_of_uneven_prompts_equal(name, tmp_path, lifted):
    """Oracle: transformers.generate and ours, each prompt alone; here three are in one batch.

    Both in float64, so that the size of a batch decides no near tie of these random models.
    """
    ours, theirs, _ = both(Case(CASES[name].config), tmp_path, torch.float64)
    for model in (ours.eval(), theirs.eval()):
        model.lm_head.weight.data[ours.config.eos_token_id] = 0        # so that no text has it
    prompts = [row[:length] for row, length in zip(prompts_of(ours.config)[1:], (2, 9, 5))]
    together = generate(ours, prompts, NEW).tokens
    assert together.shape == (3, NEW)
    for row, prompt in zip(together, prompts):
        assert torch.equal(row, generate(ours, prompt[None], NEW).tokens[0])
        assert torch.equal(row, theirs_continued(theirs, prompt[None])[0])


def test_ended_texts_in_a_batch_equal(tmp_path):
    """Oracle: transformers.generate, which also fills the places after a text's end with EOS."""
    ours, theirs, _ = both(Case(V3.replace(eos_token_id=SAID)), tmp_path, torch.float32)
    prompts = prompts_of(V3)
    made = generate(ours.eval(), prompts, NEW)
    theirs = theirs_continued(theirs.eval(), prompts, pad_token_id=SAID)
    assert torch.equal(made.tokens, theirs)
    assert len(set(made.lengths.tolist())) == 5          # each of the five ends in another place


CHUNKS = [1, 7, 2, 13, 1, 1, 15]


def in_chunks(model, tokens):
    """Logits (B, T, V) of tokens (B, T) that come in irregular chunks, over one cache."""
    cache = model.new_cache(*tokens.shape)
    return torch.cat([model(chunk, cache) for chunk in tokens.split(CHUNKS, dim=1)], dim=1)


@every_case
def test_logits_in_irregular_chunks_equal_in_float32(case, tmp_path):
    """Oracle: transformers on the whole sequence at once, without any cache."""
    ours, theirs, tokens = both(case, tmp_path, torch.float32)
    assert relative(in_chunks(ours, tokens), theirs(tokens, use_cache=False).logits) <= 1e-5


@every_case
def test_logits_in_irregular_chunks_equal_in_float64(case, tmp_path, lifted):
    """Oracle: transformers in float64 on the whole sequence at once, without any cache."""
    ours, theirs, tokens = both(case, tmp_path, torch.float64)
    assert relative(in_chunks(ours, tokens), theirs(tokens, use_cache=False).logits) <= 1e-11
