"""Pipelines on paper: the programme of each rank, its bubbles, its picture, and the command."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidsv3.scale import timeline as command
from minidsv3.scale.programme import (
    SCHEDULES,
    Chunk,
    Compute,
    Receive,
    Send,
    make_programme,
    phase_counts,
)
from minidsv3.scale.timeline import Cell, draw, make_timeline, simulate, table_2

EXACT = [(1, 2, 1, 3), (1, 2, 1, 2.5), (2, 4, 2, 5)]     # F, B, W, F&B with F = W = B - W
FORMULAS = {                                             # the report's Table 2; PP stages
    "1f1b": lambda PP, F, B, W, FB: (PP - 1) * (F + B),
    "zb1p": lambda PP, F, B, W, FB: (PP - 1) * (F + B - 2 * W),
    "dualpipe": lambda PP, F, B, W, FB: (PP / 2 - 1) * (FB + B - 3 * W),
    "dualpipev": lambda PP, F, B, W, FB: (PP / 2 - 1) * (FB + B - 3 * W),
}


def stages_in(schedule, ranks):
    return 2 * ranks if schedule == "dualpipev" else ranks


@pytest.mark.parametrize("durations", EXACT)
@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bubble_is_that_of_table_2(schedule, ranks, durations):
    """Oracle: the formulas of the report's Table 2, where they are exact."""
    formula = FORMULAS[schedule](stages_in(schedule, ranks), *durations)
    assert simulate(schedule, ranks, 4 * ranks, *durations).bubble == formula
    assert table_2(schedule, ranks, *durations) == formula


@pytest.mark.parametrize("durations, bubbles", [
    ((1, 2.2, 0.9, 2.9), (2.1, 6.3, 15.8)), ((1, 1.8, 1, 2.2), (1.4, 4.2, 9.8))])
def test_where_f_and_w_differ_the_formula_is_an_approximation(durations, bubbles):
    """Oracle: numbers of another simulation of DualPipe, for 4, 8 and 16 ranks."""
    for ranks, bubble in zip((4, 8, 16), bubbles, strict=True):
        found = simulate("dualpipe", ranks, 4 * ranks, *durations).bubble
        assert found == pytest.approx(bubble, abs=1e-9)
        assert found != pytest.approx(table_2("dualpipe", ranks, *durations), abs=0.1)


@pytest.mark.parametrize("schedule, peak", [
    ("1f1b", 8), ("zb1p", 8), ("dualpipe", 9), ("dualpipev", 17)])
def test_the_peak_of_activations_is_that_of_table_2(schedule, peak):
    """Oracle: Table 2, PP and PP + 1, where PP is the number of stages: 8 on paper, 16 in the V."""
    assert simulate(schedule, 8, 32).peak_activations == peak


@pytest.mark.parametrize("schedule, alive", [
    ("1f1b", [4, 3, 2, 1]), ("zb1p", [4, 4, 4, 4]), ("dualpipe", [5, 5, 5, 5])])
def test_a_rank_keeps_inputs_until_their_weight_gradients(schedule, alive):
    """Oracle: by hand; rank r of ZB1P has r weight gradients open, so all ranks keep as many."""
    assert simulate(schedule, 4, 16).alive == alive


def test_the_phases_are_those_of_figure_5():
    """Oracle: the report's Figure 5, counted by eye; the other half of the ranks is its mirror."""
    counted = [(6, 1, 3, 3, 3, 1, 3, 1), (4, 2, 2, 4, 2, 2, 2, 2),
               (2, 3, 1, 5, 1, 3, 1, 3), (0, 4, 0, 6, 0, 4, 0, 4)]
    for rank in range(8):
        assert phase_counts("dualpipe", 8, 20, rank) == counted[min(rank, 7 - rank)]


def test_a_rank_of_dualpipe_computes_what_figure_5_shows():
    """Oracle: the row of device 3 in Figure 5, whose whole backward passes are phases 4 to 6."""
    row = [action for action in make_programme("dualpipe", 8, 20)[3] if isinstance(action, Compute)]
    texts = ["&".join(f"{chunk.kind}{chunk.micro_batch}" for chunk in compute.chunks)
             for compute in row]
    assert texts[:8] == "F0 F10 F1 F11 F2 F12 F3 F13".split()
    assert texts[8:14] == "F4 B10 F14&B0 F5&B11 F15&B1 F6&B12".split()
    assert texts[21:] == "B16 B6 B17 B7 I18 I8 I19 I9 W18 W8 W19 W9".split()
    assert [compute.phase for compute in row[21:]] == [6] * 8 + [8] * 4


