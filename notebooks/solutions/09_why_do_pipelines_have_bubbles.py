"""Solutions to 09_why_do_pipelines_have_bubbles: read them after you have tried."""


def squared_paper():
    """Rank r delays r weight gradients: nobody waits for W, and at the end it fills the time."""
    return ["F0 F1 F2 .  .  I0 W0 F3 I1 W1 I2 W2 I3 W3",
            ".  F0 F1 .  I0 F2 I1 W0 F3 I2 W1 I3 W2 W3",
            ".  .  F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3"]


def one_forward_one_backward(rank, ranks, micro_batches):
    """Forwards until the first gradient can be there; then in turn, so that none piles up."""
    first = min(ranks - 1 - rank, micro_batches)
    order = list(range(1, first + 1))
    for m in range(1, micro_batches + 1):
        if first + m <= micro_batches:
            order.append(first + m)
        order.append(-m)
    return order


def peak_alive(kinds):
    """W multiplies the gradient with the stored input, so the input must stay until W."""
    now = peak = 0
    for kind in kinds:
        now += (kind == "F") - (kind in "BW")
        peak = max(peak, now)
    return peak
