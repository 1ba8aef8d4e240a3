"""Training on several processes equals training on one: every loss term, norm, load and bias."""

import pytest
import torch
import torch.distributed as dist

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.device import whole
from minidsv3.scale.mesh import Plan, finish, make_mesh, parallelize
from minidsv3.train.optim import make_optimizers
from minidsv3.train.recipe import TrainConfig
from minidsv3.train.step import Step
from tests.multi.launch import run_ranks

pytestmark = pytest.mark.multi

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=24, num_hidden_layers=3, intermediate_size=40,
    num_attention_heads=3, q_lora_rank=12, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=6,
    v_head_dim=10, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=16,
    first_k_dense_replace=1, n_group=2, topk_group=1, num_nextn_predict_layers=1,
    rope_scaling=None, max_position_embeddings=64, tie_word_embeddings=True)
RECIPE = TrainConfig(window=9, steps=20, batch_size=8, batch_start=8, micro_batch=8,
                     optimizer="muon", precision="fp32", gamma=0.01, balance_weight=0.01)


def some_steps(count, recipe, dtype, tie=True, plan=None):
    """Optimiser steps on one batch -> [figures of each step], biases, a sum over all weights.

    plan: the processes, of which this is one; None: a single process.
    """
    torch.manual_seed(0)
    model = DeepSeekV3(CONFIG.replace(tie_word_embeddings=tie)).to(dtype)
    tokens = torch.randint(61, (8, 10))
    if plan:
        model = parallelize(model, make_mesh(plan))
        tokens = tokens.chunk(plan.processes)[dist.get_rank()]
    optimizers = make_optimizers(model, recipe)
    if plan:
        optimizers = finish(optimizers)
    step = Step(model, optimizers, recipe)
    read = [step.read(step(tokens, (number + 1) / count)) for number in range(count)]
    weights = [whole(parameter).detach().abs().sum().item() for parameter in model.parameters()]
    biases = [router.e_score_correction_bias.tolist() for router in model.routers()]
    return [[*each[:5], each.loads.tolist()] for each in read], biases, weights


def on_a_rank(rank, count, recipe, dtype, tie, plan):
    """The same as one of several processes."""
    return some_steps(count, recipe, dtype, tie, plan)


def compare(plan, count, recipe, dtype, tolerance, tie=True):
    """Every process reports the losses of a single one."""
    expected, biases, weights = some_steps(count, recipe, dtype, tie)
    assert expected[-1][0] < expected[0][0] - 0.1                      # it has learnt something
    for got, its_biases, its_weights in run_ranks(on_a_rank, plan.processes, count, recipe, dtype,
                                                  tie, plan):
        for ours, theirs in zip(got, expected, strict=True):
            assert ours[:5] == pytest.approx(theirs[:5], rel=tolerance)
            if dtype == torch.float64:           # in float32 a near tie may fall otherwise
                assert ours[5] == theirs[5]
        assert its_weights == pytest.approx(weights, rel=10 * tolerance)
        if dtype == torch.float64:
            assert its_biases == biases


@pytest.mark.parametrize("optimizer, micro_batch", [("muon", 8), ("adamw", 8), ("muon", 1),
                                                    ("adamw", 1)])
@pytest.mark.parametrize("plan", [Plan(fsdp=2), Plan(fsdp=4), Plan(ep=2), Plan(ep=4),
                                  Plan(ep=2, fsdp=2)], ids=str)
def test_20_steps_are_those_of_one_process(plan, optimizer, micro_batch):
    """Oracle: one process with the whole batch, in float64; relative 1e-9.

    Only the order of sums differs. micro_batch: 1 accumulates gradients over several.
    """
    recipe = RECIPE.replace(optimizer=optimizer, micro_batch=micro_batch)
    compare(plan, 20, recipe, torch.float64, 1e-9)


def test_an_untied_head():
    """Oracle: one process. Float64, 5 steps."""
    compare(Plan(ep=2, fsdp=2), 5, RECIPE, torch.float64, 1e-9, tie=False)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("plan", [Plan(fsdp=2), Plan(ep=2, fsdp=2)], ids=str)
def test_5_steps_in_float32(plan, optimizer):
    """Oracle: one process. Relative 1e-4."""
    compare(plan, 5, RECIPE.replace(optimizer=optimizer), torch.float32, 1e-4)
