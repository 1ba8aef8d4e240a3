"""A step on several processes: loads are summed over all; each holds a shard of the model."""

import pytest
import torch
import torch.distributed as dist

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.train.optim import make_optimizers
from minidsv3.train.recipe import TrainConfig
from minidsv3.train.step import Step

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


def on_two_processes(work, folder):
    """Run work(rank) on two connected processes -> [the result of each]."""
    context = torch.multiprocessing.get_context("spawn")
    results, meeting = context.Queue(), (folder / "meet").as_uri()
    processes = [context.Process(target=run, args=(work, rank, meeting, results), daemon=True)
                 for rank in range(2)]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=120) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    return [found[0], found[1]]


def run(work, rank, meeting, results):
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    results.put((rank, work(rank)))
    dist.destroy_process_group()


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


def sharded(rank):
    """Ten steps of this process's half of the batch, the model's blocks in two shards (FSDP2)."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    model, tokens = new_model()
    for block in [*model.layers, *model.mtp]:
        fully_shard(block)
    fully_shard(model)
    register_fsdp_forward_method(model, "loss")
    assert model.layers[0].mlp.up_proj.weight.to_local().numel() == 40 * 24 / 2
    return ten_steps(model, tokens[2 * rank:2 * rank + 2])


def test_ten_steps_on_two_shards_are_those_of_one_process(tmp_path):
    """Oracle: one process with the whole batch, in float64: losses, gradient norms, loads, biases.

    Relative 1e-9: sums of gradients in another order. The balance loss is a mean over sequences,
    so it is that of the whole batch too.
    """
    expected, biases = ten_steps(*new_model())
    assert expected[-1][0] < expected[0][0] - 0.1                      # it has learnt something
    for got, its_biases in on_two_processes(sharded, tmp_path):
        for ours, theirs in zip(got, expected, strict=True):
            assert ours[:5] == pytest.approx(theirs[:5], rel=1e-9)
            assert ours[5] == theirs[5]
        assert its_biases == biases


def of_another_depth(rank):
    """Ten steps of a pipeline stage; the two processes differ in their number of routers."""
    groups = [dist.new_group([0]), dist.new_group([1])]
    model, tokens = new_model(CONFIG.replace(num_hidden_layers=3 - rank))
    return ten_steps(model, tokens, groups[rank])[1]


def test_processes_with_different_layers_count_for_themselves(tmp_path):
    """Oracle: each of the two models alone in one process."""
    for rank, biases in enumerate(on_two_processes(of_another_depth, tmp_path)):
        model, tokens = new_model(CONFIG.replace(num_hidden_layers=3 - rank))
        assert ten_steps(model, tokens)[1] == biases
