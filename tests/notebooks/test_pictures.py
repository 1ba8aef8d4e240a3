"""The pictures of the notebooks show the numbers that they are given, and say the finding."""

import math

import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.patches import Wedge

from tests.notebooks.conftest import imported


@pytest.fixture(scope="module")
def pictures():
    """The module notebooks/pictures."""
    return imported("pictures")


def test_a_dial_shows_the_angles_seen_and_those_that_are_new(pictures):
    """Oracle: by hand; within 8 tokens one hand turns twice, one half a turn, one an eighth."""
    theta = 2 * math.pi * torch.tensor([2 / 8, 1 / 16, 1 / 64])
    ax, = pictures.dials(theta, window=8, factor=4).axes
    spans = [wedge.theta2 - wedge.theta1 for wedge in ax.patches if isinstance(wedge, Wedge)]
    assert spans[0::2] == pytest.approx([0, 180, 135], abs=1e-3)       # new
    assert spans[1::2] == pytest.approx([360, 180, 45], abs=1e-3)      # seen
    assert ax.get_title(loc="left") == "2 of 3 hands never complete a turn in 8 tokens"


def test_the_ramp_has_three_lines(pictures):
    """Oracle: the numbers that went in."""
    plain, yarn = torch.tensor([1, 0.1, 0.01]), torch.tensor([1, 0.06, 0.0025])
    ax, = pictures.ramp(plain, yarn, (0, 2), 4).axes
    assert [list(line.get_ydata()) for line in ax.lines] == [plain.tolist(), yarn.tolist(),
                                                             (plain / 4).tolist()]


def test_shares_and_maps_show_what_they_are_given(pictures):
    """Oracle: the numbers that went in, and every name written into the figure."""
    curves = {"before": {64: 1.0, 128: 0.0}, "after": {64: 1.0, 128: 0.5}}
    ax, = pictures.shares_found(curves, 64, "found").axes
    assert [list(line.get_ydata()) for line in ax.lines[:2]] == [[1.0, 0.0], [1.0, 0.5]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before", "after"]
    maps = {f"model {n}": [[n / 4, 0.0], [1.0, 0.5]] for n in range(4)}
    figure = pictures.four_maps(maps, (64, 128), (0, 1), "all found")
    panels = figure.axes[:4]
    assert [panel.get_title(loc="left") for panel in panels] == list(maps)
    assert [panel.images[0].get_array().tolist() for panel in panels] == list(maps.values())
    assert figure.get_suptitle() == "all found"


def test_the_lens_and_the_bars_show_what_they_are_given(pictures):
    """Oracle: the numbers that went in; 8 of 16 in experts and 4 beside them are 12 of 20."""
    certainty = torch.tensor([[0.25, 0.5], [1, 0.5]])
    figure = pictures.lens(certainty, [["\n    self", "a"], [" ", "b"]], ["x", " "])
    ax = figure.axes[0]
    assert ax.images[0].get_array().tolist() == certainty.tolist()
    assert [text.get_text() for text in ax.texts] == ["↵self", "a", "␣", "b"]
    assert ax.get_title(loc="left").endswith("0 of 1 after block 1, 1 after block 2")
    assert [frame.get_xy() for frame in ax.patches] == [pytest.approx((-0.46, 0.56))]
    ax, = pictures.after_each_block([2, 1.5, 1], 2.5).axes
    assert [bar.get_height() for bar in ax.patches] == [2, 1.5, 1]
    assert ax.get_title(loc="left") == ("Read after block 1: 2.00 bits per byte; "
                                        "after the last block: 1.00")
    ax, = pictures.stored_and_activated(16, 4, 1 / 2).axes
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 16), (16, 4), (0, 8),
                                                                      (8, 4)]
    assert ax.get_title(loc="left") == "60.0% of the parameters are activated per token"


def test_bubbles_are_two_lines(pictures):
    """Oracle: the numbers that went in."""
    ax, = pictures.bubbles_over_weight([0.5, 1, 1.5], [7, 6, 6], [7, 6, 5]).axes
    assert [list(line.get_ydata()) for line in ax.lines] == [[7, 6, 6], [7, 6, 5]]
    assert [text.get_text() for text in ax.texts] == ["Table 2", "simulated"]


