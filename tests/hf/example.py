"""A small model, its checkpoint, and ways to spoil both."""

import json
import re

import pytest
import safetensors.torch
import torch

from minidsv3 import DeepSeekV3, ModelConfig, hf
from minidsv3.config import RopeScaling

SMALL = ModelConfig.preset("tiny").replace(
    vocab_size=64, hidden_size=24, num_hidden_layers=3, intermediate_size=40,
    num_attention_heads=2, q_lora_rank=12, kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4,
    v_head_dim=5, n_routed_experts=6, num_experts_per_tok=2, n_group=3, topk_group=2,
    moe_intermediate_size=9, max_position_embeddings=128)
YARN = RopeScaling(4.0, 32, mscale=1.0, mscale_all_dim=0.7)


def random_model(**changes):
    """A model no two tensors of which are alike, biases and gains included."""
    torch.manual_seed(1)
    model = DeepSeekV3(SMALL.replace(**changes)).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.normal_()
    return model


def edit(folder, **changes):
    """Change keys of config.json; None takes one out."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def rewrite(folder, change):
    """Change the tensors of a checkpoint."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def stack_experts(tensors):
    """Per-expert tensors of the small model -> stacks, as transformers has them in memory."""
    for layer in (1, 2, 3):
        stem = f"model.layers.{layer}.mlp.experts"
        gates, ups, downs = ([tensors.pop(f"{stem}.{e}.{kind}_proj.weight") for e in range(6)]
                             for kind in ("gate", "up", "down"))
        tensors[f"{stem}.gate_up_proj"] = torch.stack(
            [torch.cat(pair) for pair in zip(gates, ups, strict=True)])
        tensors[f"{stem}.down_proj"] = torch.stack(downs)


def assert_refused(folder, words):
    """Loading ends in one line that has all of the words, in this order."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        hf.load(folder)
    message = str(caught.value)
    assert re.search(".*".join(map(re.escape, words)), message) and "\n" not in message, message
