"""Tell a student whether a function is right: every notebook's exercises end in one call of here.

    check.rms_norm(rms_norm)         open | not yet: what differs, and a hint | passed

A checker tries a case small enough to work out by hand, then random ones, against an oracle that
is never our own module: a plain loop in float64 or a formula of the report (`oracles.py`). None
of them raises, so that an unsolved notebook still runs to its end.
"""

import copy
import platform

import matplotlib
import numpy
import oracles
import torch


def machine(minutes):
    """Print what this notebook runs on, and how long it takes there and about."""
    print(f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, "
          f"numpy {numpy.__version__}, matplotlib {matplotlib.__version__}, "
          f"{platform.system()} {platform.machine()}")
    threads = torch.get_num_threads()
    print(f"device cpu, {threads} {'thread' if threads == 1 else 'threads'}; "
          f"about {minutes:g} min on two cores")


def compare(student, inputs, oracle, hint):
    """Run a student's function beside an oracle, print the verdict, never raise -> solved.

    inputs: one tuple of arguments, or a list of such tuples, tried until one fails.
    """
    cases = inputs if isinstance(inputs, list) else [inputs]
    verdict = next((text for case in cases if (text := judge(student, case, oracle, hint))),
                   "passed")
    print(verdict)
    return verdict == "passed"


def judge(student, inputs, oracle, hint):
    """What is wrong with a function on one case, in a line; an empty text if nothing is."""
    expected = torch.as_tensor(oracle(*copy.deepcopy(inputs))).double()
    try:
        got = student(*copy.deepcopy(inputs))
        if got is None:
            return f"not yet: your function returned nothing; is a return missing? {hint}"
        if isinstance(got, list | tuple) and any(torch.is_tensor(part) for part in got):
            got = torch.stack(list(got))
        got = torch.as_tensor(got).double()
    except NotImplementedError:
        return "open: write the function, then run this cell again"
    except Exception as error:                       # a slip must not end the notebook
        slip = f"{type(error).__name__}: {error}".rstrip(".")
        return f"not yet: your function ended in {slip}. {hint}"
    if got.shape != expected.shape:
        return (f"not yet: expected shape {tuple(expected.shape)}, got {tuple(got.shape)}. "
                f"{hint}")
    gap = (got - expected).abs().max().item()
    if gap <= 1e-5 * max(1, expected.abs().max().item()):              # a NaN is not
        return ""
    if expected.numel() <= 8:                        # small enough to compare by eye
        return f"not yet: expected {numbers(expected)}, got {numbers(got)}. {hint}"
    return f"not yet: right shape, values off by up to {gap:.2g}. {hint}"


def numbers(values):
    """A few numbers as a reader wants them: 0.731, or [1, 0.5, -2]."""
    texts = [f"{value:.7g}" for value in values.flatten().tolist()]
    return texts[0] if values.dim() == 0 else f"[{', '.join(texts)}]"


