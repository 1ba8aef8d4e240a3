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
    ax, = pictures.stored_and_used(16, 4, 1 / 2).axes
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


def test_a_score_is_written_into_each_cell(pictures):
    """Oracle: the numbers that went in."""
    scores = torch.tensor([[4.0, 2.5], [-1.25, 4.0]])
    ax = pictures.distances(scores).axes[0]
    assert ax.images[0].get_array().tolist() == scores.tolist()
    assert [text.get_text() for text in ax.texts] == ["4.00", "2.50", "-1.25", "4.00"]


def test_each_distance_has_an_arrow(pictures):
    """Oracle: the queries that went in are the tips; one arrow on the left, three on the right."""
    plain, turned = torch.tensor([1.0, 0.5]), torch.tensor([[1.0, 0.5], [0.0, -1.0], [-1.0, 0.5]])
    left, right = pictures.rotated_queries(plain, turned).axes
    tips = [[text.xy for text in ax.texts if hasattr(text, "xyann")] for ax in (left, right)]
    assert [[list(tip) for tip in side] for side in tips] == [[[1.0, 0.5]], turned.tolist()]
    names = [text.get_text() for text in right.texts if not hasattr(text, "xyann")]
    assert names == ["0", "1", "2"]


def test_journeys_have_an_arrow_for_each_copy(pictures):
    """Oracle: by hand; arrows and their colours: vermillion between nodes, blue inside, black."""
    chosen = [[[1, 4], [2, 3]], [[4, 7]], [], [[2, 6], [0, 5]]]
    found = {}
    for hops in (1, 2):
        ax, = pictures.journeys(chosen, per_gpu=2, gpus_per_node=2, hops=hops).axes
        arrows = [text.arrow_patch.get_edgecolor() for text in ax.texts if hasattr(text, "xyann")]
        found[hops] = [arrows.count(to_rgba(colour)) for colour in ("#D55E00", "#0072B2", "black")]
        found[hops].append(ax.get_title(loc="left"))
    assert found[1] == [5, 2, 2, "10 choices need 9 copies; 5 cross between nodes"]
    assert found[2] == [4, 4, 9, "In two hops 4 copies cross between nodes"]


def test_stacks_divide_the_load_of_copies(pictures):
    """Oracle: by hand; three copies of an expert with 12 tokens have 4 each."""
    ax, = pictures.stacks([[0, 1], [0, 2], [0]], [12, 2, 3]).axes
    assert [bar.get_height() for bar in ax.patches] == [4, 2, 4, 3, 4]
    assert [bar.get_y() for bar in ax.patches] == [0, 4, 0, 4, 0]
    assert ax.get_title(loc="left") == "The busiest GPU has 1.24 times the mean load"


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


def test_two_routes_form_a_key_per_latent_or_none(pictures):
    """Oracle: by hand; orange is what is formed: a key for each latent, or one absorbed query."""
    expand, absorb = pictures.two_routes(cached=4).axes
    for ax, formed in ((expand, 4), (absorb, 1)):
        colours = [patch.get_facecolor() for patch in ax.patches if hasattr(patch, "get_boxstyle")]
        assert colours.count(to_rgba("#56B4E9")) == 4                  # latents
        assert colours.count(to_rgba("#E69F00")) == formed


def test_absorbed_queries_are_points_with_their_distance(pictures):
    """Oracle: the numbers that went in, and a number at each."""
    turned = torch.tensor([[1.0, 0.5], [0.5, -1.0], [-1.0, -0.5]])
    ax, = pictures.absorbed_queries(turned[0], turned).axes
    assert ax.lines[0].get_xydata().tolist() == turned.tolist()
    assert [text.get_text() for text in ax.texts[:3]] == ["0", "1", "2"]
    assert ax.get_title(loc="left") == "Position inside the key: 3 distances need 3 queries"


def test_memory_and_spectra_show_what_they_are_given(pictures):
    """Oracle: the numbers that went in; by hand, 2 of 3 directions hold 99 % of 100 + 4 + 1."""
    ax, = pictures.memory_held([10, 20], [6e6, 12e6], [2e6, 4e6]).axes
    assert [list(line.get_ydata()) for line in ax.lines] == [[6, 12], [2, 4]]
    assert ax.get_title(loc="left") == "Measured: keys and values are 3 times as large"
    ax, = pictures.spectrum([torch.tensor([10.0, 2.0, 1.0])], rank=2).axes
    assert list(ax.lines[0].get_ydata()) == pytest.approx([1, 0.2, 0.1])
    assert ax.get_legend().get_texts()[0].get_text() == "layer 1: 99 % in 2"


