"""Typical mistakes for the exercises of 09_why_do_pipelines_have_bubbles."""


def squared_paper():
    """expected 6, got 18. Which cells does another rank wait for?"""
    return ["F0 F1 F2 .  .  .  .  I0 W0 F3 I1 W1 .  I2 W2 .  I3 W3",
            ".  F0 F1 .  .  I0 W0 F2 I1 W1 F3 I2 W2 .  I3 W3",
            ".  .  F0 I0 W0 F1 I1 W1 F2 I2 W2 F3 I3 W3"]


def one_forward_one_backward(rank, ranks, micro_batches):
    """Rank r goes forwards ranks - 1 - r times"""
    first = min(ranks - rank, micro_batches)
    order = list(range(1, first + 1))
    for m in range(1, micro_batches + 1):
        if first + m <= micro_batches:
            order.append(first + m)
        order.append(-m)
    return order


def peak_alive(kinds):
    """What does W need of the forward pass?"""
    now = peak = 0
    for kind in kinds:
        now += (kind == "F") - (kind in "BI")
        peak = max(peak, now)
    return peak
