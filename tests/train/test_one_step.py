"""One step of one process against its parts, written out: terms, clip, rate and bias."""

import copy

import pytest
import torch

from minidsv3.train.recipe import learning_rate_factor
from minidsv3.train.step import Step
from tests.train.test_step import RECIPE, new_model


@pytest.mark.parametrize("progress, mtp_weight, gamma", [(0.5, 0.3, 0.01), (0.99, 0.1, 0.0)])
@pytest.mark.parametrize("clip_norm", [0.1, 1e9])
def test_a_step_does_what_its_recipe_says(progress, mtp_weight, gamma, clip_norm):
    """Oracle: the loss of the whole batch, torch's clip_grad_norm_, SGD, and the bias by hand."""
    recipe = RECIPE.replace(clip_norm=clip_norm, balance_weight=0.7, balance_over="routed")
    model, tokens = new_model()
    plain, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer.param_groups[0]["peak"] = 0.5
    step = Step(model, [optimizer], recipe)
    figures = step.read(step(tokens, progress))

    terms = plain.loss(tokens, mtp_weight, 0.7, "routed")
    terms.total.backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), clip_norm)
    assert 0.1 < norm < 1e9                      # one of the two clips, the other does not
    assert figures[:5] == pytest.approx([*(term.item() for term in terms), norm.item()], rel=1e-9)
    rate = 0.5 * learning_rate_factor(recipe, progress)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - rate * theirs.grad, rtol=0, atol=1e-12)
    for router, load in zip(model.routers(), plain.router_loads().double(), strict=True):
        moved = gamma * (load.mean() - load).sign()
        assert torch.equal(router.e_score_correction_bias, moved.float())