def test_the_fastest_step_and_the_crossing_are_computed(pictures):
    """Oracle: by hand; the titles for lines that cross, and for lines that do not."""
    kept, anew = {64: 1, 256: 4, 1024: 9}, {64: 5, 256: 9, 1024: 30}
    for ours, words in (({64: 2, 256: 3, 1024: 4}, "fastest from 256 cached tokens on"),
                        ({64: 0.5, 256: 5, 1024: 8}, "fastest from 1,024 cached tokens on"),
                        ({64: 2, 256: 5, 1024: 10}, "not the fastest")):
        ax, = pictures.step_times({"kept": kept, "anew": anew, "ours": ours}).axes
        assert [list(line.get_ydata()) for line in ax.lines] == [
            list(line.values()) for line in (kept, anew, ours)]
        assert ax.get_title(loc="left").endswith(words)
    for absorbed, words in (({1: 1, 16: 4, 64: 30}, "the lines cross between 16 and 64 queries"),
                            ({1: 6, 16: 1, 64: 30}, "the lines touch near 1 queries"),
                            ({1: 1, 16: 2, 64: 3}, "absorbing is faster everywhere"),
                            ({1: 6, 16: 9, 64: 30}, "expanding is faster everywhere")):
        ax, = pictures.query_times({1: 5, 16: 6, 64: 9}, absorbed, counted=20).axes
        assert ax.get_title(loc="left") == f"Measured: {words}"
def test_stored_and_activated_are_two_bars_of_all(pictures):
    """Oracle: by hand; 6 of 8 are stored, 1 of 4 is activated."""
    ax, = pictures.stored_and_activated({"routed_experts": 6, "rest": 2},
                                        {"routed_experts": 1, "rest": 3}).axes
    assert [bar.get_width() for bar in ax.patches] == [0.75, 0.25, 0.25, 0.75]
    assert "75% of what is stored, 25% of what is activated" in ax.get_title(loc="left")


def test_steps_of_a_router_are_a_table(pictures):
    """Oracle: by hand; of two groups of two the first is kept, and the best expert is lost."""
    ax, = pictures.steps([0.5, 0.4, 0.9, 0.1], [0, 0.25, -0.75, 0], [True, False],
                         [2, 0.5, 0, 0]).axes
    texts = [text.get_text() for text in ax.texts]
    assert texts[16:20] == ["0.50", "0.65", "out", "out"]
    assert [patch.get_facecolor() for patch in ax.patches].count(to_rgba("#E69F00")) == 2
    assert ax.get_title(loc="left").startswith("Blue: expert 2 fits best, but is not chosen")


def test_who_goes_where_puts_the_experts_of_a_kind_together(pictures):
    """Oracle: by hand; experts 1 and 2 belong to the first kind, experts 3 and 0 to the second."""
    shares = [[0, 0.9, 0.6, 0.1], [0.4, 0.1, 0.3, 0.8]]
    ax = pictures.who_goes_where(shares, ["a", "b"], 0.45).axes[0]
    assert ax.images[0].get_array().tolist() == [[0.9, 0.6, 0.1, 0], [0.1, 0.3, 0.8, 0.4]]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "3", "0"]
    assert [text.get_text() for text in ax.texts] == ["90"]
    assert ax.get_title(loc="left").startswith("1 of 2 kinds have an expert that at least 90% of")


