"""A small model, its checkpoint, and ways to spoil both."""

import json

import safetensors.torch
import torch

from minidsv3 import DeepSeekV3, ModelConfig
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
