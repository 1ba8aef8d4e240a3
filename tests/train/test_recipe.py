"""Schedules against the report's own numbers (section 4.2), and what TrainConfig refuses."""

import pytest

from minidsv3.train.recipe import (
    TrainConfig,
    batch_size_at,
    gamma_at,
    learning_rate_factor,
    mtp_weight_at,
)

TOTAL = 14.8                                     # tokens of the report's run [10^12]
REPORT = TrainConfig(
    learning_rate=2.2e-4, warmup=0.0085, constant_until=10 / TOTAL, cosine_until=14.3 / TOTAL,
    low_rate=0.1, last_from=14.633 / TOTAL, last_rate=7.3e-6 / 2.2e-4,
    mtp_weight=0.3, mtp_weight_late=0.1, mtp_drop_at=10 / TOTAL,
    gamma=1e-3, gamma_until=14.3 / TOTAL, batch_ramp=0.469 / TOTAL,
    steps=100_000, batch_start=3072, batch_size=15360, micro_batch=8)


@pytest.mark.parametrize("tokens, expected", [
    (0.0, 0.0), (0.00425 * TOTAL, 1.1e-4), (1.0, 2.2e-4), (10.0, 2.2e-4), (11.075, 1.910036e-4),
    (12.15, 1.21e-4), (13.225, 5.099643e-5), (14.3, 2.2e-5), (14.6, 2.2e-5), (14.64, 7.3e-6),
    (14.8, 7.3e-6)])
def test_the_learning_rate_is_the_reports(tokens, expected):
    """Oracle: seven digits, computed beforehand from the report's formula."""
    rate = REPORT.learning_rate * learning_rate_factor(REPORT, tokens / TOTAL)
    assert rate == pytest.approx(expected, rel=3e-7)


@pytest.mark.parametrize("tokens, mtp_weight, gamma", [
    (0.1, 0.3, 1e-3), (9.99, 0.3, 1e-3), (10.01, 0.1, 1e-3), (14.29, 0.1, 1e-3), (14.31, 0.1, 0.0),
    (14.8, 0.1, 0.0)])
def test_mtp_weight_and_bias_speed_change_where_the_report_says(tokens, mtp_weight, gamma):
    """Oracle: the report's sentence, 0.3 until 10T and 0.1 after; 0.001 until 14.3T and 0 after."""
    assert mtp_weight_at(REPORT, tokens / TOTAL) == mtp_weight
    assert gamma_at(REPORT, tokens / TOTAL) == gamma


def test_mtp_may_rest_and_keeps_its_mean_weight():
    """By hand: in every second of six steps twice the weight, and nothing between."""
    config = TrainConfig(mtp_every=2, mtp_weight=0.3, mtp_weight_late=0.1, mtp_drop_at=0.5)
    weights = [mtp_weight_at(config, (number + 1) / 6, number) for number in range(6)]
    assert weights == pytest.approx([0, 0.6, 0, 0.2, 0, 0.2])


def test_the_batch_grows_from_3072_to_15360():
    """Oracle: both ends, the middle of a straight line, and never a step down."""
    ramp = round(REPORT.batch_ramp * REPORT.steps)
    sizes = [batch_size_at(REPORT, step) for step in range(REPORT.steps)]
    assert sizes[0] == 3072 and set(sizes[ramp + 1:]) == {15360}
    assert sizes[ramp // 2] == pytest.approx((3072 + 15360) / 2, rel=1e-3)
    assert all(a <= b for a, b in zip(sizes, sizes[1:]))


def test_a_small_ramp_by_hand():
    """Oracle: 2 to 6 over the first 4 of 10 steps, counted by hand."""
    config = TrainConfig(steps=10, batch_start=2, batch_size=6, batch_ramp=0.4)
    assert [batch_size_at(config, step) for step in range(10)] == [2, 3, 4, 5, 6, 6, 6, 6, 6, 6]
    flat = TrainConfig(steps=3, batch_start=5, batch_size=5, batch_ramp=0.0)
    assert [batch_size_at(flat, step) for step in range(3)] == [5, 5, 5]


@pytest.mark.parametrize("field, value, remedy", [
    ("steps", 0, "at least 1"), ("window", -3, "at least 1"), ("batch_size", 0, "at least 1"),
    ("micro_batch", 0, "at least 1"), ("mtp_every", 0, "at least 1"),
    ("expert_every", 0, "at least 1"),
    ("save_every", 0, "at least 1"),
    ("steps", "many", "give int"), ("learning_rate", "fast", "give float"),
    ("recompute", 1, "give bool"), ("seed", -1, "between 0 and"), ("seed", 2**63, "between 0 and"),
    ("batch_start", 9999, "choose 1 to"), ("optimizer", "sgd", "adamw or muon"),
    ("precision", "fp4", "auto or fp32 or bf16 or fp8"),
    ("balance_over", "all", "affinity or routed"),
    ("learning_rate", 0.0, "above 0"), ("muon_learning_rate", float("nan"), "above 0"),
    ("clip_norm", float("inf"), "above 0"), ("fim_rate", 1.5, "choose 0 to 1"),
    ("beta2", -0.1, "choose 0 to 1"), ("ema_decay", 2.0, "choose 0 to 1"),
    ("weight_decay", -1.0, "0 switches it off"), ("gamma", -0.5, "0 switches it off"),
    ("warmup", 0.999, "rising order")])
def test_errors_name_the_field_the_value_and_the_remedy(field, value, remedy):
    """Oracle: the field, its value and the remedy, each given above."""
    with pytest.raises(ValueError) as caught:
        TrainConfig().replace(**{field: value})
    message = str(caught.value)
    assert field in message and str(value) in message and remedy in message
    assert "\n" not in message


def test_unknown_names_are_errors_with_a_hint():
    """Oracle: the nearest existing name."""
    with pytest.raises(ValueError, match="no field learnin_rate; did you mean learning_rate"):
        TrainConfig().replace(learnin_rate=1.0)
    with pytest.raises(ValueError, match="'huge'.*choose one of tiny, short, small"):
        TrainConfig.preset("huge")
