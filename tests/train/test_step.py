"""A step on several processes with other layers; tests/multi has those that share their layers."""

import pytest
import torch
import torch.distributed as dist

from minidsv3 import DeepSeekV3, ModelConfig
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
RECIPE = TrainConfig(window=9, steps=10, batch_size=4, batch_start=4, micro_batch=2,
                     optimizer="adamw", precision="fp32", gamma=0.01, balance_weight=0.01)
STEPS = 10


def ten_steps(model, tokens, group=None):
    """Ten AdamW steps on one batch -> the figures of each step as plain numbers, the biases."""
    step = Step(model, make_optimizers(model, RECIPE), RECIPE, group)
    read = [step.read(step(tokens, (number + 1) / STEPS)) for number in range(STEPS)]
    biases = [router.e_score_correction_bias.tolist() for router in model.routers()]
    return [[*figures[:5], figures.loads.tolist()] for figures in read], biases


def new_model(config=CONFIG):
    """A model with the same weights in every process, and a batch."""
    torch.manual_seed(0)
    return DeepSeekV3(config).double(), torch.randint(61, (4, 10))


def of_another_depth(rank):
    """Ten steps of a pipeline stage; the two processes differ in their number of routers."""
    groups = [dist.new_group([0]), dist.new_group([1])]
    model, tokens = new_model(CONFIG.replace(num_hidden_layers=3 - rank))
    return ten_steps(model, tokens, groups[rank])[1]


def test_processes_with_different_layers_count_for_themselves():
    """Oracle: each of the two models alone in one process."""
    for rank, biases in enumerate(run_ranks(of_another_depth, 2)):
        model, tokens = new_model(CONFIG.replace(num_hidden_layers=3 - rank))
        assert ten_steps(model, tokens)[1] == biases
