"""Benchmarks are scripts that import each other, so their folder is added to Python's path.

OURS and RECIPE are a model and a run that are small enough for tests.
"""

import sys
from pathlib import Path

from minidsv3 import ModelConfig
from minidsv3.train.recipe import TrainConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

OURS = ModelConfig(vocab_size=37, hidden_size=24, num_hidden_layers=2, intermediate_size=40,
                   tie_word_embeddings=True, num_attention_heads=3, q_lora_rank=12,
                   kv_lora_rank=16, qk_nope_head_dim=4, qk_rope_head_dim=6, v_head_dim=8,
                   n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=16,
                   first_k_dense_replace=1, n_group=2, topk_group=1, rope_scaling=None,
                   max_position_embeddings=64)
RECIPE = TrainConfig(window=11, steps=20, batch_size=4, micro_batch=3, batch_start=4,
                     optimizer="muon", precision="fp32")
