"""Run a student's function beside an oracle, and say what differs."""

import copy

import torch
import torch.utils._python_dispatch


def compare(student, inputs, oracle, hint, step=1, describe=None, slips=()):
    """Run a student's function beside an oracle, print the verdict, never raise -> solved.

    inputs: one tuple of arguments, or a list of such tuples, tried until one fails. hint: a text,
    or two texts, of which the second one is shown only if the student asks for it by step=2.
    describe: takes the arguments of the failing case and says them in words. slips: pairs of
    words and a function that makes this mistake; whose numbers equal the student's is named.
    """
    cases, hint = inputs if isinstance(inputs, list) else [inputs], hint_up_to(step, hint)
    verdict = next((text for case in cases
                    if (text := judge(student, case, oracle, hint, describe, slips, cases))),
                   "passed")
    print(verdict)
    return verdict == "passed"


def hint_up_to(step, hint):
    """The text of a hint: of two steps the first with the way to the second, or both."""
    if isinstance(hint, str):
        return hint
    first, second = hint
    return f"{first} (For a further hint add hint=2.)" if step == 1 else f"{first} {second}"


def judge(student, inputs, oracle, hint, describe=None, slips=(), cases=()):
    """What is wrong with a function on one of the cases, in a line; an empty text if nothing is."""
    not_yet = f"not yet: {describe(*inputs)}: " if describe else "not yet: "
    expected = torch.as_tensor(oracle(*copy.deepcopy(inputs))).double()
    try:
        got = answer(student, inputs)
        if got is None:
            return f"{not_yet}your function returned nothing; is a return missing? {hint}"
    except Exception as error:                       # a slip must not end the notebook
        if isinstance(error, NotImplementedError) and not error.args:  # torch's has words
            return "open: write the function, then run this cell again"
        slip = f"{type(error).__name__}: {error}".rstrip(".")
        return f"{not_yet}your function ended in {slip}. {hint}"
    if close(got, expected):
        return ""
    hint = named_slip(student, inputs, slips, cases) + hint
    if got.shape != expected.shape:
        return (f"{not_yet}expected shape {tuple(expected.shape)}, got {tuple(got.shape)}. "
                f"{hint}")
    gap = (got - expected).abs().max().item()
    if expected.numel() <= 8:                        # small enough to compare by eye
        return f"{not_yet}expected {numbers(expected)}, got {numbers(got)}. {hint}"
    return f"{not_yet}right shape, values off by up to {gap:.2g}. {hint}"


def answer(function, inputs):
    """What a function returns for copies of its arguments, in float64; None stays None."""
    got = function(*copy.deepcopy(inputs))
    return None if got is None else in_one(got).double()


def in_one(got):
    """A tensor, an array or a number, or lists of such, also mixed, as one tensor."""
    if isinstance(got, list | tuple) and any(isinstance(part, list | tuple | torch.Tensor)
                                             for part in got):
        return torch.stack([in_one(part) for part in got])
    return torch.as_tensor(got)


def close(got, expected):
    """Are two tensors of float64 equal but for the rounding of float32? One with a NaN is not."""
    return (got.shape == expected.shape
            and bool((got - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())))


def named_slip(function, inputs, slips, cases=()):
    """The words of the slip that gives a function's numbers, and a space; else an empty text.

    Two slips may give the same numbers in one case by chance. Then the one is named that agrees
    with the function in most cases.
    """
    def agrees(slip, case):
        try:
            return close(answer(function, case), answer(slip, case))
        except Exception:                            # one of the two ends in an error here
            return False

    found = [(words, slip) for words, slip in slips if agrees(slip, inputs)]
    if len(found) < 2:
        return "".join(f"{words} " for words, _ in found)
    return max(found, key=lambda pair: sum(agrees(pair[1], case) for case in cases))[0] + " "


def numbers(values):
    """A few numbers as a reader wants them: 0.731, or [1, 0.5, -2]."""
    texts = [f"{value:.7g}" for value in values.flatten().tolist()]
    return texts[0] if values.dim() == 0 else f"[{', '.join(texts)}]"


def normal(*shape, seed):
    """Random numbers, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the shape of every sum of products that torch computes."""

    NAMES = ("mm", "bmm", "mv", "dot", "addmm", "addmv", "baddbmm", "sum", "mean")

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.__name__.split(".")[0] in self.NAMES:
            self.shapes.append(tuple(result.shape))
        return result
