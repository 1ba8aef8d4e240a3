"""Figures of the runs of benchmarks/train.py: means, differences, crossing points, pictures.

No run is made here.
"""

import math

import learning_results
import numpy as np
import pytest
from contender import DENSE, MODELS, WITH_MTP, WITHOUT_MTP

from minidsv3.measure import plots


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
    clock, _, *others = learning_results.figure(BY_HAND).axes
    panels = [clock, *others]
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


def test_the_end_is_drawn_as_a_difference():
    """Oracle: by hand. 1 minute is less than a sixth of 16; one seed has no error bar."""
    panel = learning_results.figure(BY_HAND).axes[1]
    lines = {line.get_label(): line for line in panel.lines}
    for name, means in {"ours": [0.1, -0.1], "ours without MTP": [0.15, 0.1]}.items():
        np.testing.assert_allclose(lines[name].get_xdata(), [4, 16], rtol=0.02)
        np.testing.assert_allclose(lines[name].get_ydata(), means)
    bars = [[bar for bar in bars.get_segments() if len(bar)] for bars in panel.collections]
    np.testing.assert_allclose([[np.ptp(bar[:, 1]) for bar in each] for each in bars],
                               [[2 / math.sqrt(300)], [2 * math.sqrt(0.0175 / 3)]])
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["4", "16"]
    assert {text.get_text() for text in panel.texts} == {"ours", "ours without MTP"}


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
