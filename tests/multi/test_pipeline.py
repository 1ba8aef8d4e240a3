"""Pipelines on 2 and 4 processes: losses, gradients and loads are those of a single process.

All of it is in float64, so that only the order of sums can differ.
"""

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.command import UserError
from minidsv3.scale.engine import torch_step
from minidsv3.scale.pipeline import Execution, Pipeline
from minidsv3.scale.programme import Compute, make_programme
from minidsv3.scale.stage import Stage
from tests.multi.launch import run_ranks

pytestmark = pytest.mark.multi
MICRO_BATCHES, WEIGHTS = 8, (0.3, 0.01, "affinity")      # a balance weight that can be noticed
WITHOUT_MTP = (0, 0.01, "routed")


def make_model(tied=False, modules=2):
    """A random model in float64: dense and sparse blocks, MTP modules, unequal sizes."""
    torch.manual_seed(3)
    config = ModelConfig(
        vocab_size=61, hidden_size=20, num_hidden_layers=9, intermediate_size=28,
        max_position_embeddings=64, tie_word_embeddings=tied, num_attention_heads=2,
        q_lora_rank=12, kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=8,
        n_routed_experts=6, n_shared_experts=1, num_experts_per_tok=2, n_group=2, topk_group=1,
        moe_intermediate_size=8, first_k_dense_replace=2, num_nextn_predict_layers=modules,
        rope_scaling=None, initializer_range=0.2)
    return DeepSeekV3(config).double()


def make_tokens(sequences=16):
    return torch.randint(61, (sequences, 8), generator=torch.Generator().manual_seed(4))


def single_process(model, tokens, weights=WEIGHTS):
    """Terms, gradients by name and loads of the whole batch, one micro-batch after the other."""
    terms = 0
    for part in tokens.chunk(MICRO_BATCHES):
        found = model.loss(part, *weights)
        (found.total / MICRO_BATCHES).backward()
        terms = terms + torch.stack([*found]).detach() / MICRO_BATCHES
    return terms, gradients(model), model.router_loads()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def ours(rank, schedule, tied, weights=WEIGHTS):
    model = make_model(tied)
    result = Pipeline(model, schedule, MICRO_BATCHES).step(make_tokens(), *weights)
    return result, gradients(model)


def torchs(rank, schedule, tied, modules, weights=WEIGHTS):
    model = make_model(tied, modules)
    result = torch_step(model, schedule, make_tokens(), MICRO_BATCHES, *weights)
    return result, gradients(model)


def compare(ranks, tied, modules=2, weights=WEIGHTS):
    """Assert that the results of all ranks are those of a single process, to 1e-12."""
    model = make_model(tied, modules)
    terms, expected, loads = single_process(model, make_tokens(), weights)
    found = {}
    for result, held in ranks:
        torch.testing.assert_close(torch.stack([*result.terms]), terms, rtol=0, atol=1e-12)
        assert torch.equal(result.loads, loads)
        for name, gradient in held.items():
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-12, msg=name)
            assert torch.equal(found.setdefault(name, gradient), gradient), name
    used = [name for name, _ in model.named_parameters() if weights[0] or "mtp" not in name]
    assert found.keys() == expected.keys() == set(used)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("schedule", ["1f1b", "zb1p", "dualpipe", "dualpipev"])
def test_every_term_and_gradient_is_that_of_one_process(schedule, ranks, tied):
    """Oracle: `model.loss` in this process; and the programme that is drawn, action by action."""
    results = run_ranks(ours, ranks, schedule, tied)
    compare(results, tied)
    for actions, (result, _) in zip(make_programme(schedule, ranks, MICRO_BATCHES), results,
                                    strict=True):
        drawn = [one for action in actions
                 for one in (action.chunks if isinstance(action, Compute) else [action])]
        assert result.executed == drawn


@pytest.mark.parametrize("schedule, ranks, tied, modules", [
    ("1f1b", 4, False, 2), ("zbv", 2, False, 1), ("zbv", 4, False, 1), ("zbv", 4, True, 2),
    ("dualpipev", 2, False, 1), ("dualpipev", 4, False, 1), ("dualpipev", 4, True, 2)])
