"""info of a name on the hub, asked of a small server on this machine: what is downloaded."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from minidsv3 import hf
from minidsv3.hf.__main__ import main
from tests.hf.example import random_model

ROOT = Path(__file__).resolve().parents[2]


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that huggingface_hub needs, for one folder."""

    def __init__(self, folder, sent, *arguments):
        self.folder, self.sent = folder, sent
        super().__init__(*arguments)

    def do_HEAD(self):
        """The answer to GET without its content."""
        self.do_GET(content=False)

    def do_GET(self, content=True):
        """A list of the files, a file, or the part of it that is asked for."""
        path = self.path.partition("?")[0]
        names = sorted(file.name for file in self.folder.iterdir())
        name = path.removeprefix("/some/model/resolve/main/").removeprefix(
            f"/some/model/resolve/{'c' * 40}/")
        status, first = 200, 0
        if re.match("/api/models/some/model(/revision/main)?$", path):
            data = json.dumps({"id": "some/model", "sha": "c" * 40, "siblings": [
                {"rfilename": each} for each in names]}).encode()
        elif path.startswith("/api/models/some/model/tree/"):
            data = json.dumps([{"type": "file", "path": each, "oid": "d" * 40, "size":
                                (self.folder / each).stat().st_size} for each in names]).encode()
        elif name in names:
            data = (self.folder / name).read_bytes()
        else:
            status, data = 404, b"{}"
        whole = len(data)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2])
            status, data = 206, data[first:last + 1]
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{whole}")
        self.send_header("Content-Type", "application/json" if path.startswith("/api") else "text")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{name}"')
        self.end_headers()
        if content:
            self.wfile.write(data)
            self.sent[name] = self.sent.get(name, 0) + len(data)

    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture
def hub(tmp_path):
    """A folder that a server gives as some/model: -> folder, {file: bytes sent}, environment."""
    folder, sent = tmp_path / "served", {}
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder, sent)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield folder, sent, {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT":
                             f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0",
                             "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
                             "PYTHONPATH": str(ROOT)}
        server.shutdown()


def asked(name, environment, folder):
    """info NAME in a process of its own."""
    return subprocess.run([sys.executable, "-m", "minidsv3.hf", "info", name], env=environment,
                          cwd=folder, capture_output=True, encoding="utf-8", timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True])
def test_info_asks_the_hub_for_headers_alone(hub, tmp_path, capsys, shards):
    """Oracle: info of the folder itself; the bytes that were sent, less than half of the weights.

    huggingface_hub asks for 100 kB at once, so the model has more than twice as many.
    """
    folder, sent, environment = hub
    hf.save(random_model(vocab_size=12_000), folder, max_shard_size=2_000_000 if shards else 10**9)
    weights = list(folder.glob("*.safetensors"))
    assert (len(weights) > 1) == shards
    result = asked("some/model", environment, tmp_path)
    assert result.returncode == 0, result.stderr
    assert main(["info", str(folder)]) == 0

    def without_sizes(text):
        return re.sub(r"[\d,]+ bytes", "", text)

    assert without_sizes(result.stdout) == without_sizes(capsys.readouterr().out)
    size = sum(file.stat().st_size for file in weights)
    assert 0 < sum(sent[file.name] for file in weights) < size / 2
    assert sent["config.json"] == (folder / "config.json").stat().st_size
    assert not list(tmp_path.glob("cache/**/*.safetensors"))


@pytest.mark.slow
def test_a_name_that_the_hub_has_not_is_one_line(hub, tmp_path):
    """Oracle: exit code 2 and one line with the name."""
    result = asked("some/other", hub[2], tmp_path)
    line, = result.stderr.splitlines()
    assert result.returncode == 2 and "no folder some/other, and the Hugging Face hub" in line
