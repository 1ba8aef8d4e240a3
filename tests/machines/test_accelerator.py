"""On an accelerator without float64 a step must not wait; `meta` stands for such a device."""

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.infer.generation import generate
from minidsv3.infer.sampling import Sampler
from minidsv3.measure.evaluate import evaluate
from minidsv3.train.checkpoint import RunFolder
from minidsv3.train.optim import make_optimizers
from minidsv3.train.options import configure, parse_arguments
from minidsv3.train.recipe import TrainConfig
from minidsv3.train.step import Step
from tests.machines.emulation import Accelerator
from train_tiny import make_trainer

pytestmark = pytest.mark.slow

SAMPLED = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.01}


def on_meta(preset, **changes):
    """A model without memory, in bfloat16 as on a GPU."""
    with torch.device("meta"):
        model = DeepSeekV3(ModelConfig.preset(preset).replace(**changes))
    model.activation_dtype = torch.bfloat16
    return model


def one_step(preset, optimizer, device, model):
    """The whole optimiser step of a preset: two micro-batches, MTP and balance, bias update."""
    recipe = TrainConfig.preset(preset).replace(optimizer=optimizer)
    tokens = torch.zeros(2 * recipe.micro_batch, recipe.window + 1, dtype=torch.long, device=device)
    return Step(model, make_optimizers(model, recipe), recipe), tokens


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_a_training_step_reads_nothing_and_makes_no_float64(preset, optimizer):
    """Oracle: meta itself, where every read raises, and the emulated device."""
    model = on_meta(preset)
    step, tokens = one_step(preset, optimizer, "meta", model)
    with Accelerator(answer=False) as watch:
        figures = step(tokens, 0.5)
    assert watch.reads == 0
    config = model.config
    layers = config.num_moe_layers + config.num_nextn_predict_layers
    assert figures.shape == (5 + layers * config.n_routed_experts,)


def test_a_model_without_experts_keeps_to_the_device_too():
    """Oracle: meta, which cannot be mixed with tensors of the CPU; five figures and no loads."""
    model = on_meta("tiny", first_k_dense_replace=4, num_nextn_predict_layers=0)
    step, tokens = one_step("tiny", "muon", "meta", model)
    assert step(tokens, 0.5).shape == (5,)


@pytest.mark.parametrize("read", [
    lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: bool((x > 0).any()),
    lambda x: x[x > 0], lambda x: x.cpu(), lambda x: x.nonzero()])
def test_the_watch_sees_a_read(read):
    """Oracle: six ways to read a tensor. For some of them meta raises before the emulation does."""
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), \
            Accelerator(answer=False):
        read(torch.ones(3, device="meta"))


def test_the_watch_sees_float64():
    """Oracle: operations that such a device refuses, and some that it allows."""
    with Accelerator():
        torch.ones(3, device="meta").bfloat16()
        torch.ones(3).double()                             # on the CPU
        for make in (lambda x: x.double(), lambda x: x.to(torch.complex128),
                     lambda x: torch.zeros(2, dtype=torch.float64, device="meta")):
            with pytest.raises(AssertionError, match="on the device"):
                make(torch.ones(3, device="meta"))


def test_a_run_reads_once_a_step(miniature, tmp_path):
    """Oracle: the reads counted over two steps of a run, with batches and averaged weights."""
    arguments = parse_arguments([*miniature, "--out", str(tmp_path), "--precision", "bf16",
                                 "--set", "moe_intermediate_size=16"])
    run = make_trainer(*configure(arguments), RunFolder(tmp_path), torch.device("meta"))
    with Accelerator() as watch:
        for steps in (1, 2):
            run.train_step()
            assert watch.reads == steps


def test_evaluation_makes_no_float64_and_reads_at_its_end(miniature, tmp_path):
    """Oracle: the emulated device; two batches need as many reads as one."""
    model, reads = on_meta("tiny").eval(), []
    for windows in (16, 32):
        inputs = torch.zeros(windows, 64, dtype=torch.long)
        with Accelerator() as watch:
            evaluate(model, inputs, inputs, 1000)
        reads.append(watch.reads)
    assert reads[0] == reads[1] == 4                       # nats, agreed, compared, loads


@pytest.mark.parametrize("settings, reads", [({}, 1), (SAMPLED, 2)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("speculative", [0, 2])
def test_generation_makes_no_float64_and_reads_once_a_pass(settings, reads, speculative):
    """Oracle: the emulated device. Tokens are sampled on the CPU, so the probabilities of each
    draft and those of the main model are one read each.
    """
    model = on_meta("tiny", eos_token_id=0).eval()         # every token read is 1, no EOS
    prompts = [torch.arange(3, 9), torch.arange(3, 5)]     # of different lengths
    with Accelerator() as watch:
        result = generate(model, prompts, 5, speculative=speculative, **settings)
    drafts = speculative * (result.stats["passes"] - 1) if settings else 0
    assert result.stats["passes"] > 1 and result.lengths.shape == (2,)
    assert watch.reads == reads * result.stats["passes"] + drafts


def test_a_decoding_step_reads_nothing_up_to_the_choice():
    """Oracle: meta itself; prompts of different lengths are read, then one token of each."""
    model = on_meta("small").eval()
    cache = model.new_cache(2, 40)
    with torch.inference_mode(), Accelerator(answer=False) as watch:
        model.hidden_states(torch.zeros(2, 30, dtype=torch.long, device="meta"), cache, [30, 12])
        state, _ = model.hidden_states(torch.zeros(2, 1, dtype=torch.long, device="meta"), cache)
        p = Sampler(**SAMPLED).probabilities(model.lm_head(state))
    assert watch.reads == 0 and p.shape == (2, 1, model.config.vocab_size)


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
                    reason="needs a CUDA GPU of compute capability 9.0: meta cannot show a wait, "
                    "and on older GPUs each layer waits once")
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_step_never_waits_for_a_gpu(optimizer):
    """Oracle: torch's own detection of synchronisation."""
    torch.manual_seed(0)
    model = DeepSeekV3(ModelConfig.preset("tiny")).cuda()
    model.activation_dtype = torch.bfloat16
    step, tokens = one_step("tiny", optimizer, "cuda", model)
    step(tokens, 0.5)                                      # makes what is made only once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        figures = step(tokens, 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    step.read(figures)                                     # raises if they are not finite
