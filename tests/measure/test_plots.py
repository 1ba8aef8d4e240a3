"""Figures show the data they were given, read back from the axes and not from the picture."""

import io
import math

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from minidsv3.measure import plots


def made_up_metrics(steps=40, evaluate_every=10):
    """Lines as in metrics.jsonl, with numbers that all differ."""
    metrics = []
    for step in range(1, steps + 1):
        line = {"step": step, "tokens": 512 * step, "loss": 7 / math.sqrt(step) + 0.01 * (step % 3),
                "mtp_loss": 8 / math.sqrt(step), "balance_loss": 3.0, "lr": 0.01,
                "tokens_per_s": 1000.0, "max_vio": 0.3}
        if step % evaluate_every == 0:
            line["val_bits_per_byte"] = 4 / math.sqrt(step)
        metrics.append(line)
    return metrics


def lines_of(ax):
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]


def texts_of(ax):
    return [text.get_text() for text in ax.texts]


def average_by_hand(values):
    """The average with explicit weights: the newest value counts 1/n, n = 1, 1.1, ... up to 50."""
    weights = [0.0] * len(values)
    out = []
    for i in range(len(values)):
        share = 1 / min(50, 1 + i / 10)
        weights = [w * (1 - share) for w in weights]
        weights[i] = share
        out.append(sum(w * v for w, v in zip(weights, values)))
    return out


def test_loss_curve_draws_the_numbers_it_was_given():
    """Oracle: the list of metrics itself, and a moving average with its weights written out."""
    metrics = made_up_metrics()
    upper, lower = plots.loss_curve(metrics).axes
    tokens = [512 * step for step in range(1, 41)]
    raw, smooth, mtp = lines_of(upper)
    assert raw == (tokens, [line["loss"] for line in metrics])
    assert smooth[0] == mtp[0] == tokens
    assert smooth[1] == pytest.approx(average_by_hand([line["loss"] for line in metrics]))
    assert mtp[1] == pytest.approx(average_by_hand([line["mtp_loss"] for line in metrics]))
    assert lines_of(lower) == [([5120, 10240, 15360, 20480],
                                [4 / math.sqrt(step) for step in (10, 20, 30, 40)])]


def test_loss_curve_is_labelled_with_units_and_its_title_states_the_finding():
    """Oracle: the sentence for these numbers: 7.01 at the start, 20,480 tokens at the end."""
    metrics = made_up_metrics()
    upper, lower = plots.loss_curve(metrics).axes
    last = average_by_hand([line["loss"] for line in metrics])[-1]
    assert upper.get_title("left") == (f"7.0 → {last:.1f} nats per token, 0.63 bits per byte "
                                       "after 20.5k tokens")
    assert upper.get_ylabel() == "loss [nats per token]"
    assert "[bits per byte]" in lower.get_ylabel()
    assert lower.get_xlabel() == "training progress [tokens]"
    assert set(texts_of(upper)) == {"next token", "MTP"} and texts_of(lower) == ["0.632"]
    assert plots.loss_curve(metrics, title="mine").axes[0].get_title("left") == "mine"


def test_loss_curve_leaves_out_what_was_not_measured():
    """Oracle: metrics without evaluation and without MTP."""
    metrics = [{"step": 1, "tokens": 8, "loss": 3.0, "mtp_loss": 0.0},
               {"step": 2, "tokens": 16, "loss": 2.0, "mtp_loss": 0.0}]
    (ax,) = plots.loss_curve(metrics).axes
    assert len(ax.lines) == 2 and texts_of(ax) == ["next token"]
    assert "bits per byte" not in ax.get_title("left")
    with pytest.raises(ValueError, match="empty.*finished its first step"):
        plots.loss_curve([])


