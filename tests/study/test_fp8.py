"""The study's arithmetic against loops and sums by hand; one small study, run and gone on with."""

import json
import math
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig, fp8
from minidsv3.device import has_fast_bf16
from minidsv3.measure import plots
from minidsv3.measure.plots import png
from minidsv3.study import fp8 as study
from minidsv3.study import pool
from minidsv3.study.loss_error import as_markdown, picture, relative_error
from minidsv3.train.recipe import TrainConfig
from minidsv3.train.step import Diverged, Figures, Step
from tests.conftest import MINIATURE

STUDIES = Path(__file__).resolve().parents[2] / "studies"


def a_run(arm, seed, losses, score=1.5, seconds=0.5):
    """What train() returns, of it what the summary reads."""
    return {"arm": arm, "seed": seed, "losses": losses, "val_bits_per_byte": score,
            "seconds_a_step": seconds}


def test_the_error_is_that_of_two_smoothed_curves():
    """Oracle: the moving average as a sum of powers of 0.9, in plain Python."""
    ours, theirs = [5.0, 4.0, 3.5, 3.0], [5.0, 4.1, 3.3, 3.1]

    def average(losses, t):
        return 0.9 ** (t + 1) * losses[0] + sum(0.1 * 0.9 ** (t - i) * losses[i]
                                                for i in range(t + 1))

    expected = [(average(ours, t) - average(theirs, t)) / average(theirs, t) for t in range(4)]
    got = relative_error(a_run("a", 0, ours), a_run("b", 0, theirs))
    assert got.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_table_is_mean_and_spread_over_the_seeds():
    """Oracle: constant curves, whose errors are known: 1 % and 3 % above the baseline's."""
    found = {}
    for seed, factor in ((0, 1.01), (1, 1.03)):
        level = 2.0 + seed                           # baselines of the two seeds: 2 and 3
        found["bf16", seed] = a_run("bf16", seed, [level] * 40)
        found["fp32", seed] = a_run("fp32", seed, [level * factor] * 40, 1.0 + seed)
    found["per-tensor", 0] = a_run("per-tensor", 0, [1.98] * 40)
    table = study.summarise(found)
    for name in ("first", "error", "largest", "last"):
        assert table["bf16"][name] == (0, 0)
        assert table["fp32"][name] == pytest.approx((0.02, 0.02 / 2**0.5))
    assert table["fp32"]["val_bits_per_byte"] == pytest.approx((1.5, 0.5**0.5))
    assert [figures["seeds"] for figures in table.values()] == [2, 2, 1]
    assert study.seed_error(found) == pytest.approx(1 / 3)             # 2 against 3
    found["bf16", 2] = a_run("bf16", 2, [4.0] * 40)                    # 2 and 3 against 4
    assert study.seed_error(found) == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)
    del found["bf16", 2]
    assert study.seed_error({key: run for key, run in found.items() if not key[1]}) is None
    text = study.as_markdown(table)
    assert "| bf16 | 2 | - | - | - | - | 1.5000 ± 0.0000 | 0.50 |" in text
    assert ("| fp32 | 2 | 2.00 ± 1.41 % | 2.00 ± 1.41 % | 2.00 ± 1.41 % | +2.00 ± 1.41 % "
            "| 1.5000 ± 0.7071 | 0.50 |") in text
    assert "| per-tensor | 1 | 1.00 % | 1.00 % | 1.00 % | -1.00 % | 1.5000 | 0.50 |" in text


def test_the_first_tenth_is_left_out():
    """Oracle: an error that is there in the first tenth alone, long forgotten by the average."""
    base = a_run("bf16", 0, [2.0] * 2000)
    found = {("bf16", 0): base, ("fp32", 0): a_run("fp32", 0, [3.0] * 20 + [2.0] * 1980)}
    figures = study.summarise(found)["fp32"]
    assert figures["largest"][0] < 1e-6 and figures["first"][0] > 0.04


def test_the_last_tenth_is_the_last():
    """Oracle: an error of a tenth that begins with the last tenth of the steps, sign included."""
    base = a_run("bf16", 0, [2.0] * 2000)
    found = {("bf16", 0): base, ("fp32", 0): a_run("fp32", 0, [2.0] * 1800 + [1.8] * 200)}
    assert study.summarise(found)["fp32"]["last"][0] == pytest.approx(-0.1, abs=0.005)


