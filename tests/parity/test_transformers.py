"""The whole network against transformers' DeepseekV3, which other people wrote.

Errors are max|difference| / max|reference| of a tensor.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers import DeepseekV3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from minidsv3 import hf
from minidsv3.config import RopeScaling
from minidsv3.infer import generate
from minidsv3.model.rope import rope_frequencies
from tests.parity.models import BASE, Case, both, every_case, relative

# transformers draws initial weights for the shared expert of width 0 as well.
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


@every_case
def test_logits_and_all_gradients_equal_in_float32(case, tmp_path):
    """Oracle: transformers as shipped, with sdpa attention."""
    ours, theirs, tokens = both(case, tmp_path, torch.float32)
    assert relative(ours(tokens), theirs(tokens).logits) <= 1e-5
    assert_all_gradients_equal(ours, theirs, tokens, 1e-4)


@every_case
def test_logits_equal_in_float64(case, tmp_path, lifted):
    """Oracle: transformers in float64, with its loop over experts; both have float32 rotations."""
    ours, theirs, tokens = both(case, tmp_path, torch.float64)
    assert relative(ours(tokens), theirs(tokens).logits) <= 1e-11


@every_case
def test_all_gradients_equal_in_float64(case, tmp_path, lifted):
    """Oracle: autograd through transformers in float64; no parameter on either side is left out."""
    ours, theirs, tokens = both(case, tmp_path, torch.float64)
    assert_all_gradients_equal(ours, theirs, tokens, 1e-9)


def assert_all_gradients_equal(ours, theirs, tokens, tolerance):
    """Compare the next-token loss's gradient for every parameter, relative to its largest entry."""
    # Not the loss of transformers: it casts logits to float32.
    for logits in (ours(tokens), theirs(tokens).logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    their_gradients = {name.removeprefix("model."): parameter.grad
                       for name, parameter in theirs.named_parameters() if parameter.numel()}
    for name, parameter in ours.named_parameters():
        if name == "lm_head.weight" and ours.config.tie_word_embeddings:
            continue                             # theirs has only embed_tokens.weight
        assert relative(parameter.grad, their_gradients.pop(name)) <= tolerance, name
    assert not their_gradients


LONG_WINDOW = (16, 1e4, RopeScaling(4.0, 200_000))       # the ramp ends beyond the last pair


@pytest.mark.parametrize("channels, theta, scaling", [
    LONG_WINDOW, (32, 5e4, RopeScaling(8.0, 64)), (64, 1e6, RopeScaling(2.5, 1000, 16.0, 2.0)),
    (64, 5e4, RopeScaling(32.0, 4096, 1.0, 1.0)),
    (64, 1e4, RopeScaling(40.0, 4096, mscale=1.0, mscale_all_dim=1.0)),
    (32, 156.25, RopeScaling(40.0, 64, mscale=1.0, mscale_all_dim=1.0)),
    (32, 1e4, RopeScaling(4.0, 64, 32.0, 32.0))],          # the ramp ends at -1 and begins at 0
    ids=["long window", "short window", "other betas", "Kimi-K2", "DeepSeek-V3",
         "preset short, extended", "ends that cross"])
def test_yarn_frequencies_equal(channels, theta, scaling):
    """Oracle: transformers' own initialiser, to 2e-7 relative."""
    config = BASE.replace(qk_rope_head_dim=channels, rope_theta=theta, rope_scaling=scaling)
    values = hf.released_config(config, "float32") | {"max_position_embeddings": 10**6}
    theirs, _ = ROPE_INIT_FUNCTIONS["yarn"](DeepseekV3Config(**values), "cpu")
    torch.testing.assert_close(rope_frequencies(config), theirs, rtol=2e-7, atol=0)


def test_greedy_text_equals_that_of_transformers(tmp_path):
    """Oracle: transformers.generate; ours runs over the latent cache."""
    ours, theirs, tokens = both(Case(BASE), tmp_path, torch.float32)
    new = generate(ours.eval(), tokens, 16).tokens
    theirs = theirs.eval().generate(tokens, max_new_tokens=16, do_sample=False)[:, tokens.size(1):]
    assert torch.equal(new[:, :theirs.size(1)], theirs)
