"""Exercises of notebook 01: what is DeepSeek-V3? Each has a hint in two steps."""

import math

import oracles
import torch

from .verdict import compare, normal, numbers


def rms_norm(student, hint=1):
    """By hand: (3, 4) over sqrt(12.5); then more axes, and an eps that matters."""
    cases = [(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0),
             (normal(2, 3, 5, seed=1), normal(5, seed=2), 0.5),
             (normal(4, 3, seed=3), normal(3, seed=4), 1e-6)]

    def square(x):
        return x.square().mean(-1, keepdim=True)

    slips = [
        ("You divide by the mean square: its root is missing.",
         lambda x, gain, eps: gain * x / (square(x) + eps)),
        ("You divide by the length of the vector: take the mean of the squares, not their sum.",
         lambda x, gain, eps: gain * x / (x.square().sum(-1, keepdim=True) + eps).sqrt()),
        ("The gain is missing.", lambda x, gain, eps: x / (square(x) + eps).sqrt()),
        ("You take the mean over all vectors together: each vector has its own, over the last "
         "axis alone.", lambda x, gain, eps: gain * x / (x.square().mean() + eps).sqrt()),
        ("Your eps stands outside the root.", lambda x, gain, eps: gain * x / (square(x).sqrt()
                                                                              + eps)),
        ("Your eps is missing.", lambda x, gain, eps: gain * x / square(x).sqrt()),
        ("You subtract the mean first, as LayerNorm does. RMSNorm does not.",
         lambda x, gain, eps: gain * (x - x.mean(-1, keepdim=True))
         / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()),
        ("You use var or std, which subtract the mean first. RMSNorm does not.",
         lambda x, gain, eps: gain * (x - x.mean(-1, keepdim=True))
         / (x.var(-1, keepdim=True) + eps).sqrt()),
        ("You use var or std, which subtract the mean first. RMSNorm does not.",
         lambda x, gain, eps: gain * x / (x.var(-1, keepdim=True) + eps).sqrt()),
    ]
    return compare(student, cases, oracles.rms_norm, (
        "Four steps: square, mean over the last axis, root, divide. Then comes the gain.",
        "mean(dim=-1, keepdim=True) keeps an axis of length 1, so that the division fits; add eps "
        "to this mean before you take the root."), hint,
        describe=lambda x, gain, eps: f"x={numbers(x)}, gain={numbers(gain)}, eps={eps:g}"
        if x.numel() <= 2 else f"x of shape {tuple(x.shape)}, eps={eps:g}", slips=slips)


def swiglu(student, hint=1):
    """By hand: one inner channel, on the numbers of the norm; then random ones."""
    cases = [(torch.tensor([[0.8485, 2.2627]]), torch.tensor([[1.0, 0.0]]),
              torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0], [-1.0]])),
             (normal(3, 4, seed=1), normal(5, 4, seed=2), normal(5, 4, seed=3),
              normal(4, 5, seed=4))]
    silu = torch.nn.functional.silu

    def network(inner):
        return lambda x, gate, up, down: inner(x @ gate.T, x @ up.T) @ down.T

    slips = [
        ("Your silu is on the branch of up: it belongs on the branch of gate.",
         network(lambda g, u: g * silu(u))),
        ("You use the sigmoid alone: silu(z) is z times sigmoid(z).",
         network(lambda g, u: torch.sigmoid(g) * u)),
        ("You add the two branches: they are multiplied.", network(lambda g, u: silu(g) + u)),
        ("Your silu is around the whole product: it belongs on the branch of gate alone.",
         network(lambda g, u: silu(g * u))),
        ("Your result includes x: the block adds it later.",
         lambda x, gate, up, down: x + (silu(x @ gate.T) * (x @ up.T)) @ down.T),
        ("Neither branch goes through silu.", network(lambda g, u: g * u)),
    ]
    return compare(student, cases, oracles.swiglu, (
        "Two products with x, side by side; one of them goes through silu; multiply the two; one "
        "product back.",
        "x @ gate.T has the shape (N, F), and so has x @ up.T. down.T brings (N, F) back to "
        "(N, C)."), hint,
        describe=lambda x, gate, up, down: "the example by hand" if len(gate) == 1 else
        f"N={len(x)}, C={x.shape[1]}, F={len(gate)}", slips=slips)


def active_parameters(student, hint=1):
    """By hand: 3 matrices of 2 by 1, for 1 + 1 experts, and a router of 5 rows of 2."""
    def count(experts, rows, matrices=3):
        return lambda width, inner, routed, shared, chosen: (
            matrices * width * inner * experts(routed, shared, chosen)
            + width * rows(routed, shared, chosen))

    def usual(routed, shared, chosen):
        return shared + chosen

    slips = [
        ("You forget the shared experts: they work on every token.",
         count(lambda routed, shared, chosen: chosen, lambda routed, *_: routed)),
        ("You count all routed experts: only the chosen ones work on a token.",
         count(lambda routed, shared, chosen: shared + routed, lambda routed, *_: routed)),
        ("You forget the router.", count(usual, lambda *_: 0)),
        ("Your router scores only the chosen experts: to choose, it must score all routed ones.",
         count(usual, lambda routed, shared, chosen: chosen)),
        ("Your router scores only the experts that work: to choose, it must score all routed ones.",
         count(usual, usual)),
        ("Your router also scores the shared experts: nobody has to choose them.",
         count(usual, lambda routed, shared, chosen: routed + shared)),
        ("Your experts have two matrices: a SwiGLU has three.",
         count(usual, lambda routed, *_: routed, matrices=2)),
    ]
    return compare(
        student, [(2, 1, 5, 1, 1), (7168, 2048, 256, 1, 8), (2048, 1408, 64, 2, 6)],
        oracles.active_parameters, (
            "Which experts work on a token, and how large is one? Then add what the router needs.",
            "An expert has three matrices of width times inner numbers. The router has a row of "
            "width numbers for each routed expert, chosen or not."), hint,
        describe=lambda width, inner, routed, shared, chosen: f"width={width}, inner={inner}, "
        f"routed={routed}, shared={shared}, chosen={chosen}", slips=slips)