def test_missed_counts_what_is_clear(pictures):
    """Oracle: by hand; one of three kinds lies more than two standard errors above the others."""
    ax, = pictures.missed("abc", [0.5, 0.3, -0.3], [0, 0.2, 0], [0.2, 0.1, 0.1], [4, 5, 6]).axes
    assert [bar.get_width() for bar in ax.patches] == [0.5, 0.3, -0.3, 0, 0.2, 0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a (4)", "b (5)", "c (6)"]
    assert ax.get_title(loc="left").startswith("1 of 3 kinds clearly need")


def test_named_and_loss_added_are_bars(pictures):
    """Oracle: by hand; the domain is compared with the random number, and losses are averaged."""
    right = {"the token": 60, "token and a random number": 59, "token and the domain": 61.5}
    ax, = pictures.named(right).axes
    assert [bar.get_width() for bar in ax.patches] == list(right.values())
    assert ax.get_title(loc="left").startswith("The token predicts 60 % of the experts; the domain")
    assert ax.get_title(loc="left").endswith("adds 2.5 points")
    ax, = pictures.loss_added({"one": torch.tensor([0.5, 1]), "all": torch.tensor([1, 2.0])}).axes
    assert [bar.get_width() for bar in ax.patches] == [0.75, 1.5]
def heights(ax):
    """Of each bar, rounded."""
    return [round(bar.get_height(), 6) for bar in ax.patches]


def test_the_chain_reads_and_guesses_one_further_at_each_depth(pictures):
    """Oracle: by hand; three inputs and two depths."""
    ax, = pictures.chain(T=3, depths=2).axes
    texts = [text.get_text() for text in ax.texts]
    assert [text for text in texts if text.endswith("→")] == [
        f"$x_{n}$ →" for n in (0, 1, 2, 1, 2, 2)]
    assert [text for text in texts if text.startswith("→")] == [
        f"→ $x_{n}$" for n in (1, 2, 3, 2, 3, 3)]


def test_what_is_rejected_is_as_much_as_what_is_drawn_anew(pictures):
    """Oracle: by hand; min(p, q), then the rest of q on the left and of p on the right."""
    left, right = pictures.rejected(["a", "b"], [0.75, 0.25], [0.5, 0.5]).axes
    assert heights(left) == [0.5, 0.25, 0, 0.25] and heights(right) == [0.5, 0.25, 0.25, 0]
    assert left.texts[0].get_text() == "25% rejected"
    assert right.texts[0].get_text() == "25% drawn anew"


def test_a_drafted_text_shades_the_drafts_and_counts_tokens(pictures):
    """Oracle: by hand; two signs of a draft are shaded, a new line is not."""
    from minidsv3.infer.text import Piece
    pieces = [Piece(5, "x"), Piece(6, "yz\n", True), Piece(7, "w"), Piece(None, "")]
    ax, = pictures.drafted_text("a b", pieces, passes=2).axes
    assert [patch.get_xy() for patch in ax.patches] == [(4, 0), (5, 0)]
    assert ax.get_title(loc="left").startswith("3 tokens in 2 passes")


def test_certainty_groups_the_places(pictures):
    """Oracle: by hand; two unsure places, of which one agrees, and a sure one; no empty group."""
    ax, = pictures.by_certainty(torch.tensor([0.1, 0.2, 1.0]), torch.tensor([1, 0, 1])).axes
    assert [bar.get_width() for bar in ax.patches] == [50, 100]


def test_steps_and_speeds_are_ratios(pictures):
    """Oracle: by hand; half the steps in four fifths of the time; a rate of 1/2 at no cost."""
    ax, = pictures.steps_and_time([8, 4], [1.0, 0.8]).axes
    assert [pytest.approx(line.get_ydata().tolist()) for line in ax.lines] == [
        [1, 2], [1, 1.6], [1, 1.25]]
    ax, = pictures.speed_up({"free": 0, "costly": 0.5}, 0.5, drafts=2, most=2).axes
    curves = [line.get_ydata().tolist() for line in ax.lines if len(line.get_ydata()) == 3]
    assert curves == [[1, 1.5, 1.75], [1, 1, 0.875]]
    assert ax.get_title(loc="left") == ("Speed with 2 drafts: 1.75 times with free, "
                                        "0.88 times with costly")


def test_copying_shows_both_losses(pictures):
    """Oracle: the numbers that went in."""
    ax, = pictures.copying([(3, 4), (2, 1)], every=10).axes
    assert [line.get_xdata().tolist() for line in ax.lines] == [[0, 10]] * 2
    assert [line.get_ydata().tolist() for line in ax.lines] == [[3, 2], [4, 1]]


def test_halves_are_bars_beside_equal_chances(pictures):
    """Oracle: the numbers that went in; the line stands at ln 8."""
    ax, = pictures.halves({"as trained": 1, "no state": 2.5}, 8).axes
    assert [bar.get_width() for bar in ax.patches] == [1, 2.5]
    assert ax.lines[0].get_xdata()[0] == pytest.approx(3 * math.log(2))


def test_shares_and_loads_of_experts_show_what_they_are_given(pictures):
    """Oracle: the numbers that went in; by hand, four of sixteen experts take 28 of 40 tokens."""
    history = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]])
    figure = pictures.shares({0: history, 0.5: history}, "A wins")
    assert [line.get_ydata().tolist() for line in figure.axes[1].lines] == [
        (100 * share).tolist() for share in history.T]
    assert figure.axes[1].get_title() == "γ = 0.5: at the end up to 70% for one"
    loads, biases = 100 * history, history - 0.25
    left, right = pictures.balancing(loads, biases).axes
    for ax, values in ((left, loads), (right, biases)):
        assert [line.get_ydata().tolist() for line in ax.lines] == values.T.tolist()
    assert left.get_title(loc="left") == "All loads meet at 25 tokens"
    load = torch.tensor([[7] * 4 + [1] * 12] * 20)
    figure = pictures.collapse({"nothing": load, "bias": torch.ones_like(load)}, "few")
    assert [ax.get_title() for ax in figure.axes[:2]] == [
        "nothing: in the end\n4 experts take 70%", "bias: in the end\n4 experts take 25%"]


