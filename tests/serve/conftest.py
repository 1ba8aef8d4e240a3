"""The small random model and the tokenizer of tests/infer, and the model as a checkpoint."""

from collections import deque

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


class End:
    """An end of a pipe that a test plays: the messages to read, in order; what is sent is kept."""

    def __init__(self, *messages):
        self.messages, self.sent = deque(messages), []

    def recv_bytes(self):
        """The next message; EOFError when there is none."""
        if not self.messages:
            raise EOFError
        return self.messages.popleft()

    def send_bytes(self, data):
        """Keep a message."""
        self.sent.append(data)
