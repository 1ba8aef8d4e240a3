"""One small random model and one tokenizer for all tests of this folder."""

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.data.tokenizer import Tokenizer

SMALL = ModelConfig.preset("tiny").replace(
    vocab_size=300, hidden_size=32, num_hidden_layers=2, intermediate_size=48,
    moe_intermediate_size=16, max_position_embeddings=64, initializer_range=0.2)


@pytest.fixture(scope="session")
def model():
    """Two layers and an MTP module, 300 tokens, float32."""
    torch.manual_seed(0)
    return DeepSeekV3(SMALL).eval()


@pytest.fixture(scope="session")
def exact(model):
    """The same model in float64, so that rounding does not change which token is most likely."""
    twin = DeepSeekV3(model.config).double().eval()
    twin.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    return twin


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer trained on a few lines of code."""
    return Tokenizer.train([f"def f{n}(self, x):\n    return x + {n}\n" for n in range(99)], 300)