def normal(*shape, seed):
    """Random numbers, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# 01: what is DeepSeek-V3?

def rms_norm(student):
    """By hand: (3, 4) over sqrt(12.5)."""
    cases = [(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0),
             (normal(2, 3, 5, seed=1), normal(5, seed=2), 0.5)]
    return compare(student, cases, oracles.rms_norm, "Is it the root of the mean of the squares, "
                   "over the last axis alone, with eps inside the root and the gain outside?")


def swiglu(student):
    """By hand: one inner channel."""
    cases = [(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]),
              torch.tensor([[1.0], [-1.0]])),
             (normal(3, 4, seed=1), normal(5, 4, seed=2), normal(5, 4, seed=3),
              normal(4, 5, seed=4))]
    return compare(student, cases, oracles.swiglu,
                   "silu(x gate^T) * (x up^T), then down^T: the silu belongs on the gate's branch, "
                   "and nothing is added.")


def active_parameters(student):
    """By hand: 3 matrices of 2 by 1, for 1 + 1 experts, and a gate of 4 rows of 2."""
    cases = [(2, 1, 4, 1, 1), (7168, 2048, 256, 1, 8), (2048, 1408, 64, 2, 6)]
    return compare(student, cases, oracles.active_parameters, "Three matrices an expert; chosen "
                   "and shared ones work; the gate scores all routed experts.")


def bits_a_byte(student):
    """By hand: one nat on one byte."""
    cases = [(torch.tensor([1.0]), "a"), (torch.tensor([0.5, 2.0, 0.25]), "é€ = 1")]
    return compare(student, cases, oracles.bits_a_byte, "Divide by the bytes of the text in UTF-8, "
                   "not by its characters or tokens; and are the nats bits by then?")


def mtp_pairs(student):
    """By hand: tokens 10 to 14."""
    cases = [(torch.tensor([10, 11, 12, 13, 14]),), (torch.tensor([5, 3, 9, 3, 5, 7, 1, 2]),)]
    return compare(student, cases, oracles.mtp_pairs, "The target lies two places after the state: "
                   "the joined token must not be its own target, and one triple fewer is left.")


# 02: why does a 671B model need so little cache?

def cache_bytes_per_token(student):
    """By hand: one layer that keeps 3 + 1 numbers of 2 bytes."""
    cases = [(1, 2, 3, 1, 2), (61, 128, 512, 64, 2), (27, 16, 512, 64, 4)]
    return compare(student, cases, oracles.cache_bytes_per_token,
                   "One latent serves keys and values of all heads: no factor 2 for K and V, "
                   "and no factor for the heads. Every layer keeps one; times the bytes of a "
                   "number.")


def absorb_query(student):
    """By hand: the query (1, -0.5) of the notebook."""
    by_hand = torch.tensor([[[1.0, 0.0, 0.5], [-1.0, 2.0, 0.0]]])
    cases = [(torch.tensor([[[1.0, -0.5]]]), by_hand),
             (normal(3, 4, 5, seed=1), normal(3, 5, 7, seed=2))]
    return compare(student, cases, oracles.absorb_query, "Sum over Dn, the width of a key, and "
                   "within each head alone: q_nope stands on the left of W_UK.")


def keys_of_heads(student):
    """By hand: one token, two heads of one key and two values."""
    cases = [(torch.tensor([[1.0, 10.0, 11.0, 2.0, 20.0, 21.0]]), 2, 1),
             (normal(5, 3 * (4 + 2), seed=1), 3, 4)]
    return compare(student, cases, oracles.keys_of_heads, "kv_b_proj writes head by head: key and "
                   "value of head 0, then key and value of head 1.")


def break_even(student):
    """By hand: expanding costs 3 * 2, a query 2 or 6."""
    cases = [(3, 1, 1), (512, 128, 128), (96, 16, 48)]
    return compare(student, cases, oracles.break_even, "An absorbed query reads the latent twice, "
                   "once for the score and once for the value.")


def absorbed_attention(student):
    """By hand: the two cached tokens of the notebook; then several queries, which need a mask."""
    by_hand = (torch.tensor([[[1.0, -0.5]]]), torch.tensor([[[0.3, 0.2]]]),
               torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]]),
               torch.tensor([[0.1, -0.4], [0.6, 0.2]]),
               torch.tensor([[[1.0, 0.0, 0.5], [-1.0, 2.0, 0.0]]]),
               torch.tensor([[[0.5, 1.0, 0.0], [0.0, -1.0, 1.0]]]), 0.5)
    H, T, S, Dn, Dr, Dv, Rkv = 3, 4, 6, 5, 2, 4, 7
    several = (normal(H, T, Dn, seed=1), normal(H, T, Dr, seed=2), normal(S, Rkv, seed=3),
               normal(S, Dr, seed=4), normal(H, Dn, Rkv, seed=5), normal(H, Dv, Rkv, seed=6), 0.3)
    return compare(student, [by_hand, several], oracles.expanded_attention,
                   "The T queries are the last of the S positions: query t may see positions "
                   "0 to S - T + t, and no later one; the scale is for both parts of a logit.")


# 03: how does it know the order of the words?

def frequencies(student):
    """theta_m = base^(-2m / width), the angle a token of each pair."""
    return compare(student, [(4, 100.0), (10, 50.0), (6, 7.0)], oracles.frequencies,
                   "Does the exponent count channels, two for each pair? Its last numerator "
                   "is width - 2, and the exponent is negative.")


def turns(student):
    """Turns of each pair within a window of tokens."""
    by_hand = torch.tensor([torch.pi / 2, torch.pi / 50])
    random = normal(7, seed=1).sigmoid()
    return compare(student, [(100, by_hand), (37, random)], oracles.turns,
                   "Is a whole turn 2 pi radians in your function?")


def rotate(student):
    """Rotation of one vector, pairs of neighbouring channels."""
    by_hand = torch.tensor([1.0, 2, 3, 4])
    theta = torch.tensor([1, 0.01])
    cases = [(by_hand, 3, theta)]
    cases += [(normal(2 * pairs, seed=pairs), position, normal(pairs, seed=pairs).sigmoid())
              for pairs, position in ((3, 11), (5, 2))]
    return compare(student, cases, oracles.rotate,
                   "Are the partners neighbours, channels 2m and 2m + 1, and do they come back "
                   "to the same two places? And is the turn to the left, (a cos - b sin, "
                   "a sin + b cos), both from the old a and b?")


def angles(student):
    """Angles of new tokens behind those in a cache."""
    by_hand = torch.tensor([1, 0.1])
    cases = [(by_hand, 2, 0), (by_hand, 2, 3), (normal(3, seed=5).sigmoid(), 4, 7)]
    return compare(student, cases, oracles.angles,
                   "Which position has the first new token when some are in the cache already?")


def yarn_frequencies(student):
    """YaRN's frequencies, with beta 32 and 1."""
    # The last one ramps beyond its last pair.
    cases = [(8, 100.0, 4, 128), (16, 1e4, 40, 256), (10, 30.0, 5, 64), (64, 1e4, 40, 4096),
             (16, 1e4, 4, 20_000)]
    return compare(student, cases, oracles.yarn_frequencies,
                   "The ends: m(32) rounded down and at least 0, m(1) rounded up. The ramp: "
                   "linear in the index, clamped to 0 ... 1; 0 keeps a frequency, 1 divides it.")


