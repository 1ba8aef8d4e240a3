"""The second part of benchmarks/train.py: what is planned, kept, computed from the runs and shown.

One test marked `multi` makes real runs in processes of their own; the others need none.
"""

import json
import math

import learning
import learning_results
import numpy as np
import pytest
import torch
import train
from contender import DENSE, MODELS, WITH_MTP, WITHOUT_MTP

from minidsv3 import ModelConfig
from minidsv3.measure import plots
from minidsv3.study.pool import run_all
from minidsv3.train.recipe import TrainConfig

CONFIG = ModelConfig(vocab_size=300, hidden_size=24, num_hidden_layers=2, intermediate_size=40,
                     tie_word_embeddings=True, num_attention_heads=3, q_lora_rank=12,
                     kv_lora_rank=16, qk_nope_head_dim=4, qk_rope_head_dim=6, v_head_dim=8,
                     n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=16,
                     first_k_dense_replace=1, n_group=2, topk_group=1, rope_scaling=None,
                     max_position_embeddings=64)
RECIPE = TrainConfig(window=11, steps=20, batch_size=4, micro_batch=3, batch_start=4,
                     optimizer="muon", precision="fp32")
RECIPES = dict.fromkeys(MODELS, RECIPE)
SPEED = {WITH_MTP: {"tokens_per_s": 440, "at_work": 30},
         WITHOUT_MTP: {"tokens_per_s": 660, "at_work": 20},
         DENSE: {"tokens_per_s": 880, "at_work": 20}}


def runs_of(table):
    """{model: {minutes: [bits per byte of seed 0, 1, ...]}} -> runs, 100 steps to the minute."""
    return [{"model": model, "minutes": minutes, "seed": seed, "steps": round(100 * minutes),
             "tokens": round(4400 * minutes), "flops": round(1e6 * minutes),
             "seconds": 60 * minutes, "real_seconds": 70.0, "val_bits_per_byte": value}
            for model, lengths in table.items() for minutes, values in lengths.items()
            for seed, value in enumerate(values)]


BY_HAND = runs_of({
    WITH_MTP: {1: [1.7], 4: [1.1, 1.3, 1.2], 16: [0.8]},
    WITHOUT_MTP: {1: [1.6], 4: [1.2, 1.3, 1.25], 16: [1.0]},
    DENSE: {1: [1.4], 4: [1.0, 1.3, 1.0], 16: [0.9]}})


# ---- what is planned ----

def test_steps_fill_the_minutes():
    """Oracle: by hand. 2 minutes at 440 tokens per second are 1,200 steps of 4 * 11 tokens."""
    assert learning.plan_steps(2, 440, RECIPE) == 1200
    assert learning.plan_steps(0.001, 1, RECIPE) == 1


def test_a_plan_holds_every_model_length_and_seed():
    """Oracle: by hand. FLOPs are 6 for each token and parameter at work."""
    runs = learning.plan({1: 1, 2: 2}, SPEED, RECIPES)
    assert [(run["minutes"], run["seed"], run["model"]) for run in runs] == [
        (minutes, seed, model) for minutes, seed in ((1, 0), (2, 0), (2, 1)) for model in MODELS]
    assert runs[0] == {"model": WITH_MTP, "minutes": 1, "seed": 0, "steps": 600, "tokens": 26400,
                       "flops": 6 * 30 * 26400, "seconds": 60.0}
    assert [run["steps"] for run in runs[-3:]] == [1200, 1800, 2400]
    later = learning.plan({1: 2}, SPEED, dict.fromkeys(MODELS, RECIPE.replace(seed=7)))
    assert {run["seed"] for run in later} == {7, 8}


def test_minutes_are_read_with_their_seeds():
    """Oracle: written out, the shortest first."""
    assert list(learning.read_minutes(["15:3", "0.5", "1:1"]).items()) == [
        (0.5, 1), (1.0, 1), (15.0, 3)]


@pytest.mark.parametrize("words", [["0"], ["-1"], ["nan"], ["inf"], ["five"], ["5:0"], ["5:x"],
                                   ["5:"], [":3"], ["5:1.5"], ["5:1:2"], ["5", "5:3"]])