def test_the_loop_has_six_arrows_and_the_brake_three(pictures):
    """Oracle: by hand; the loop is vermillion, the brake is green."""
    ax, = pictures.loop_and_brake().axes
    colours = [text.arrow_patch.get_edgecolor() for text in ax.texts if hasattr(text, "xyann")]
    assert [colours.count(to_rgba(colour)) for colour in ("#D55E00", "#009E73")] == [6, 3]


def test_lines_of_numbers_and_range_show_what_eight_bits_have(pictures):
    """Oracle: by hand; 9 numbers of E4M3 from 1 to 2, and two of three sizes too small for it."""
    codes = torch.arange(128, dtype=torch.uint8)
    ax = pictures.number_lines({"E4M3": codes.view(torch.float8_e4m3fn)}).axes[1]
    assert len(ax.collections[0].get_segments()) == 9
    rows = {"none": torch.tensor([2.0**-10, 1e-9, 1.0]), "tiles": torch.tensor([448.0, 100, 1])}
    figure = pictures.in_range(rows, "lost: {}")
    assert figure.get_suptitle() == "lost: 67 %"
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["none: 66.7 % become 0",
                                                                "tiles: 0.0 % become 0"]
    assert sum(bar.get_height() for bar in figure.axes[0].containers[0]) == 3


def test_errors_of_eight_bits_show_what_they_are_given(pictures):
    """Oracle: the numbers that went in, in percent, and counts by hand in the titles."""
    ax, = pictures.outlier_errors([1, 10], {"tile": [0.02, 0.03], "tensor": [0.02, 1.0]}).axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [
        pytest.approx([2, 3]), pytest.approx([2, 100])]
    ax = pictures.sums([128, 256], {"both": {"never": [0.1, 0.2], "every 128": [0.1, 0.1]}}).axes[0]
    assert [list(line.get_ydata()) for line in ax.lines] == [[10, 20], [10, 10]]
    assert ax.get_title(loc="left") == "both: 20 % or 10 %"
    ax, = pictures.gradient_errors({"a": 0.1, "b": 0.12, "another batch": 1.4}).axes
    assert ax.get_title(loc="left") == "Rounding: at most 12 %; another batch: 140 %"
    parts = {"1 to 2": {"twin": [0.001, 0.003], "eight": [0.004]}}
    figure = pictures.loss_errors(parts, 0.0025, ["twin"], "finding")
    ax, = figure.axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.2, 0.4])
    assert [list(line.get_xdata()) for line in ax.lines[:2]] == [[0.1, 0.3], [0.4]]
    assert ax.get_title(loc="left") == "steps 1 to 2: 2 of 3 runs above 0.25 %"


def test_each_product_has_a_tile_along_its_sum(pictures):
    """Oracle: by hand; of each factor one tile in colour, and the sizes of these tiles."""
    panels = pictures.three_products().axes
    assert [panel.get_title() for panel in panels] == ["Fprop", "Dgrad", "Wgrad"]
    sizes = []
    for panel in panels:
        lit = [patch for patch in panel.patches if patch.get_facecolor()[:3] != (1, 1, 1)]
        sizes.append([(patch.get_width(), patch.get_height()) for patch in lit[:2]])
    assert sizes == [[(4, 1), (4, 4)], [(4, 1), (4, 4)], [(4, 1), (1, 4)]]
