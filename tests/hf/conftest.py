"""A good checkpoint for each test that spoils one."""

import pytest

from minidsv3 import hf
from tests.hf.example import random_model


@pytest.fixture
def folder(tmp_path):
    """A good checkpoint."""
    hf.save(random_model(tie_word_embeddings=False), tmp_path / "model")
    return tmp_path / "model"