def test_loss_curve_draws_into_given_axes():
    """Oracle: the figure and the axes handed in."""
    figure, pair = plots.canvas(1, 2)
    assert plots.loss_curve(made_up_metrics(), ax=pair) is figure
    assert len(pair[0].lines) == 3 and len(pair[1].lines) == 1 and len(figure.axes) == 2
    figure, alone = plots.canvas()
    assert plots.loss_curve(made_up_metrics(), ax=alone) is figure
    assert len(alone.lines) == 3 and len(figure.axes) == 1


def test_labels_at_the_lines_ends_do_not_overlap():
    """Oracle: heights of the labels, measured in the drawn figure."""
    figure, ax = plots.canvas()
    lines = [*ax.plot([0, 1], [0, 1.00], label="a"), *ax.plot([0, 1], [0, 1.01], label="b"),
             *ax.plot([0, 1], [0, 0.2], label="c")]
    plots.label_ends(ax, lines)
    plots.png(figure, dpi=100)
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert boxes["a"].y1 < boxes["b"].y0, "the higher line has the higher label, clear of the other"
    middle = ax.transData.transform((1, 0.2))[1]
    assert (boxes["c"].y0 + boxes["c"].y1) / 2 == pytest.approx(middle, abs=3)


def test_expert_load_draws_every_load_and_states_max_vio():
    """Oracle: the array itself; MaxVio by hand from the last step: 1.5 - 1 and 2.5 - 1."""
    loads = np.array([[[1.0, 1, 1], [3, 0, 0]],
                      [[0.9, 1.2, 0.9], [0.2, 2.6, 0.2]],
                      [[1.5, 1.0, 0.5], [0.5, 0, 2.5]]])          # (S=3, L=2, E=3)
    figure = plots.expert_load(loads, [10, 20, 40])
    panels, bar = figure.axes[:2], figure.axes[2]
    for layer, panel in enumerate(panels):
        (mesh,) = panel.collections
        np.testing.assert_array_equal(mesh.get_array(), loads[:, layer].T)
        np.testing.assert_array_equal(mesh.get_coordinates()[0, :, 0], [5, 15, 30, 50])
        assert mesh.norm(1.0) == 0.5 and mesh.norm(0.0) == 0 and mesh.norm(2.0) == 1
        assert panel.get_ylim() == (2.5, -0.5), "expert 0 on top"
    assert [p.get_title() for p in panels] == ["MoE layer 1\nMaxVio 0.50",
                                               "MoE layer 2\nMaxVio 1.50"]
    assert "step 40" in figure.get_suptitle() and "2.50 times" in figure.get_suptitle()
    assert "load / mean load" in bar.get_ylabel()
    assert figure.get_supxlabel() == "training progress [steps]"


def test_a_layer_that_rests_is_blank():
    """A layer without any load, as of MTP modules in every second step, has no MaxVio of -1."""
    loads = np.array([[[1.0, 1.0], [1.5, 0.5]], [[1.2, 0.8], [0.0, 0.0]]])    # (S=2, L=2, E=2)
    figure = plots.expert_load(loads, [2, 3])
    first, second = figure.axes[:2]
    assert not np.ma.getmaskarray(first.collections[0].get_array()).any()
    blank = np.ma.getmaskarray(second.collections[0].get_array())
    np.testing.assert_array_equal(blank, [[False, True], [False, True]])
    assert first.get_title().endswith("MaxVio 0.20") and second.get_title().endswith("rests")
    assert "1.20 times" in figure.get_suptitle() and loads[1, 1].tolist() == [0, 0]


def test_expert_load_takes_one_step_and_refuses_another_shape():
    """Oracle: one column, one step wide; the error has the shape given and the shape needed."""
    mesh = plots.expert_load(np.ones((1, 1, 4)), [7]).axes[0].collections[0]
    np.testing.assert_array_equal(mesh.get_coordinates()[0, :, 0], [6.5, 7.5])
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(steps, MoE layers, experts\)"):
        plots.expert_load(np.ones((2, 3)), [1, 2])