def test_clocks_show_the_time_and_wavelengths_what_is_too_slow(pictures):
    """Oracle: by hand; after a quarter turn a hand points to the right, and 8 tokens are a turn."""
    ax, = pictures.clocks([0, 1], [math.pi / 2]).axes
    ends = [(line.get_xdata()[1] - line.get_xdata()[0], line.get_ydata()[1]) for line in ax.lines]
    assert ends[0] == pytest.approx((0, -0.36)) and ends[1] == pytest.approx((0.36, 0))
    ax, = pictures.wavelengths(math.pi * torch.tensor([1 / 4, 1 / 64]), 100, 200).axes
    assert [line.get_ydata()[0] for line in ax.lines[:2]] == pytest.approx([8, 128])
    assert ax.get_title(loc="left") == "1 of 2 pairs never complete a turn in 100 tokens"


def test_journeys_have_an_arrow_for_each_copy(pictures):
    """Oracle: by hand; arrows and their colours: vermillion between nodes, blue inside, black."""
    chosen = [[[1, 4], [2, 3]], [[4, 7]], [], [[2, 6], [0, 5]]]
    found = {}
    for hops in (1, 2):
        ax, = pictures.journeys(chosen, per_gpu=2, gpus_per_node=2, hops=hops).axes
        arrows = [text.arrow_patch.get_edgecolor() for text in ax.texts if hasattr(text, "xyann")]
        found[hops] = [arrows.count(to_rgba(colour)) for colour in ("#D55E00", "#0072B2", "black")]
        found[hops].append(ax.get_title(loc="left"))
    assert found[1] == [5, 2, 2, "10 choices are 9 copies; 5 cross between nodes"]
    assert found[2] == [4, 4, 9, "In two hops 4 copies cross between nodes"]


def test_stacks_divide_the_load_of_copies(pictures):
    """Oracle: by hand; three copies of an expert with 12 tokens have 4 each."""
    ax, = pictures.stacks([[0, 1], [0, 2], [0]], [12, 2, 3]).axes
    assert [bar.get_height() for bar in ax.patches] == [4, 2, 4, 3, 4]
    assert [bar.get_y() for bar in ax.patches] == [0, 4, 0, 4, 0]
    assert ax.get_title(loc="left") == "The busiest GPU has 1.24 times the mean to do"


def test_kinds_users_and_queues_show_what_they_are_given(pictures):
    """Oracle: the numbers that went in, over their mean; the longest time between two tokens."""
    import numpy as np
    ax = pictures.by_kind({"code": np.array([1, 3]), "prose": np.array([6, 2])}).axes[0]
    assert ax.images[0].get_array().tolist() == [[0.5, 1.5], [1.5, 0.5]]
    assert ax.get_title(loc="left") == "2 kinds of text have 2 different busiest experts"
    ax, = pictures.one_user({"apart": [0.1, 0.2], "whole": [0.1, 0.5, 0.6]}).axes
    assert [list(line.get_xdata()) for line in ax.lines] == [[0.1, 0.2], [0.1, 0.5, 0.6]]
    assert [text.get_text() for text in ax.texts] == ["longest wait\n100 ms",
                                                      "longest wait\n400 ms"]
    ax, = pictures.queues([0.5], {0.1: 0.06, 0.9: 4.5}, [0.51]).axes
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.06, 4.5], [0.51]]


def test_the_block_grows_and_one_part_is_lit(pictures):
    """Oracle: by hand; every notebook adds boxes or marks, and only those of today are orange."""
    sizes = []
    for today, lit in {"block": 4, "cache": 2, "rotation": 2, "experts": 3, "bias": 1, "ahead": 1,
                       "eight bits": 0}.items():
        ax, = pictures.block(today).axes
        orange = to_rgba("#E69F00")
        assert sum(patch.get_facecolor() == orange for patch in ax.patches) == lit
        sizes.append(len(ax.patches) + len(ax.texts))
    assert sizes == sorted(set(sizes))
    assert sum(text.get_text() == " 8 bits " for text in ax.texts) == 4