def test_the_twin_moves_every_weight_by_a_millionth():
    """Oracle: the weights before; both signs occur, and the seed decides which."""
    model = DeepSeekV3(ModelConfig.preset("tiny").replace(num_hidden_layers=2, vocab_size=97))
    before = [p.detach().double() for p in model.parameters()]
    study.nudge(model, 0)
    other = DeepSeekV3(model.config)
    other.load_state_dict({name: old.float() for name, old in zip(
        dict(model.named_parameters()), before)}, strict=False)
    study.nudge(other, 1)
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)
    for old, new in zip(before, model.parameters(), strict=True):
        change = (new.double() / old)[old != 0] - 1
        assert (change.abs() - 1e-6).abs().max() < 1.3e-7              # float32 holds 1.2e-7
        assert change.min() < 0 < change.max()


@pytest.mark.slow
def test_a_run_that_diverges_is_a_result(monkeypatch, tmp_path):
    """Oracle: two losses, then no numbers; no error of the program."""
    (tmp_path / "a.txt").write_text("words " * 4000, encoding="utf-8")
    (tmp_path / "b.txt").write_text("letters " * 4000, encoding="utf-8")
    steps, seen = iter([3.0, 2.0]), []

    def read(self, figures):
        layer = self.model.layers[0].self_attn.q_b_proj
        seen.append((layer.product.recipe, self.recipe.precision, self.recipe.seed,
                     self.recipe.optimizer, self.recipe.steps))
        try:
            return Figures(0.0, next(steps), 0.0, 0.0, 0.0, None)
        except StopIteration:
            raise Diverged("the loss is nan") from None

    monkeypatch.setattr(Step, "read", read)
    run = study.train("per-tensor", 7, 4, "adamw", str(tmp_path), "cpu")
    assert seen[0] == (fp8.RECIPES["per-tensor"], "fp8", 7, "adamw", 4)
    assert run["losses"][:2] == [3.0, 2.0] and all(map(math.isnan, run["losses"][2:]))
    assert math.isnan(run["val_bits_per_byte"]) and run["arm"] == "per-tensor"


def test_one_of_several_runs_that_diverged_makes_its_figures_nan():
    """Oracle: NaN in its row alone; table and picture are made all the same."""
    found = {("bf16", 0): a_run("bf16", 0, [3.0] * 20), ("bf16", 1): a_run("bf16", 1, [3.0] * 20),
             ("fp32", 0): a_run("fp32", 0, [3.1] * 20),
             ("fp32", 1): a_run("fp32", 1, [3.0] * 5 + [math.nan] * 15, math.nan)}
    table = study.summarise(found)
    assert all(map(math.isnan, table["fp32"]["error"])) and table["bf16"]["error"] == (0, 0)
    assert table["fp32"]["seconds_a_step"] == (0.5, 0)
    assert "| fp32 | 2 |" in as_markdown(table) and png(picture(found), dpi=50)


@pytest.mark.parametrize("arguments, words", [
    (["--seeds", "0"], "--seeds 0 must be at least 1"),
    (["--jobs", "-1"], "--jobs -1 must be at least 1"),
    (["--steps", "5"], "--steps 5 are too few"),
    (["--arms", "fp4"], "invalid choice: 'fp4'"),
    (["--device", "tpu"], "device 'tpu' is unknown")])
def test_bad_input_ends_in_one_line(arguments, words, capsys):
    """Oracle: exit code 2, the value, and no traceback."""
    assert study.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