def test_save_writes_a_small_png_in_one_piece(tmp_path):
    """Oracle: PIL reads 8 x 4.5 inch at 150 dpi, cut to content; noise, too large, is reduced."""
    path = tmp_path / "new" / "loss.png"
    figure = plots.loss_curve(made_up_metrics())
    plots.save(figure, path)
    assert [file.name for file in path.parent.iterdir()] == ["loss.png"], "no temporary file left"
    with Image.open(path) as image:
        assert image.format == "PNG" and round(image.info["dpi"][0]) == 150
        assert 1050 < image.width < 1350 and 560 < image.height < 760
    first = path.read_bytes()
    plots.save(plots.loss_curve(made_up_metrics()), path)
    assert path.read_bytes() == first, "same data, same bytes"

    noise, ax = plots.canvas()
    ax.imshow(np.random.default_rng(0).random((500, 900, 3)), aspect="auto")
    data = plots.png(noise, dpi=150)
    assert len(first) < plots.MAX_BYTES and Image.open(io.BytesIO(data)).mode == "P"


def test_nothing_global_changes_and_no_figure_is_left_to_close():
    """Oracle: matplotlib's settings before and after, pyplot's own list of open figures."""
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    plots.loss_curve(made_up_metrics())._repr_png_()
    plots.expert_load(np.ones((2, 1, 4)), [1, 2])
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []
    with plots.style():
        assert matplotlib.rcParams["font.size"] == 13
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["BLUE", "VERMILLION", "GREEN", "PURPLE", "BLACK"])
def test_line_colours_stand_out_against_white(name):
    """Oracle: WCAG's contrast formula: 3:1 is its bar for graphics."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
              for c in to_rgb(getattr(plots, name))]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert 1.05 / (luminance + 0.05) >= 3


def test_bars_start_at_zero_and_carry_their_numbers():
    """Oracle: the numbers given, read back from the rectangles and their labels."""
    values = {"MHA": 4000.0, "MLA": 70.5, "none": 0.0}
    ax = plots.bars(values, "cache [bytes a token]", "less", "{:,.1f}", highlight=["MLA"]).axes[0]
    assert [bar.get_width() for bar in ax.patches] == list(values.values())
    assert all(bar.get_x() == 0 for bar in ax.patches) and ax.get_xlim()[0] == 0
    assert texts_of(ax) == ["4,000.0", "70.5", "0.0"]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(values)
    assert ax.yaxis_inverted()                          # the first on top
    colours = [to_rgb(bar.get_facecolor()) for bar in ax.patches]
    assert colours == [to_rgb(plots.SKY), to_rgb(plots.BLUE), to_rgb(plots.SKY)]


def test_a_heat_map_has_fixed_limits_and_readable_texts():
    """Oracle: the matrix given; black on bright cells, white on dark ones."""
    values = [[0.0, 0.2, 0.4], [0.6, 1.0, 0.9]]
    texts = [["a", "b", "c"], ["d", "e", "f"]]
    figure = plots.heat_map(values, "probability [0 to 1]", "t", ["r0", "r1"], ["c0", "c1", "c2"],
                            xlabel="token", texts=texts)
    ax, bar = figure.axes
    image = ax.images[0]
    assert image.get_array().tolist() == values
    assert (image.norm.vmin, image.norm.vmax, image.cmap.name) == (0, 1, "cividis")
    assert texts_of(ax) == list("abcdef") and bar.get_ylabel() == "probability [0 to 1]"
    places = [tuple(text.get_position()) for text in ax.texts]
    assert places == [(column, row) for row in range(2) for column in range(3)]
    assert ax.texts[0].get_color() == "white" and ax.texts[4].get_color() == plots.BLACK


def test_a_heat_map_of_differences_is_centred():
    """Oracle: the limits and the colour map, with white at no difference and equal sides."""
    image = plots.heat_map([[-1.0, 0.5]], "difference [nats]", "t", ["r"], ["a", "b"],
                           centre=0, limits=(-2, 2)).axes[0].images[0]
    assert (image.norm.vmin, image.norm.vmax, image.cmap.name) == (-2, 2, "PuOr")
