"""The whole network against transformers' DeepseekV3, which other people wrote.

Ours is saved in the released format and loaded there, so names and layouts are tested as well.
Errors are max|difference| / max|reference| of a tensor.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, DeepseekV3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as reference

from minidsv3 import DeepSeekV3, ModelConfig, hf
from minidsv3.config import RopeScaling
from minidsv3.infer.sampling import generate
from minidsv3.model.rope import rope_frequencies

YARN = RopeScaling(4.0, 16, mscale=1.0, mscale_all_dim=1.0)
BASE = ModelConfig(
    vocab_size=97, hidden_size=48, intermediate_size=72, moe_intermediate_size=24,
    num_hidden_layers=3, first_k_dense_replace=1, num_attention_heads=3, q_lora_rank=20,
    kv_lora_rank=28, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=12,
    num_experts_per_tok=3, n_group=4, topk_group=2, rope_scaling=YARN, num_nextn_predict_layers=0,
    max_position_embeddings=64)
CONFIGS = {
    "yarn": BASE,
    "no query latent, one group, two shared experts, no YaRN": BASE.replace(
        q_lora_rank=None, n_group=1, topk_group=1, n_shared_experts=2, rope_scaling=None,
        rms_norm_eps=1e-5),
    "gates not normalised, tied, temperature on cos and sin": BASE.replace(
        norm_topk_prob=False, tie_word_embeddings=True, rope_scaling=RopeScaling(4.0, 16)),
}


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def both(config, folder, dtype, **options):
    """One set of random weights, gains and biases (negative ones too) in both implementations."""
    torch.manual_seed(0)
    ours = DeepSeekV3(config).to(dtype)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            scale, mean = (0.1, 1.0) if "norm" in name else (0.15, 0.0)
            parameter.normal_(mean, scale)
        for router in ours.routers():
            router.e_score_correction_bias.uniform_(-0.5, 0.3)
    hf.save(ours, folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    tokens = torch.randint(config.vocab_size, (2, 23))
    return ours, theirs.train(), tokens


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_and_all_gradients_equal_in_float32(config, tmp_path):
    """Oracle: transformers with sdpa attention."""
    ours, theirs, tokens = both(config, tmp_path, torch.float32, attn_implementation="sdpa")
    logits, expected = ours(tokens), theirs(tokens).logits
    assert relative(logits, expected) <= 1e-5

    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    theirs(tokens, labels=tokens).loss.backward()
    their_gradients = {n.removeprefix("model."): p.grad for n, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if name in their_gradients:              # a tied head has one name only
            assert relative(parameter.grad, their_gradients.pop(name)) <= 1e-4, name
    assert not their_gradients


@pytest.fixture
def lifted(monkeypatch):
    """transformers with the float32 of its norms and router lifted to float64."""
    def norm(self, x):
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return self.weight * x * torch.rsqrt(mean_square + self.variance_epsilon)

    wide = type("Wide", (), {"__getattr__": lambda self, name: getattr(torch, name)})()
    wide.float32 = torch.float64                 # what the router casts its two inputs to
    monkeypatch.setattr(reference.DeepseekV3RMSNorm, "forward", norm)
    monkeypatch.setitem(reference.DeepseekV3TopkRouter.forward.__globals__, "torch", wide)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_equal_in_float64(config, tmp_path, lifted):
    """Oracle: transformers, lifted, with its expert loop; rotary tables are float32 in both."""
    ours, theirs, tokens = both(config, tmp_path, torch.float64, attn_implementation="sdpa",
                                experts_implementation="eager")
    assert relative(ours(tokens), theirs(tokens).logits) <= 1e-11


LONG_WINDOW = (16, 1e4, RopeScaling(4.0, 200_000))       # the ramp ends beyond the last pair


@pytest.mark.parametrize("channels, theta, scaling", [
    LONG_WINDOW, (32, 5e4, RopeScaling(8.0, 64)), (64, 1e6, RopeScaling(2.5, 1000, 16.0, 2.0))],
    ids=["long window", "short window", "other betas"])
def test_yarn_frequencies_equal(channels, theta, scaling):
    """Oracle: transformers' own initialiser, to 2e-7 relative."""
    config = BASE.replace(qk_rope_head_dim=channels, rope_theta=theta, rope_scaling=scaling)
    values = hf.released_config(config, "float32") | {"max_position_embeddings": 10**6}
    theirs, _ = ROPE_INIT_FUNCTIONS["yarn"](DeepseekV3Config(**values), "cpu")
    torch.testing.assert_close(rope_frequencies(config), theirs, rtol=2e-7, atol=0)


def test_greedy_text_equals_that_of_transformers(tmp_path):
    """Oracle: transformers.generate; ours runs over the latent cache."""
    ours, theirs, tokens = both(BASE, tmp_path, torch.float32, attn_implementation="sdpa")
    new = generate(ours.eval(), tokens, 16).tokens
    theirs = theirs.eval().generate(tokens, max_new_tokens=16, do_sample=False)[:, tokens.size(1):]
    assert torch.equal(new[:, :theirs.size(1)], theirs)