class Here:
    """As much of a ProcessPoolExecutor as the study uses, without processes."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, work, *arguments):
        done = Future()
        done.set_result(work(*arguments))
        return done

    def shutdown(self, **_):
        pass


@pytest.fixture
def small_and_here(monkeypatch):
    """The study of a miniature model, in this process."""
    model = {name: value for name, value in MINIATURE.items()
             if name in ModelConfig.__dataclass_fields__}
    recipe = {name: value for name, value in MINIATURE.items() if name not in model}
    configs = (ModelConfig.preset("tiny").replace(**model),
               TrainConfig.preset("tiny").replace(**recipe))
    for kind, config in zip((study.ModelConfig, study.TrainConfig), configs):
        monkeypatch.setattr(kind, "preset", lambda name, config=config: config)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", Here)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_miniature_study_runs_and_goes_on(tmp_path, monkeypatch, capsys, small_and_here):
    """Oracle: that of the next test, without its processes. The picture is drawn only once."""
    drawn = []

    def draw_once(fig, dpi):
        if not drawn:
            drawn.append(png(fig, dpi))
        return drawn[0]

    monkeypatch.setattr(plots, "png", draw_once)
    runs_and_goes_on(tmp_path, capsys)


@pytest.mark.multi
@pytest.mark.skipif(not has_fast_bf16(torch.device("cpu")), reason="its runs of the tiny preset in "
                    "bfloat16 take ten minutes where that is emulated")
def test_a_small_study_runs_and_goes_on(tmp_path, capsys):
    """Oracle: the files; a second call makes nothing anew, one with other steps is refused."""
    runs_and_goes_on(tmp_path, capsys)


def runs_and_goes_on(tmp_path, capsys):
    """Run a study of two variants, run it again, with other options, and repeat one variant."""
    text = tmp_path / "text"
    text.mkdir()
    for name in "ab":
        (text / f"{name}.txt").write_text(f"{name} few words of it " * 3000, encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["--seeds", "1", "--steps", "20", "--arms", "bf16-nudged", "--data", str(text),
                 "--out", str(out), "--jobs", "2", "--device", "cpu"]
    assert study.main(arguments) == 0
    table = capsys.readouterr().out
    files = {path: path.read_bytes() for path in sorted((out / "runs").iterdir())}
    assert [path.name for path in files] == ["bf16-0.json", "bf16-nudged-0.json"]
    runs = [json.loads(content) for content in files.values()]
    assert runs[0]["losses"][0] == pytest.approx(runs[1]["losses"][0], abs=1e-3)
    assert runs[0]["losses"] != runs[1]["losses"] and len(runs[0]["losses"]) == 20
    assert (out / "loss_error.png").stat().st_size > 10_000
    assert study.main(arguments) == 0
    assert capsys.readouterr().out == table
    assert {path: path.read_bytes() for path in sorted((out / "runs").iterdir())} == files
    for option, value, name, was in (("--steps", "40", "steps", "20"),
                                     ("--optimizer", "adamw", "optimizer", "muon")):
        assert study.main([*arguments, option, value]) == 2
        assert f"made with {name} {was}, not {value}; use another --out, or --overwrite." in (
            capsys.readouterr().err)
    (text / "c.txt").write_text("one more " * 3000, encoding="utf-8")
    assert study.main(arguments) == 2
    assert "was made with corpus_sha256" in capsys.readouterr().err
    (text / "c.txt").unlink()
    path = out / "runs" / "bf16-nudged-0.json"
    runs[1]["losses"][5] = 99.0
    path.write_text(json.dumps(runs[1]), encoding="utf-8")
    alone = [*arguments[:4], *arguments[6:], "--arms", "bf16", "--overwrite"]
    assert study.main(alone) == 0                                      # the baseline, made anew
    assert json.loads((out / "runs" / "bf16-0.json").read_bytes())["losses"] == runs[0]["losses"]
    assert json.loads(path.read_bytes())["losses"][5] == 99.0          # not asked for: kept


@pytest.mark.parametrize("content", ["[1]", '{"a": 1}', '{"arm": "bf16"', "", "\xff"])
def test_what_is_no_run_is_named(content, tmp_path, capsys):
    """Oracle: its path, in one line, and before anything is trained."""
    path = tmp_path / "runs" / "fp32-0.json"
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))
    (tmp_path / "text").mkdir()
    for name in "ab":
        (tmp_path / "text" / name).with_suffix(".txt").write_text("words " * 999, encoding="utf-8")
    assert study.main(["--out", str(tmp_path), "--data", str(tmp_path / "text")]) == 2
    assert f"{path} is no run of this study; remove it" in capsys.readouterr().err


def test_runs_without_a_baseline_are_left_out(tmp_path):
    """Oracle: two runs, of two seeds, and one baseline."""
    (tmp_path / "runs").mkdir()
    for arm, seed in (("bf16", 0), ("fp32", 0), ("fp32", 1)):
        run = a_run(arm, seed, [1.0]) | {"steps": 1, "optimizer": "muon", "corpus_sha256": ""}
        (tmp_path / "runs" / f"{arm}-{seed}.json").write_text(json.dumps(run), encoding="utf-8")
    assert list(study.load(tmp_path)) == [("bf16", 0), ("fp32", 0)]


def test_an_out_that_is_a_file_is_refused_before_training(tmp_path, capsys):
    """Oracle: the path in one line; the file is as it was."""
    (tmp_path / "a").write_text("mine", encoding="utf-8")
    assert study.main(["--out", str(tmp_path / "a")]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
    assert (tmp_path / "a").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("folder", ["fp8", "fp8/adamw"])
def test_the_committed_tables_are_those_of_the_committed_runs(folder):
    """Oracle: summary and README, made anew from the losses of every run."""
    found = study.load(STUDIES / folder)
    assert {run["steps"] for run in found.values()} == {1000}
    seeds = {arm: [seed for other, seed in found if other == arm] for arm in study.ARMS}
    assert len(seeds["deepseek-v3"]) >= (3 if folder == "fp8" else 2)
    table, noise = study.summarise(found), study.seed_error(found)
    text = (STUDIES / "fp8" / "README.md").read_text(encoding="utf-8")
    assert study.as_markdown(table) in text and f"{100 * noise:.2f} %" in text
    stored = json.loads((STUDIES / folder / "summary.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps({"arms": table, "between_seeds": noise}))
