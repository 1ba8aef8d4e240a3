"""transformers computed in float64 throughout, which it does not do by itself."""

import pytest
import torch
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as reference


@pytest.fixture
def lifted(monkeypatch):
    """transformers with the float32 of its norms and router lifted to float64.

    Rotary tables stay float32, as they do in ours: that is part of the model's definition.
    """
    def norm(self, x):
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return self.weight * x * torch.rsqrt(mean_square + self.variance_epsilon)

    wide = type("Wide", (), {"__getattr__": lambda self, name: getattr(torch, name)})()
    wide.float32 = torch.float64                 # what the router casts its two inputs to
    monkeypatch.setattr(reference.DeepseekV3RMSNorm, "forward", norm)
    monkeypatch.setitem(reference.DeepseekV3TopkRouter.forward.__globals__, "torch", wide)
