"""Training on several processes equals training on one: every loss term, norm, load and bias."""

import pytest
import torch
import torch.distributed as dist

from minidsv3 import DeepSeekV3, fp8
from minidsv3.device import whole
from minidsv3.scale import parallel
from minidsv3.scale.expert_parallel import two_hops
from minidsv3.scale.parallel import finish, make_mesh, parallelize
from minidsv3.scale.team import Plan
from minidsv3.train.optim import make_optimizers
from minidsv3.train.recipe import TrainConfig
from minidsv3.train.step import Step
from tests.multi.launch import run_ranks
from tests.train.test_step import CONFIG

pytestmark = pytest.mark.multi

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
        model = parallelize(model, make_mesh(plan.fsdp, plan.ep))
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


def assert_close(ours, theirs, tolerance):
    """Figures of one step. The norm of the gradient may differ ten times as much as the losses:

    Muon multiplies a small direction of an update up to 290 times, and its rounding too.
    """
    assert ours[:4] == pytest.approx(theirs[:4], rel=tolerance)
    assert ours[4] == pytest.approx(theirs[4], rel=10 * tolerance)


def compare(plan, count, recipe, dtype, tolerance, tie=True):
    """Every process reports the losses of a single one."""
    expected, biases, weights = some_steps(count, recipe, dtype, tie)
    assert expected[-1][0] < expected[0][0] - 0.1                      # it has learnt something
    for got, its_biases, its_weights in run_ranks(on_a_rank, plan.processes, count, recipe, dtype,
                                                  tie, plan):
        for ours, theirs in zip(got, expected, strict=True):
            assert_close(ours, theirs, tolerance)
            if dtype == torch.float64:           # in float32 a near tie may fall otherwise
                assert ours[5] == theirs[5]
        assert its_weights == pytest.approx(weights, rel=10 * tolerance)
        if dtype == torch.float64:
            assert its_biases == biases


PLANS = [Plan(fsdp=2), Plan(fsdp=4), Plan(ep=2), Plan(ep=4), Plan(ep=2, fsdp=2)]
CASES = [(PLANS[0], "adamw", 2), (PLANS[1], "muon", 8), (PLANS[2], "muon", 2),
         (PLANS[3], "adamw", 8), (PLANS[4], "muon", 8), (PLANS[4], "adamw", 8)]


@pytest.mark.parametrize("plan, optimizer, micro_batch", CASES, ids=str)
def test_20_steps_are_those_of_one_process(plan, optimizer, micro_batch):
    """Oracle: one process with the whole batch, in float64; relative 1e-9 (norms 1e-8).

    Only the order of sums differs. micro_batch: 1 accumulates gradients over several.
    """
    recipe = RECIPE.replace(optimizer=optimizer, micro_batch=micro_batch)
    compare(plan, 20, recipe, torch.float64, 1e-9)


def test_an_untied_head():
    """Oracle: one process. Float64, 5 steps."""
    compare(Plan(ep=2, fsdp=2), 5, RECIPE, torch.float64, 1e-9, tie=False)


@pytest.mark.parametrize("plan, optimizer", [(Plan(fsdp=2), "adamw"),
                                             (Plan(ep=2, fsdp=2), "muon")], ids=str)
def test_5_steps_in_float32(plan, optimizer, rounding):
    """Oracle: one process. Relative 1e-4; more for Muon where it computes in bfloat16."""
    tolerance = rounding if optimizer == "muon" else 1e-4
    compare(plan, 5, RECIPE.replace(optimizer=optimizer), torch.float32, tolerance)


def dtypes_in_a_step(rank):
    """The dtypes of weights while two blocks compute with activations in bfloat16; the loss."""
    torch.manual_seed(0)
    model = DeepSeekV3(CONFIG)
    model.activation_dtype = torch.bfloat16
    tokens = torch.randint(61, (8, 10))
    expected = model.loss(tokens).total.item()
    model = parallelize(model, make_mesh(fsdp=2, ep=2))
    seen = {}
    for name in ("self_attn.q_a_proj.weight", "mlp.gate.weight", "mlp.experts.down_proj"):
        owner, _, weight = name.rpartition(".")
        model.layers[1].get_submodule(owner).register_forward_pre_hook(     # FSDP has gathered
            lambda module, _, name=name, weight=weight: seen.update(
                {name: getattr(module, weight).dtype}))
    loss = model.loss(tokens.chunk(4)[rank]).total
    loss.backward()
    seen["gradient"] = model.layers[1].mlp.gate.weight.grad.dtype
    return seen, loss.item(), expected


def test_the_gate_stays_float32_when_blocks_are_gathered_in_bfloat16():
    """Report, section 3.3.1. The mean loss is that of one process to bfloat16's rounding."""
    results = run_ranks(dtypes_in_a_step, 4)
    assert results[0][0] == {
        "self_attn.q_a_proj.weight": torch.bfloat16, "mlp.experts.down_proj": torch.bfloat16,
        "mlp.gate.weight": torch.float32, "gradient": torch.float32}
    assert sum(result[1] for result in results) / 4 == pytest.approx(results[0][2], rel=2e-3)


def in_fp8(rank):
    """Three steps of a model in simulated FP8, with moments in bfloat16."""
    recipe = RECIPE.replace(optimizer="adamw", precision="fp8", gamma=0.0)
    torch.manual_seed(0)
    model = fp8.convert(DeepSeekV3(CONFIG))
    tokens = torch.randint(61, (8, 10))
    if rank is not None:
        model, tokens = parallelize(model, make_mesh(fsdp=1, ep=2)), tokens.chunk(2)[rank]
    step = Step(model, make_optimizers(model, recipe), recipe)
    return [step.read(step(tokens, (number + 1) / 3))[0] for number in range(3)]


def test_fp8_on_two_processes():
    """Oracle: one process, to what the rounding of 8 bits moves. Tokens travel in FP8."""
    for losses in run_ranks(in_fp8, 2):
        assert losses == pytest.approx(in_fp8(None), rel=2e-2)


def in_two_hops(rank, count, recipe):
    """Steps of one of four processes in two nodes, whose tokens take two hops."""
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3]), dist.new_group([0, 1]),
              dist.new_group([2, 3])]
    parallel.one_hop = lambda group: two_hops(groups[rank % 2], groups[2 + rank // 2], 2)
    return some_steps(count, recipe, torch.float64, plan=Plan(ep=4))


def test_20_steps_in_two_hops_are_those_of_one_process():
    """Oracle: one process with the whole batch; float64, relative 1e-9 (norms 1e-8)."""
    expected, biases, weights = some_steps(20, RECIPE, torch.float64)
    for got, its_biases, its_weights in run_ranks(in_two_hops, 4, 20, RECIPE):
        assert its_biases == biases and its_weights == pytest.approx(weights, rel=1e-8)
        for ours, theirs in zip(got, expected, strict=True):
            assert_close(ours, theirs, 1e-9)
            assert ours[5] == theirs[5]