@pytest.mark.parametrize("schedule, ranks, micro_batches", [
    ("1f1b", 1, 1), ("1f1b", 5, 3), ("zb1p", 5, 3), ("zb1p", 4, 9), ("dualpipe", 2, 4),
    ("dualpipe", 6, 12), ("dualpipe", 6, 20), ("dualpipev", 1, 2), ("dualpipev", 3, 7)])
def test_every_chunk_is_computed_once(schedule, ranks, micro_batches):
    """Oracle: all pairs of a stage and a micro-batch; each has F, and B or else I and W."""
    computed = Counter(chunk for actions in make_programme(schedule, ranks, micro_batches)
                       for action in actions if isinstance(action, Compute)
                       for chunk in action.chunks)
    assert set(computed.values()) == {1}
    for stage in range(stages_in(schedule, ranks)):
        for micro_batch in range(micro_batches):
            kinds = {kind for kind in "FBIW" if (kind, stage, micro_batch) in computed}
            assert kinds in ({"F", "B"}, {"F", "I", "W"})
    assert len({chunk[1:] for chunk in computed}) == stages_in(schedule, ranks) * micro_batches


@pytest.mark.parametrize("kind", ["F", "B"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_messages_are_received_in_the_order_in_which_they_are_sent(schedule, kind):
    """Oracle: for each pair of ranks the list of the sender, activations and gradients apart."""
    programme = make_programme(schedule, 4, 12)

    def messages(rank, what, other):
        return [a.chunk for a in programme[rank]
                if isinstance(a, what) and a.rank == other and a.chunk.kind == kind]

    for sender in range(4):
        for receiver in range(4):
            assert messages(sender, Send, receiver) == messages(receiver, Receive, sender)
    edges = 6 if schedule == "dualpipev" else 3            # where the V turns, nothing is sent
    assert sum(len(messages(a, Send, b)) for a in range(4) for b in range(4)) == 12 * edges


times = st.integers(0, 9)


@given(st.sampled_from(SCHEDULES), st.sampled_from([2, 4, 6]), st.integers(0, 3), times, times,
       times, times, times)
def test_nothing_starts_before_its_input_is_there(schedule, ranks, more, F, I, W, FB, wait):  # noqa: E741
    """Oracle: the dependencies of a pipeline, checked chunk by chunk; no rank does two things."""
    micro_batches = 2 * ranks + 2 * more
    made = simulate(schedule, ranks, micro_batches, F, I + W, W, FB, wait)
    rows = [[cell for cell in made.cells if cell.rank == rank] for rank in range(ranks)]
    for row in rows:
        assert all(a.end <= b.start for a, b in zip(row, row[1:]))
        busy = sum({"F": F, "B": I + W, "I": I, "W": W}[cell.chunks[0].kind]
                   if len(cell.chunks) == 1 else FB for cell in row)
        assert made.idle[row[0].rank] == max(cell.end for cell in made.cells) - busy
    assert made.bubble == max(made.idle) and made.total == max(cell.end for cell in made.cells)
    where = {(chunk.kind.replace("I", "B"), *chunk[1:]): cell
             for cell in made.cells for chunk in cell.chunks}
    last = stages_in(schedule, ranks) - 1
    for (kind, stage, m), cell in where.items():
        if kind == "F" and stage > 0:
            needed = [where["F", stage - 1, m]]
        elif kind == "B":
            needed = [where["F", stage, m], *([where["B", stage + 1, m]] if stage < last else [])]
        else:
            needed = [where["B", stage, m]] if kind == "W" else []
        for other in needed:
            assert cell.start >= other.end + (wait if other.rank != cell.rank else 0)


def test_two_ranks_with_communication_by_hand():
    """Oracle: a drawing by hand. Rank 0: F F - B B, and each message takes half a unit."""
    made = simulate("1f1b", 2, 2, communication=0.5)
    assert [(cell.rank, str(cell.chunks[0]), cell.start) for cell in made.cells] == [
        (0, "F0@0", 0), (0, "F1@0", 1), (0, "B0@0", 5), (0, "B1@0", 8),
        (1, "F0@1", 1.5), (1, "B0@1", 2.5), (1, "F1@1", 4.5), (1, "B1@1", 5.5)]
    assert (made.total, made.bubble, made.idle) == (10, 4, [4, 4])
    assert [(str(t.chunk), t.start, t.end) for t in made.transfers if t.sender == 1] == [
        ("B0@0", 4.5, 5), ("B1@0", 7.5, 8)]


def test_a_measured_timeline_begins_at_zero():
    """Oracle: by hand; two ranks, whose clock says 100 s at the first start."""
    cells = [[Cell(0, (Chunk("F", 0, 0),), 1, 100, 101), Cell(0, (Chunk("B", 0, 0),), 3, 104, 106)],
             [Cell(1, (Chunk("F", 1, 0),), 1, 101.5, 102.5)]]
    made = make_timeline("1f1b", 2, 1, cells)
    assert [(cell.start, cell.end) for cell in made.cells] == [(0, 1), (4, 6), (1.5, 2.5)]
    assert (made.total, made.idle, made.alive) == (6, [3, 5], [1, 1])


@pytest.mark.parametrize("arguments, text", [
    (("dualpipe", 3, 12), "ranks=3 is odd.*choose 4"),
    (("dualpipe", 4, 9), "micro_batches=9 is odd.*choose 10"),
    (("dualpipe", 4, 6), "micro_batches=6 is too few.*at least 8"),
    (("dualpipev", 4, 7), "micro_batches=7 is too few.*at least 8"),
    (("gpipe", 4, 8), "schedule='gpipe' is unknown; choose one of 1f1b"),
    (("1f1b", 0, 8), "ranks=0 must be a whole number"),
    (("1f1b", 2.0, 8), "ranks=2.0 must be a whole number"),
    (("1f1b", 2, True), "micro_batches=True must be a whole number"),
    (("1f1b", 2, 8, -1), "forward=-1 must be a duration"),
    (("1f1b", 2, 8, 1, float("nan")), "backward=nan must be a duration"),
    (("1f1b", 2, 8, 1, 2, "1"), "weight='1' must be a duration"),
    (("1f1b", 2, 8, 1, 2, 1, float("inf")), "overlapped=inf must be a duration"),
    (("1f1b", 2, 8, 1, 2, 1, 3, None), "communication=None must be a duration"),
    (("1f1b", 2, 8, 1, 2, 3), "weight=3 is longer than backward=2.*at most 2")])
def test_what_cannot_be_is_refused(arguments, text):
    """Oracle: the message, with the value and a remedy."""
    with pytest.raises(ValueError, match=text):
        simulate(*arguments)


def test_the_picture_has_every_micro_batch_in_its_place():
    """Oracle: the cells; the number of each chunk stands within its half of a cell."""
    made = simulate("dualpipe", 4, 8, communication=0.2)
    ax = draw(made).axes[0]
    numbers = {(text.get_text(), round(text.get_position()[1]), text.get_position()[0])
               for text in ax.texts}
    expected = set()
    for cell in made.cells:
        width = (cell.end - cell.start) / len(cell.chunks)
        expected |= {(str(chunk.micro_batch), cell.rank, cell.start + (i + 0.5) * width)
                     for i, chunk in enumerate(cell.chunks)}
    assert numbers == expected
    labels = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert labels[:5] == ["forward", "backward", "input gradient", "weight gradient",
                          "communication"]
    assert "up to 14% of the time (3.8 of 27.8)" in ax.get_title(loc="left")


def test_the_command_draws_and_prints(tmp_path, capsys):
    """Oracle: the figures of Figure 5 in the JSON, and the file."""
    path = tmp_path / "new" / "picture.png"
    assert command.main(["--json", "--out", str(path)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["total"], figures["bubble"], figures["table_2"]) == (66, 6, 6)
    assert figures["peak_activations"] == 9 and figures["phases"][2] == [2, 3, 1, 5, 1, 3, 1, 3]
    assert path.read_bytes().startswith(b"\x89PNG") and figures["picture"] == str(path)
    assert command.main(["--schedule", "zb1p", "--ranks", "4", "--micro-batches", "8",
                         "--out", str(path)]) == 0
    text = capsys.readouterr().out
    assert "bubble 3; by Table 2 3" in text and f"wrote {path}" in text


@pytest.mark.parametrize("words, text", [
    (["--ranks", "3"], "choose 4"), (["--forward", "-1"], "forward=-1.0"),
    (["--out", "."], "must name a file that ends in .png"),
    (["--ranks", "300", "--micro-batches", "9", "--schedule", "1f1b"], "has room for, 256"),
    (["--ranks", "100", "--micro-batches", "400"], "room for 5,000"),
    (["--ranks", "many"], "--ranks")])
def test_bad_input_ends_in_one_line(words, text, capsys, tmp_path, monkeypatch):
    """Oracle: exit code 2, one line with the value and a remedy; nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert command.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and text in lines[0]
    assert not list(tmp_path.iterdir())
