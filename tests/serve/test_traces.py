"""Traces of routing. Oracles: the routers' own loads; the routings of a pass."""

from pathlib import Path

import numpy as np
import pytest
import torch

from minidsv3 import DeepSeekV3
from minidsv3.infer.generation import generate
from minidsv3.serve import traces
from tests.infer.conftest import SMALL

TINY = Path(__file__).resolve().parents[2] / "checkpoints/tiny"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DeepSeekV3(SMALL)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_of_training_is_counted_as_the_routers_count(model, recompute):
    """Oracle: router_loads, except for the last position, which MTP modules do not see."""
    model.recompute = recompute
    with traces.record(model) as trace:
        model.loss(torch.randint(300, (3, 9))).total.backward()
    chosen = [torch.cat(passes) for passes in trace.chosen]
    counted = [torch.bincount(each.flatten(), minlength=SMALL.n_routed_experts).tolist()
               for each in chosen]
    assert counted == model.router_loads().tolist()
    length = min(map(len, chosen))
    read = trace.read()
    assert read.shape == (length, len(chosen), SMALL.num_experts_per_tok)
    assert traces.loads(read, SMALL.n_routed_experts)[-1].tolist() == counted[-1]
    assert trace.read().size == 0 and read.dtype == np.uint8


def test_nothing_is_recorded_before_and_after(model):
    tokens = torch.randint(300, (2, 5))
    plain = model(tokens)
    with traces.record(model) as trace:
        assert torch.equal(model(tokens), plain)
    model(tokens)
    _, routings = model.hidden_states(tokens)
    assert trace.read()[:, 0].tolist() == routings[0].experts.flatten(0, 1).tolist()


def test_loads_of_every_step():
    trace = np.array([[[0, 1]], [[1, 2]], [[1, 0]], [[2, 2]], [[0, 0]]])       # (5, 1, 2)
    assert traces.loads(trace, 3, tokens=2).tolist() == [[[1, 2, 1]], [[1, 1, 2]]]


def test_the_command_records_three_kinds_of_text(tmp_path, capsys):
    out = tmp_path / "trace.npz"
    assert traces.main([str(TINY), "--tokens", "512", "--out", str(out)]) == 0
    found, experts = traces.read_trace(out)
    assert experts == 16 and {each.shape for each in found.values()} == {(512, 3, 4)}
    assert "tables" in capsys.readouterr().out
    assert traces.main([str(TINY), "--tokens", "5", "--out", str(out)]) == 2
    assert "--tokens 5 is less than one window of 256" in capsys.readouterr().err


def test_what_cannot_be_recorded_is_refused_before_the_first_pass(tmp_path, capsys, monkeypatch):
    """More text than there is of one kind; and no file to write to."""
    monkeypatch.setattr(DeepSeekV3, "hidden_states", lambda *_: pytest.fail("a pass"))
    monkeypatch.setattr(traces, "text_of", lambda kind: "a b " * (99 if kind == "tables" else 999))
    for words, text in ((["--out", ""], "--out . must name a file that ends in .npz."),
                        (["--out", str(tmp_path)], "must name a file that ends in .npz."),
                        (["--tokens", "900"], "--tokens 900 is more than the ")):
        assert traces.main([str(TINY), *words]) == 2
        said = capsys.readouterr().err
        assert text in said and said.count("\n") == 1
    assert "tokens of tables" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize("speculative", [0, 1])
def test_generation_is_recorded_token_by_token(model, speculative):
    """Oracle: prompt + new - 1 tokens pass a layer of the main model; with drafts no fewer."""
    with traces.record(model) as trace:
        new = generate(model, torch.tensor([[1, 2, 3]]), 9, speculative=speculative)
    passed = len(torch.cat(trace.chosen[0]))
    least = 3 + new.tokens.size(1) - 1
    assert passed == least if not speculative else passed >= least


def test_other_files_are_no_traces(tmp_path):
    np.savez(tmp_path / "other.npz", a=1)
    (tmp_path / "junk.npz").write_text("junk")
    (tmp_path / "half.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:60])
    for name in ("other.npz", "junk.npz", "half.npz"):
        with pytest.raises(traces.UserError, match="holds no traces"):
            traces.read_trace(tmp_path / name)
