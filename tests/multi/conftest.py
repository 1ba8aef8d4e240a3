"""The model that the tests of the live engines serve, and the same as a checkpoint."""

import pytest
import torch

from minidsv3 import DeepSeekV3, hf
from tests.infer.conftest import SMALL


@pytest.fixture(scope="module")
def model():
    """A random model in float64: two layers, one MTP module, a vocabulary of 300."""
    torch.manual_seed(0)
    return DeepSeekV3(SMALL).double().eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """The same model as a checkpoint."""
    folder = tmp_path_factory.mktemp("model")
    hf.save(model, folder)
    return folder
