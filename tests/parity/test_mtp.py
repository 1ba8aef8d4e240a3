"""Our MTP modules against those of transformers: the same drafts from the same released layer."""

import pytest
import torch
import torch.nn.functional as F
from transformers.generation.candidate_generator import MTPCandidateGenerator
from transformers.modeling_layers import MtpModel
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as reference

from minidsv3.infer import generate
from tests.parity.models import BASE, MOONLIGHT, V3, Case, both, relative

CASES = {
    "V3, one depth": Case(V3.replace(num_nextn_predict_layers=1)),
    "two depths, negative scores": Case(
        BASE.replace(num_nextn_predict_layers=2), biases=(-2.5, -1.5)),
    "no query latent, one group, eps 1e-5": Case(MOONLIGHT.replace(num_nextn_predict_layers=1)),
    "tied, dense main blocks": Case(BASE.replace(
        num_nextn_predict_layers=1, tie_word_embeddings=True, first_k_dense_replace=3)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture
def with_mtp(tmp_path, monkeypatch):
    """A function like `both` that also gives the MTP model of transformers."""
    def make(case, dtype, **options):
        # transformers knows the MTP layer only by its number in the 671B model, 61; the models
        # here have fewer layers.
        first = case.config.num_hidden_layers
        layers = range(first, first + case.config.num_nextn_predict_layers)
        monkeypatch.setattr(reference.DeepseekV3PreTrainedModel,
                            "_keys_to_ignore_on_load_unexpected",
                            [rf"model\.layers\.{layer}\." for layer in layers])
        ours, theirs, tokens = both(case, tmp_path, dtype, **options)
        return ours, theirs, MtpModel.from_pretrained(theirs), tokens
    return make


def our_drafts(ours, tokens):
    """Logits of every depth k at every position, [(B, T-k, V)]."""
    states, _ = ours.mtp_states(ours.hidden_states(tokens)[0], tokens)
    return [ours.lm_head(state) for state in states]


def their_drafts(theirs, modules, tokens):
    """The same from transformers, whose own loop keeps only the last position of each depth."""
    hidden, drafts = theirs.model(tokens).last_hidden_state, []
    for k in range(1, modules.num_mtp_layers + 1):
        # Ours counts positions from 0, theirs from k. This shifts all angles by the same amount
        # and changes only the rounding of the float32 tables.
        positions = torch.arange(tokens.size(1) - k)[None]
        hidden = modules.forward_layer(k - 1, hidden[:, :-1], positions, None,
                                       input_ids=tokens[:, k:])
        drafts.append(modules.shared_head(hidden))
    return drafts


def assert_drafts_and_gradients_equal(ours, theirs, modules, tokens, tolerance, of_gradients):
    """Draft logits, then the gradient of their cross-entropy for every weight of both models."""
    pairs = list(zip(our_drafts(ours, tokens), their_drafts(theirs, modules, tokens), strict=True))
    for k, (drafts, expected) in enumerate(pairs, start=1):
        assert relative(drafts, expected) <= tolerance, k
        for logits in (drafts, expected):
            F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, k + 1:].flatten()).backward(
                retain_graph=True)
    # Their names differ from ours: the block is a separate module, the final norm is renamed.
    gradients = {name.replace(".mtp_block", "").replace("post_norm", "shared_head.norm"): p.grad
                 for name, p in modules.layers.named_parameters()}
    gradients = {f"mtp.{name}": g for name, g in gradients.items()}
    gradients |= {n.removeprefix("model."): p.grad for n, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert relative(parameter.grad, gradients[name]) <= of_gradients, name


@every_case
def test_drafts_and_all_gradients_equal_in_float32(case, with_mtp):
    """Oracle: transformers' MtpModel, as shipped."""
    assert_drafts_and_gradients_equal(*with_mtp(case, torch.float32), 1e-5, 1e-4)


@every_case
def test_drafts_and_all_gradients_equal_in_float64(case, with_mtp, lifted):
    """Oracle: transformers' MtpModel in float64, with its loop over experts."""
    assert_drafts_and_gradients_equal(
        *with_mtp(case, torch.float64), 1e-11, 1e-9)


@pytest.mark.parametrize("prompt", [[7, 7, 7, 7], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [0, 96]])
def test_speculative_text_and_every_draft_equal(prompt, with_mtp, monkeypatch):
    """Oracle: transformers.generate(use_mtp=True).

    The main model verifies every draft, so the text would be right even with wrong drafts.
    Therefore its drafts are compared too, with ours from one pass over the finished text.
    """
    ours, theirs, _, _ = with_mtp(CASES["V3, one depth"], torch.float32)
    drafted = {}                                          # tokens before -> the draft
    get_candidates = MTPCandidateGenerator.get_candidates

    def listen(self, input_ids, *arguments, **options):
        text, logits = get_candidates(self, input_ids, *arguments, **options)
        if text.size(1) > input_ids.size(1):              # not in its first call
            drafted[input_ids.size(1)] = text[0, -1].item()
        return text, logits

    monkeypatch.setattr(MTPCandidateGenerator, "get_candidates", listen)
    tokens = torch.tensor([prompt])
    text = theirs.eval().generate(tokens, attention_mask=torch.ones_like(tokens), use_mtp=True,
                                  do_sample=False, max_new_tokens=48)
    new = generate(ours.eval(), tokens, 48).tokens
    assert torch.equal(new, text[:, len(prompt):])
    drafts = our_drafts(ours, text)[0][0].argmax(-1)      # at i: predicts token i+2
    assert len(drafted) > 20
    assert drafted == {before: drafts[before - 2].item() for before in drafted}