def test_minutes_that_mean_nothing_end_in_one_line(words, tmp_path, capsys):
    """Oracle: exit code 2, one line that names the option, no folder made."""
    assert train.main(["--out", str(tmp_path / "out"), "--minutes", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "--minutes" in error
    assert not (tmp_path / "out").exists()


# ---- what follows from the runs ----

def test_means_have_their_standard_errors():
    """Oracle: by hand. 1, 2, 3 have a standard deviation of 1; a single value has no error."""
    assert learning_results.mean_and_error([1, 2, 3]) == (2, pytest.approx(1 / math.sqrt(3)))
    assert learning_results.mean_and_error([4]) == (4, None)


def test_differences_are_paired_by_seed():
    """Oracle: by hand. Seeds differ far more than pairs; the third seed has no pair."""
    runs = runs_of({WITH_MTP: {2: [1.0, 2.0, 3.0], 5: [1.0]}, DENSE: {2: [1.1, 2.2]}})
    assert learning_results.differences(runs, WITH_MTP) == {2: pytest.approx([-0.1, -0.2])}
    summary = learning_results.summarise(runs)
    assert summary == {"differences": [{"model": WITH_MTP, "minutes": 2, "seeds": 2,
                                        "to_dense": -0.15, "standard_error": 0.05}],
                       "ahead_from_minutes": {WITH_MTP: 2, WITHOUT_MTP: None}}


@pytest.mark.parametrize("means, minutes, words", [
    ({1: 0.3, 4: 0.1, 16: -0.1}, 8, "ahead from about 8 minutes on"),    # halfway in log(minutes)
    ({1: 0.3, 10: -0.1}, 10**0.75, "ahead from about 5.6 minutes on"),
    ({16: -0.1, 4: 0.1, 1: -0.3}, 8, "ahead from about 8 minutes on"),   # the last time counts
    ({100: 0.1, 400: -0.1}, 200, "ahead from about 200 minutes on"),
    ({1: 0.2, 5: 0.1}, None, "not ahead within 5 minutes"),
    ({1: -0.2, 5: 0.1}, None, "not ahead within 5 minutes"),
    ({1: 0.2, 5: 0.0}, None, "not ahead within 5 minutes"),
    ({2: -0.2, 5: -0.1}, 2, "ahead from the shortest run on (2 minutes)"),
])
def test_the_crossing_point_is_found_on_straight_lines(means, minutes, words):
    """Oracle: by hand."""
    found = learning_results.crossing(means)
    assert found is None if minutes is None else found == pytest.approx(minutes)
    assert learning_results.in_words(means) == words


def test_without_runs_there_is_no_crossing_point():
    """Oracle: None."""
    assert learning_results.crossing({}) is None
    assert learning_results.summarise([]) == {
        "differences": [], "ahead_from_minutes": {WITH_MTP: None, WITHOUT_MTP: None}}


def test_the_lead_is_taken_where_both_have_runs():
    """Oracle: by hand. At 400 steps dense lies halfway, in log(steps), between 1.2 and 1.0."""
    runs = runs_of({WITH_MTP: {1: [1.5], 4: [1.0]}, DENSE: {2: [1.2], 8: [1.0]}})
    assert learning_results.lead(runs, "steps") == (400, pytest.approx(-0.1))
    finding = learning_results.title(runs, "steps")
    assert "at 400 steps ours is 0.100 bits per byte better" in finding
    apart = runs_of({WITH_MTP: {1: [1.5]}, DENSE: {2: [1.2]}})
    assert learning_results.lead(apart, "steps") is None
    assert "do not overlap" in learning_results.title(apart, "steps")


def test_the_tables_hold_means_errors_and_sentences():
    """Oracle: rows computed by hand."""
    text = learning_results.tables(BY_HAND)
    assert "| 1 | ours | 1 | 100 | 4,400 | 1.00e+06 | 1.700 |" in text
    assert "| 4 | ours | 3 | 400 | 17,600 | 4.00e+06 | 1.200 ± 0.058 |" in text
    assert "| 4 | +0.100 ± 0.058 | +0.150 ± 0.076 |" in text
    assert "| 16 | -0.100 | +0.100 |" in text
    assert "ours is ahead from about 8 minutes on; at 16 minutes the difference is -0.100." in text
    assert "ours without MTP is not ahead within 16 minutes; at 16 minutes" in text


# ---- the picture ----

def test_the_picture_shows_the_means_and_the_spread():
    """Oracle: lines, bands and labels that matplotlib holds, beside the runs."""
    panels = learning_results.figure(BY_HAND).axes
    assert [len(panel.collections) for panel in panels] == [3, 3, 3]
    for panel, scale in zip(panels, (1, 100, 1e6)):
        lines = {line.get_label(): line for line in panel.lines}
        np.testing.assert_allclose(lines["ours"].get_xdata(), scale * np.array([1, 4, 16]))
        np.testing.assert_allclose(lines["ours"].get_ydata(), [1.7, 1.2, 0.8])
        np.testing.assert_allclose(lines["dense GPT"].get_ydata(), [1.4, 1.1, 0.9])
        band = panel.collections[0].get_paths()[0].get_extents()
        assert (band.ymin, band.ymax) == pytest.approx((1.1, 1.3))
        assert panel.get_xscale() == "log" and "bits per byte" in panel.get_ylabel()
        assert {text.get_text() for text in panel.texts} == set(MODELS)
    assert panels[0].get_title(loc="left") == "By the clock: ours is ahead from about 8 minutes on"
    assert "at 1,600 steps ours is 0.100 bits per byte better" in panels[1].get_title(loc="left")


def test_a_band_has_its_neighbours_width_where_there_is_one_seed():
    """Oracle: by hand. Halfway in log(minutes), half the sum of 0.1 and 0.3 around the mean."""
    places, low, high = learning_results.band({1: [9.0], 2: [1.0, 1.2], 4: [5.0], 8: [2.0, 2.6]})
    assert places == [2, 4, 8]
    np.testing.assert_allclose(low, [1.0, 4.8, 2.0])
    np.testing.assert_allclose(high, [1.2, 5.2, 2.6])
    assert learning_results.band({1: [9.0]})[0] == []


def test_one_run_alone_can_be_drawn(tmp_path):
    """Oracle: the picture exists; so a benchmark that was stopped early has one too."""
    plots.save(learning_results.figure(BY_HAND[:1]), tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 5000


# ---- going on ----

def pretend(planned, *_):
    """Stands for learn."""
    return planned | {"val_bits_per_byte": 1 + 0.1 * planned["seed"] + 1 / planned["steps"],
                      "real_seconds": 1.0}


@pytest.fixture
def benchmark(small_text, tmp_path, monkeypatch):
    """A function that starts the benchmark on a miniature in this process -> runs that it made."""
    made = []

    def run_here(function, tasks, jobs, keep):
        for task in tasks:
            if len(made) == start.limit:
                raise KeyboardInterrupt
            made.append(task[0])
            keep(pretend(*task))

    def start(*words, limit=None):
        made.clear()
        start.limit = limit
        start.code = train.main(["--rounds", "1", "--steps", "1", "--device", "cpu",
                                 "--out", str(tmp_path / "out"), *words])
        return [(run["minutes"], run["seed"], run["model"]) for run in made]

    start.path = tmp_path / "out/train.json"
    monkeypatch.setattr(train.ModelConfig, "preset", lambda name: CONFIG)
    monkeypatch.setattr(train.TrainConfig, "preset",
                        lambda name: RECIPE.replace(data=str(small_text)))
    monkeypatch.setattr(learning, "run_all", run_here)
    return start


def stored(path):
    """The results in the file."""
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_stopped_benchmark_goes_on_where_it_was(benchmark, capsys):
    """Oracle: the runs made before and after; the speeds and the finished runs stay."""
    assert len(benchmark("--minutes", "0.001:2", "0.002", limit=4)) == 4
    assert benchmark.code == 130
    before = stored(benchmark.path)
    assert len(before["learning"]) == 4
    assert benchmark("--minutes", "0.001:2", "0.002") == [
        (0.001, 1, WITHOUT_MTP), (0.001, 1, DENSE), *((0.002, 0, model) for model in MODELS)]
    after, printed = stored(benchmark.path), capsys.readouterr().out
    assert "4 of 9 runs are in" in printed and "left out" in printed
    assert after["speed"] == before["speed"] and after["learning"][:4] == before["learning"]
    assert benchmark("--minutes", "0.001:2", "0.002") == [] and benchmark.code == 0
    assert benchmark("--minutes", "0.001:3") == [(0.001, 2, model) for model in MODELS]
    assert len(stored(benchmark.path)["learning"]) == 12       # none is forgotten
    assert benchmark("--speed-only") == [] and len(stored(benchmark.path)["learning"]) == 12


@pytest.mark.parametrize("words, named", [
    (["--seed", "1"], "seed 0, not 1"), (["--rounds", "2"], "rounds 1, not 2"),
    (["--learning-rates", "0.5", "0.02"], "recipe of ours: muon_learning_rate 0.01, not 0.5"),
    (["--optimizers", "muon", "adamw"], "recipe of dense GPT: optimizer muon, not adamw")])
def test_other_settings_are_refused(benchmark, words, named, capsys):
    """Oracle: exit code 2, one line that names the setting; the file stays as it was."""
    benchmark("--minutes", "0.001")
    before = benchmark.path.read_bytes()
    capsys.readouterr()
    assert benchmark("--minutes", "0.001", *words) == [] and benchmark.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error and "--out" in error
    assert benchmark.path.read_bytes() == before


@pytest.mark.parametrize("spoil", [
    lambda results: "no JSON", lambda results: "[]", lambda results: '{"speed": {}}',
    lambda results: json.dumps(results | {"learning": [{"model": "ours", "minutes": 1}]}),
    lambda results: json.dumps(results | {"speed": {}})])
def test_a_file_of_something_else_is_refused(benchmark, spoil, capsys):
    """Oracle: exit code 2 and one line. The results of older versions have no settings."""
    benchmark("--speed-only")
    benchmark.path.write_text(spoil(stored(benchmark.path)), encoding="utf-8")
    capsys.readouterr()
    benchmark("--minutes", "0.001")
    error = capsys.readouterr().err
    assert benchmark.code == 2 and error.count("\n") == 1
    assert "nothing that can be continued" in error


def test_a_run_of_other_steps_is_refused(benchmark, capsys):
    """Oracle: exit code 2 and one line with both numbers of steps."""
    benchmark("--minutes", "0.001")
    results = stored(benchmark.path)
    results["learning"][0]["steps"] = 123_456
    benchmark.path.write_text(json.dumps(results), encoding="utf-8")
    benchmark("--minutes", "0.001")
    error = capsys.readouterr().err
    assert benchmark.code == 2 and "has 123,456 steps" in error


def test_the_results_name_machine_and_settings(benchmark, capsys):
    """Oracle: the file and the printed lines."""
    benchmark("--minutes", "0.001:2", "0.002:2")
    results, printed = stored(benchmark.path), capsys.readouterr().out
    machine = results["machine"]
    assert isinstance(machine["bfloat16_instructions"], bool)
    words = "with" if machine["bfloat16_instructions"] else "without"
    assert f"{machine['cpu']}, {words} bfloat16 instructions" in printed
    assert set(results["learning"][0]) == learning.FIGURES
    assert results["summary"]["differences"][0]["seeds"] == 2
    assert learning_results.tables(results["learning"]) in printed
    assert (benchmark.path.parent / "train.png").stat().st_size > 5000


@pytest.mark.multi
def test_runs_in_processes_give_the_same_results_as_one_after_another(small_text):
    """Oracle: the same runs in other processes; bits per byte are equal to the last digit."""
    recipe, device = RECIPE.replace(data=str(small_text)), torch.device("cpu")
    planned, found = learning.plan({0.005: 1}, SPEED, RECIPES), []
    for jobs in (1, 2):
        runs = []
        run_all(learning.learn, [(run, CONFIG, recipe, device) for run in planned], jobs,
                runs.append)
        found.append({run["model"]: run["val_bits_per_byte"] for run in runs})
        assert all(set(run) == learning.FIGURES for run in runs)
    assert found[0] == found[1] and set(found[0]) == set(MODELS)
    assert all(0 < bits < 20 for bits in found[0].values())