def test_torchs_schedules_give_the_same_on_our_stages(schedule, ranks, tied, modules):
    """Oracle: `model.loss` in this process."""
    if schedule != "1f1b" and torch.__version__ < "2.12":
        pytest.skip("at its start this sends from a rank to itself, which gloo refuses")
    compare(run_ranks(torchs, ranks, schedule, tied, modules), tied, modules)


@pytest.mark.parametrize("schedule", ["1f1b", "zb1p", "dualpipe", "dualpipev"])
def test_at_weight_0_no_stage_runs_the_mtp_modules(schedule):
    """Oracle: `model.loss` in this process, which gives them no gradient, balance loss or load."""
    compare(run_ranks(ours, 2, schedule, False, WITHOUT_MTP), False, weights=WITHOUT_MTP)


@pytest.mark.parametrize("schedule, modules", [("1f1b", 2), ("zbv", 1)])
def test_nor_does_a_stage_on_torchs_schedules(schedule, modules):
    """Oracle: `model.loss` in this process."""
    if schedule != "1f1b" and torch.__version__ < "2.12":
        pytest.skip("at its start this sends from a rank to itself, which gloo refuses")
    compare(run_ranks(torchs, 2, schedule, False, modules, WITHOUT_MTP), False, modules,
            WITHOUT_MTP)


def split_backward(rank):
    """Names of the parameters that have a gradient after each of the first F, I and W."""
    model = make_model()
    pipeline = Pipeline(model, "zb1p", 2)
    execution = Execution(pipeline, make_tokens(4).chunk(2), WEIGHTS)
    found = []
    for action in pipeline.programme[:3]:
        execution.do(action)
        found.append(set(gradients(model)))
    return "".join(chunk.kind for chunk in execution.executed), found


def test_the_gradients_of_weights_come_with_w():
    """Oracle: the names of all parameters: I gives none a gradient, W gives all of them one."""
    kinds, found = run_ranks(split_backward, 1)[0]
    assert kinds == "FIW"
    assert found == [set(), set(), {name for name, _ in make_model().named_parameters()}]


def two_steps(rank):
    """Weights and router biases after two optimiser steps in a DualPipe of two ranks."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipeline = Pipeline(model, "dualpipe", MICRO_BATCHES)
    for _ in range(2):
        result = pipeline.step(make_tokens(), *WEIGHTS)
        optimizer.step()
        optimizer.zero_grad()
        model.update_router_bias(0.01, result.loads)
    return model.state_dict()


def test_two_optimiser_steps_are_those_of_one_process():
    """Oracle: the same two steps in this process, router biases included; both copies are equal."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        single_process(model, make_tokens())
        optimizer.step()
        optimizer.zero_grad()
        model.update_router_bias(0.01)
    first, second = run_ranks(two_steps, 2)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-11, msg=name)
        assert torch.equal(first[name], second[name]), name
    assert model.layers[5].mlp.gate.e_score_correction_bias.abs().max() > 0


def refused(rank):
    """The messages for what a pipeline cannot do."""
    texts = []
    for schedule, micro_batches, recompute, sequences in [
            ("dualpipe", 3, False, 16), ("dualpipe", 4, True, 16), ("dualpipe", 4, False, 10)]:
        model = make_model()
        model.recompute = recompute
        try:
            Pipeline(model, schedule, micro_batches).step(make_tokens(sequences))
        except UserError as error:
            texts.append(str(error))
    try:
        Stage(make_model(), 0, 10)
    except UserError as error:
        texts.append(str(error))
    try:
        torch_step(make_model(), "dualpipe", make_tokens(), 8)
    except UserError as error:
        texts.append(str(error))
    return texts


def test_what_a_pipeline_cannot_do_is_refused():
    """Oracle: the messages, with the value and a remedy, on both ranks."""
    expected = ["micro_batches=3 is odd", "recompute=True does not go with a pipeline",
                "10 sequences do not divide into 4 micro-batches", "10 stages need a block each",
                "schedule='dualpipe' is none that torch has"]
    for texts in run_ranks(refused, 2):
        assert len(texts) == 5
        assert all(text.startswith(start) for text, start in zip(texts, expected, strict=True))