# 04: what do 256 experts do?


def group_scores(student):
    """One token in two groups of three by hand, then random ones with biases that matter."""
    by_hand = (torch.tensor([[0.9, 0.1, 0.2, 0.6, 0.6, 0.1]]),
               torch.tensor([0.0, 0.0, 0.0, -0.1, 0.0, 0.3]), 2)
    random = [(normal(N, E, seed=E).sigmoid(), normal(E, seed=N), groups)
              for N, E, groups in [(5, 16, 4), (3, 8, 4), (7, 30, 3)]]
    return compare(student, [by_hand, *random], oracles.group_scores,
                   "With the bias, and the sum of its two best: neither the best alone nor all.")


def gates(student):
    """Three experts by hand, where the bias decides; then random ones, some biases large."""
    by_hand = torch.tensor([0.8, 0.2, 0.6]), torch.tensor([-0.7, 0.1, 0.0]), 2, 1.0
    random = [(normal(E, seed=E).sigmoid(), spread * normal(E, seed=E + 1), K, scale)
              for E, K, spread, scale in [(8, 3, 0.1, 2.5), (16, 4, 3.0, 2.5), (5, 5, 1.0, 1.0)]]
    return compare(student, [by_hand, *random], oracles.gates,
                   "Choose with affinity + bias, but weigh with the affinity without bias; the "
                   "weights of the chosen sum to scale.")


def moe_output(student):
    """Two numbers by hand: shared doubles, expert 1 negates, expert 2 swaps; then random."""
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    routed = torch.stack([torch.ones(2, 2), -torch.eye(2), swap])
    by_hand = (torch.tensor([1.0, 3.0]), 2 * torch.eye(2), routed,
               torch.tensor([0.9, 0.2, 0.6]), torch.tensor([1, 2]), 2.0)
    random = [(normal(C, seed=C), normal(C, C, seed=C + 1), normal(E, C, C, seed=C + 2),
               normal(E, seed=C + 3).sigmoid(), torch.tensor(experts), 2.5)
              for C, E, experts in [(3, 4, [3, 0]), (5, 8, [6, 1, 4])]]
    return compare(student, [by_hand, *random], oracles.moe_output,
                   "The shared expert is never scaled; each chosen one counts scale * s over the "
                   "sum of the chosen s.")


def choose_experts(student):
    """The token on which a mask of 0 goes wrong, then random ones with biases of both signs."""
    by_hand = (torch.tensor([0.60, 0.30, 0.20, 0.15, 0.55, 0.50, 0.10, 0.05]),
               torch.tensor([0.10, -0.50, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]), 4, 2, 4)
    # Group 0 has the largest sum, group 1 the best expert, group 2 the two best.
    sums = (torch.tensor([0.5, 0.5, 0.5, 0.9, 0.1, 0.1, 0.7, 0.6, 0.1]), torch.zeros(9), 3, 1, 2)
    random = [(normal(E, seed=seed).sigmoid(), normal(E, seed=seed + 9) - 1, groups, kept, K)
              for seed, E, groups, kept, K in [(1, 12, 3, 2, 5), (2, 16, 4, 2, 4), (3, 6, 3, 1, 2)]]
    return compare(student, [by_hand, sums, *random], oracles.choose_experts,
                   "A forbidden expert must lose even against a negative score. The best groups "
                   "are those whose two largest biased scores have the largest sum.")


# 05: who keeps the experts busy?

def max_violation(student):
    """By hand: (5, 1, 2, 0), mean 2, and (3, 3, 3, 3)."""
    cases = [(torch.tensor([[5, 1, 2, 0], [3, 3, 3, 3]]),),
             ((20 * normal(3, 7, seed=1)).abs().long(),)]
    return compare(student, cases, oracles.max_violation, "Busiest over mean, less 1, for each "
                   "layer by itself: both run over the last axis.")


