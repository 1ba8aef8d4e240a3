"""The small random model and the tokenizer of tests/infer, and the model as a checkpoint."""

import pytest

from minidsv3 import hf
from tests.infer.conftest import exact as exact
from tests.infer.conftest import model as model
from tests.infer.conftest import tokenizer as tokenizer


@pytest.fixture(scope="session")
def folder(exact, tmp_path_factory):
    """The model in float64 as a checkpoint, which each engine of the separated form loads."""
    folder = tmp_path_factory.mktemp("model")
    hf.save(exact, folder)
    return folder
