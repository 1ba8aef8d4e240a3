"""A checkpoint of ours, one step of LoRA by `peft`, merged, and read here again.

Needs tests/clients/requirements.txt; run it with: pytest -m clients tests/clients
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

from minidsv3 import hf
from tests.hf.example import random_model


@pytest.mark.clients
def test_a_merged_step_is_read_here(tmp_path):
    """Oracle: the logits that transformers gives after merging; the step has changed them."""
    peft = pytest.importorskip("peft", reason="pip install -r tests/clients/requirements.txt")
    model, tokens = random_model(), torch.arange(50)[None] % 64
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)
    hf.save(model, tmp_path / "ours")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32,
                                                experts_implementation="eager")
    adapted = peft.get_peft_model(base, peft.LoraConfig(
        r=2, target_modules=["q_a_proj", "kv_b_proj", "o_proj"], init_lora_weights="gaussian"))
    optimizer = torch.optim.SGD(adapted.parameters(), lr=0.5)
    adapted(tokens, labels=tokens).loss.backward()
    optimizer.step()
    merged = adapted.merge_and_unload().eval()
    merged.save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        expected, again = merged(tokens).logits, hf.load(tmp_path / "merged")(tokens)
        assert (model(tokens) - expected).abs().max() > 1e-3
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-5)