def worst_violation(student):
    """By hand: all tokens at 2 of 4 experts, twice the mean each."""
    return compare(student, [(4, 2), (16, 2), (64, 6), (256, 8)], oracles.worst_violation,
                   "A token takes K different experts, so no expert gets more than one place of "
                   "each token.")


def bias_step(student):
    """By hand: (5, 1, 2, 0) moves b by -, +, 0, +."""
    cases = [(torch.zeros(4), torch.tensor([5, 1, 2, 0]), 0.001),
             (normal(9, seed=2), (20 * normal(9, seed=3)).abs().long(), 0.25)]
    return compare(student, cases, oracles.bias_step, "The overloaded expert goes down, the idle "
                   "one up, each by gamma; one at the mean stays.")


def sequence_balance(student):
    """By hand: the four tokens of this notebook, 1.2566."""
    s = torch.tensor([[.9, .6, .2, .1], [.8, .3, .5, .1], [.7, .2, .4, .6], [.6, .9, .1, .3]])
    idle = torch.tensor([[.9, .8, .1], [.7, .6, .2]])    # the last expert is never chosen
    cases = [(s, 2), (normal(5, 7, seed=4).sigmoid(), 3), (idle, 2)]
    return compare(student, cases, oracles.sequence_balance, "Eq. 19: is each token's row divided "
                   "by its own sum before the mean over tokens? And eq. 18 has E / (K T) in it.")


def update_once(student):
    """By hand: totals 11, 7, 7, 7, mean 8."""
    cases = [(torch.zeros(4), torch.tensor([[8, 0, 0, 0], [1, 3, 2, 2], [1, 2, 3, 2],
                                            [1, 2, 2, 3]]), 0.001),
             (normal(6, seed=5), (20 * normal(3, 6, seed=6)).abs().long(), 0.125)]
    return compare(student, cases, oracles.update_once, "Add up the micro-batches first, then take "
                   "one step: the sign of the sum is not the sum of signs.")


# 06_can_it_think_two_tokens_ahead

def joined_tokens(student):
    """Numbers of the token joined and of its target, for each position of depth k."""
    return compare(student, [(4, 1), (4, 2), (7, 3)], oracles.joined_tokens,
                   "Is the target one place behind the token that is joined, not that token?")


def tokens_per_step(student):
    """Mean number of tokens of a step, from the acceptance at each place."""
    cases = [(torch.tensor([0.5]),),
             (torch.tensor([0.5, 0.5]),), (normal(4, seed=1).sigmoid(),)]
    return compare(student, cases, oracles.tokens_per_step,
                   "The second draft only counts where the first stood: chances of a chain are "
                   "multiplied.")


def mtp_loss(student):
    """Eq. 24 and 25, for one and for more depths."""
    by_hand = torch.tensor([[1 / 2, 1 / 2], [1 / 4, 3 / 4], [1 / 8, 7 / 8]],
                           dtype=torch.float64).log()
    cases = [([by_hand], torch.zeros(5, dtype=torch.long), 0.3)]
    for T, V, depths in ((6, 5, 2), (9, 4, 3)):
        logits = [normal(T - k, V, seed=10 * T + k) for k in range(1, depths + 1)]
        cases.append((logits, normal(T + 1, seed=V).mul(10).long().abs() % V, 0.1))
    return compare(student, cases, oracles.mtp_loss,
                   "Eq. 24 divides by T, the number of inputs, not by the T - k terms that are "
                   "there.")


def verify_greedy(student):
    """Drafts that stand, and the verdict behind them."""
    verdicts = torch.eye(5)[[1, 3, 2]]
    cases = [(torch.tensor(drafts), verdicts) for drafts in ([1, 3], [1, 0], [0, 3])]
    for k, stand in ((4, 2), (4, 4), (3, 0)):
        logits = normal(k + 1, 6, seed=k)
        drafts = logits.argmax(-1)[:k].clone()
        if stand < k:
            drafts[stand] = (drafts[stand] + 1) % 6
        cases.append((drafts, logits))
    return compare(student, cases, oracles.verify_greedy,
                   "Does the main model's own verdict follow the drafts that stand, also when "
                   "all of them do?")


def replacement(student):
    """What is drawn from after a rejection."""
    p = torch.tensor([0.4, 0.1, 0.3, 0.2, 0])
    q = torch.tensor([0.2, 0.4, 0.3, 0.05, 0.05])
    cases = [(p, q)] + [tuple(normal(2, size, seed=size).softmax(-1)) for size in (3, 7)]
    return compare(student, cases, oracles.replacement,
                   "Only what q gave too little of is still missing: a word with p = q must not "
                   "come any more. And the result sums to 1.")
