"""Parameter counts against published figures and a sum written out by hand."""

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.measure.accounting import count_parameters


def on_meta(config):
    """A model without memory."""
    with torch.device("meta"):
        return DeepSeekV3(config)


def test_the_released_model_has_671_billion_parameters():
    """Oracle: the count of the released checkpoint's main model, and of one token's share."""
    model = on_meta(ModelConfig.preset("v3-671b"))
    assert count_parameters(model) == (671_026_404_352, 37_552_282_624)
    mtp = sum(parameter.numel() for parameter in model.mtp.parameters())
    assert mtp == 11_610_067_968


def test_moonlight_has_16_billion_parameters():
    """Oracle: 15,960,110,208 in the released file, less 26 * 64 biases that are buffers here."""
    total, active = count_parameters(on_meta(ModelConfig.preset("moonlight-16b")))
    assert total == 15_960_110_208 - 26 * 64
    assert active == total - 26 * 58 * 3 * 2048 * 1408


@pytest.mark.parametrize("tied, rank, shared, dense", [
    (True, 20, 1, 1), (False, None, 2, 0), (True, 20, 0, 5)])
def test_a_small_model_by_hand(tied, rank, shared, dense):
    """Oracle: all matrices written out; with more dense layers than layers there is no expert."""
    V, C, L, H, F, E, K = 261, 24, 3, 2, 10, 6, 2
    config = ModelConfig(
        vocab_size=V, hidden_size=C, num_hidden_layers=L, intermediate_size=30,
        tie_word_embeddings=tied, num_attention_heads=H, q_lora_rank=rank, kv_lora_rank=14,
        qk_nope_head_dim=5, qk_rope_head_dim=4, v_head_dim=7, n_routed_experts=E,
        n_shared_experts=shared, num_experts_per_tok=K, moe_intermediate_size=F,
        first_k_dense_replace=dense, n_group=3, topk_group=2, num_nextn_predict_layers=2,
        rope_scaling=None, max_position_embeddings=99)
    queries = C * H * 9 if rank is None else C * rank + rank + rank * H * 9
    attention = queries + C * (14 + 4) + 14 + 14 * H * (5 + 7) + H * 7 * C
    sparse = max(0, L - dense)
    total = V * C * (1 if tied else 2) + C + L * (attention + 2 * C)
    total += (L - sparse) * 3 * C * 30 + sparse * (E * C + (E + shared) * 3 * C * F)
    active = total - sparse * (E - K) * 3 * C * F
    assert count_parameters(DeepSeekV3(config)) == (total, active)
