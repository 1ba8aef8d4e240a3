"""The end of a run: its figures come first, and nothing that only adorns it can prevent them."""

import json

import pytest

import train_tiny
from minidsv3.data.dataset import Dataset
from minidsv3.measure import plots
from minidsv3.train import report
from minidsv3.train.checkpoint import RunFolder
from minidsv3.train.trainer import Trainer
from tests.conftest import MINIATURE
from tests.train.test_trainer import metrics

pytestmark = pytest.mark.usefixtures("short_end")


def fail(*_, **__):
    raise RuntimeError("no such font\nand more lines")


@pytest.mark.parametrize("place, name, missing", [
    (report, "complete", {"sample.txt"}), (plots, "loss_curve", {"loss.png", "expert_load.png"}),
    (plots, "expert_load", {"expert_load.png"})])
def test_an_ornament_that_fails_costs_only_itself(
        finished_run, miniature, tmp_path, monkeypatch, capsys, place, name, missing):
    """Oracle: the finished run, but for the ornament; exit code 0, and one line that says so."""
    monkeypatch.setattr(place, name, fail)
    assert train_tiny.main([*miniature, "--out", str(tmp_path)]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("the run is finished, without ") and last.endswith("no such font")
    assert metrics(tmp_path) == metrics(finished_run)
    names = {path.name for path in finished_run.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == names - missing
    figures = [json.loads((each / "summary.json").read_bytes())["val_bits_per_byte_ema"]
               for each in (tmp_path, finished_run)]
    assert figures[0] == figures[1]


def test_a_text_whose_prompt_takes_many_tokens_ends_well(miniature, tmp_path, capsys):
    """Oracle: exit code 0 and a sample. "def " has many tokens in a language without Latin."""
    text = "".join(f"съешь же ещё {n} этих мягких французских булок, да выпей чаю\n"
                   for n in range(700))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    arguments = [*miniature, "--data", str(tmp_path / "text.txt"), "--steps", "2",
                 "--set", "max_position_embeddings=33", "--out", str(tmp_path / "run")]
    assert train_tiny.main(arguments) == 0
    assert (tmp_path / "run" / "sample.txt").read_text(encoding="utf-8").startswith("def ")
    assert "without" not in capsys.readouterr().err


@pytest.mark.parametrize("kept", [0, 2, 6])
def test_a_run_whose_log_was_cut_ends_with_what_is_left(finished_run, miniature, tmp_path, kept):
    """All steps are made, and the log is shorter. Oracle: the lines that are left, each once."""
    for name in ("state.pt", "tokenizer.json"):
        (tmp_path / name).write_bytes((finished_run / name).read_bytes())
    lines = (finished_run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:kept]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
    assert train_tiny.main(["--resume", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert metrics(tmp_path) == metrics(finished_run)[:kept]
    assert (tmp_path / "summary.json").exists()


def test_a_log_has_one_line_for_each_step(tmp_path):
    """Oracle: by hand. A line may be there twice, or in another place than its number says."""
    lines = [{"step": step, "loss": loss} for step, loss in
             ((3, 1.0), (4, 2.0), (4, 3.0), (6, 4.0), (5, 5.0), (9, 6.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    with RunFolder(tmp_path, overwrite=True).open_metrics(6) as log:
        log.write('{"step": 7, "loss": 7.0}\n')
    assert [(line["step"], line["loss"]) for line in metrics(tmp_path)] == [
        (3, 1.0), (4, 3.0), (5, 5.0), (6, 4.0), (7, 7.0)]


def test_a_step_of_special_tokens_alone_has_no_bits_per_byte(miniature, tmp_path, monkeypatch):
    """Documents of one byte fill a window with marks. Oracle: null in the log, and a finished run.

    Here all tokens of a step and of the quick evaluation stand for no byte.
    """
    real = Trainer.train_step

    def train_step(self):
        sizes = self.data.token_bytes
        self.data.token_bytes = sizes * 0 if self.step == 2 else sizes
        try:
            return real(self)
        finally:
            self.data.token_bytes = sizes

    quick = Dataset.quick_sample
    monkeypatch.setattr(Dataset, "quick_sample", lambda self: (*quick(self)[:2], 0))
    monkeypatch.setattr(Trainer, "train_step", train_step)
    assert train_tiny.main([*miniature, "--out", str(tmp_path / "run")]) == 0
    figures = [line["bits_per_byte"] for line in metrics(tmp_path / "run")]
    assert figures[2] is None and all(each > 0 for each in figures[:2] + figures[3:])
    assert "val_bits_per_byte" not in metrics(tmp_path / "run")[2]
    assert MINIATURE["eval_every"] == 3


@pytest.mark.parametrize("line", ["[" * 100_000, '{"step": "2"}', '{"step": 1e3}', "\x00\x00", "7"])
def test_a_line_that_is_none_is_left_out(tmp_path, line):
    """Oracle: by hand; the lines around it stay."""
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    assert RunFolder(tmp_path, overwrite=True).read_metrics() == [{"step": 1}, {"step": 2}]