def bits_a_byte(student, hint=1):
    """By hand: one nat on one byte, and the example of the notebook; then characters of 2 and 3."""
    def rate(total, length):
        return lambda nats, text: total(nats) / length(nats, text)

    def bits(nats):
        return nats.sum() / math.log(2)

    def size(nats, text):
        return len(text.encode("utf-8"))

    slips = [
        ("You divide by characters: some have more than one byte in UTF-8.",
         rate(bits, lambda nats, text: len(text))),
        ("You divide by tokens: divide by the bytes of the text.",
         rate(bits, lambda nats, text: len(nats))),
        ("Your losses are still in nats.", rate(lambda nats: nats.sum(), size)),
        ("You multiply by ln 2: a nat is more than a bit, so divide by it.",
         rate(lambda nats: nats.sum() * math.log(2), size)),
        ("You take the mean of the losses: the bits of all tokens together spell the text.",
         rate(lambda nats: nats.mean() / math.log(2), size)),
    ]
    return compare(
        student, [(torch.tensor([1.0]), "a"), (torch.tensor([0.408]), "def"),
                  (torch.tensor([0.5, 2.0, 0.25]), "é€ = 1")], oracles.bits_a_byte, (
            "How many bits do all tokens cost together, and how many bytes does the text have?",
            'A nat is 1 / ln 2 bits; math.log is the natural logarithm. text.encode("utf-8") gives '
            "the bytes of a text."), hint,
        describe=lambda nats, text: f"nats={numbers(nats)} for the text {text!r}", slips=slips)


def fused_block(student, hint=1):
    """By hand: norms that halve, an attention that adds 10, an ffn of 100 x; then real norms."""
    def with_parts(function):
        def run(case, out, stream, *weights):
            result = function(out, stream, *parts(case, *weights))
            if result is None:
                return None
            stacked = not isinstance(result, list | tuple) and torch.as_tensor(result).dim() == 3
            if not (stacked or isinstance(result, list | tuple)) or len(result) != 2:
                raise ValueError("return two things: out, stream")
            return torch.stack([torch.as_tensor(each).double() for each in result])
        return run

    def parts(case, *weights):
        if case == "by hand":
            return (lambda x: x / 2), (lambda x: x + 10), (lambda x: x / 2), (lambda x: 100 * x)
        gain_1, mix, gain_2, inner = weights
        return (normed_by(gain_1), lambda x: mix @ x, normed_by(gain_2),
                lambda x: (x @ inner).tanh())

    def normed_by(gain):
        return lambda x: gain * x / x.square().mean(-1, keepdim=True).sqrt()

    cases = [("by hand", torch.tensor([[1.0]]), torch.tensor([[3.0]]))]
    for T, C in ((3, 4), (5, 2)):
        cases.append((f"T={T}, C={C}", *normal(2, T, C, seed=T), normal(C, seed=1),
                      normal(T, T, seed=2), normal(C, seed=3), normal(C, C, seed=4)))
    slips = [(words, with_parts(slip)) for words, slip in FUSED_SLIPS]
    return compare(with_parts(student), cases, lambda case, out, stream, *weights: (
        oracles.fused_block(out, stream, *parts(case, *weights))), (
        "Follow the stream with a pencil: at each norm, ask whether the next addition is made to "
        "the number before the norm or to the number after it.",
        "Before each norm add out to the stream, and keep this sum under its own name. The norm's "
        "result goes into attention or ffn only, and is then forgotten."), hint,
        describe=lambda case, *_: case, slips=slips)


def norm_replaces(out, stream, norm_1, attention, norm_2, ffn):
    """As in the notebook."""
    normed = norm_1(stream + out)
    normed = norm_2(normed + attention(normed))
    return ffn(normed), normed


def adds_twice(out, stream, norm_1, attention, norm_2, ffn):
    """Adds the feed-forward network too, which the next block will do again."""
    stream = stream + out
    stream = stream + attention(norm_1(stream))
    out = ffn(norm_2(stream))
    return out, stream + out


def drops_out(out, stream, norm_1, attention, norm_2, ffn):
    """Never adds what the part before it returned."""
    stream = stream + attention(norm_1(stream))
    return ffn(norm_2(stream)), stream


def forgets_the_sum(out, stream, norm_1, attention, norm_2, ffn):
    """Reads the sum, and does not keep it."""
    stream = stream + attention(norm_1(stream + out))
    return ffn(norm_2(stream)), stream


def old_stream(out, stream, norm_1, attention, norm_2, ffn):
    """Computes all, and returns a stream without the attention."""
    stream = stream + out
    return ffn(norm_2(stream + attention(norm_1(stream)))), stream


def one_norm_right(out, stream, norm_1, attention, norm_2, ffn):
    """The first norm is repaired, the second is not."""
    stream = stream + out
    normed = norm_2(stream + attention(norm_1(stream)))
    return ffn(normed), normed


FUSED_SLIPS = [
    ("Your norms still replace the stream.", norm_replaces),
    ("Your second norm still replaces the stream.", one_norm_right),
    ("You add the output of ffn to the stream, and the next block will add it once more.",
     adds_twice),
    ("You never add out to the stream.", drops_out),
    ("The first norm reads stream + out, but then you add attention to the stream without out.",
     forgets_the_sum),
    ("The stream that you return lacks the output of attention.", old_stream),
]
