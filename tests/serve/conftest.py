"""The small random model and the tokenizer of tests/infer."""

from tests.infer.conftest import exact as exact
from tests.infer.conftest import model as model
from tests.infer.conftest import tokenizer as tokenizer
