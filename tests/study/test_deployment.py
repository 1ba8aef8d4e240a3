"""The deployment study: its parts on small loads, and the command."""

import json

import pytest

from minidsv3.serve.disaggregate import DAY, deploy
from minidsv3.study import deployment as study


def test_the_highest_load_is_found_by_bisection(monkeypatch):
    """Oracle: a service that bears 5 requests per second and node, or none at all."""
    monkeypatch.setattr(study, "LADDER", (1, 2, 3, 4, 5, 6, 7))
    for limit, expected in ((5, 5), (7, 7), (9, 7), (0, 0)):
        monkeypatch.setattr(study, "measure", lambda deployed, rate, *how, limit=limit, **more:
                            {"good": 1.0 if rate <= limit else 0.0})
        assert study.highest_load(None, None, 1, 0) == expected


def test_the_handover_of_latents_fills_a_small_part_of_the_network():
    """Oracle: bytes per second by hand: the day's prompts on the 96 GPUs that read."""
    found = study.handover((), 1, 0)
    tokens = DAY.input_tokens / 86_400 / (DAY.nodes / 30) / 96
    assert found["ratio"] == pytest.approx(71.1, abs=0.1)
    assert found["mla"]["share_of_network"] == pytest.approx(tokens * 70272 / 50e9, rel=1e-3)
    assert found["expanded"]["share_of_network"] == pytest.approx(
        found["ratio"] * found["mla"]["share_of_network"])


def test_drafts_help_most_where_steps_are_short():
    """Oracle: an accepted draft is one token more per step; the gain is below 1.85 everywhere."""
    found = study.drafts((), 1, 0)
    for label in ("at the day's speed", "memory full"):
        without, with_drafts = (found[name]["full"][label] for name in ("without", "with"))
        gain = with_drafts["tokens_per_s_and_gpu"] / without["tokens_per_s_and_gpu"]
        assert 1 < gain < 1 + study.ACCEPTANCE
        assert with_drafts["step"] <= (1 + study.ACCEPTANCE) / 21 or label == "memory full"


def test_a_measurement_counts_what_was_asked_for():
    """Oracle: the rate of arrivals; nothing is read twice without a failure."""
    found = study.measure(deploy("service"), 1.0, 20)
    assert found["rate"] == pytest.approx(30, rel=0.15)
    assert found["read"] == found["asked"] and found["good"] > 0.9


@pytest.mark.slow
def test_the_study_writes_its_results(tmp_path, capsys):
    """Oracle: the names of its files, and a table with the published figures."""
    assert study.main(["--reduced", "--seconds", "5", "--out", str(tmp_path / "a")]) == 0
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"results.json", "load.png", "mixes.png", "decode_step.png"}
    results = json.loads((tmp_path / "a/results.json").read_text("utf-8"))
    assert results["failure"]["none"]["read_again"] == 0
    assert "| published |" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_told_before_the_simulation(monkeypatch, capsys):
    """A folder within a file."""
    monkeypatch.setattr(study, "at_loads", lambda *_: pytest.fail("simulated"))
    assert study.main(["--reduced", "--out", "README.md/x"]) == 2
    assert "README.md is a file; name a folder" in capsys.readouterr().err


@pytest.mark.parametrize("options, words", [
    (["--seconds", "0"], "--seconds 0 must be from 1"), (["--seed", "-1"], "--seed -1 must be"),
    (["--out", "README.md"], "README.md is a file; name a folder")])
def test_bad_input_ends_in_one_line(options, words, capsys):
    """Oracle: exit code 2 and the words of the error."""
    assert study.main(options) == 2
    assert words in capsys.readouterr().err
