"""Exercises of notebook 02: why does a 671B model need so little cache? Hints in two steps."""

import oracles
import torch

from .verdict import Products, compare, normal


def cache_bytes_per_token(student, hint=1):
    """By hand: one layer that keeps 3 + 1 numbers of 2 bytes, whatever its 7 heads do."""
    slips = [
        ("You count keys and values apart, a factor 2. One latent serves both.",
         lambda layers, heads, rank, rope, width: 2 * layers * (rank + rope) * width),
        ("You multiply by the heads. All heads share the latent and the decoupled key.",
         lambda layers, heads, rank, rope, width: layers * heads * (rank + rope) * width),
        ("You keep a decoupled key for each head. All heads share one.",
         lambda layers, heads, rank, rope, width: layers * (rank + heads * rope) * width),
        ("You forget the decoupled key, which is kept beside the latent.",
         lambda layers, heads, rank, rope, width: layers * rank * width),
        ("You count numbers, not bytes.",
         lambda layers, heads, rank, rope, width: layers * (rank + rope)),
    ]
    cases = [(1, 7, 3, 1, 2), (61, 128, 512, 64, 2), (27, 16, 512, 64, 4)]
    return compare(student, cases, oracles.cache_bytes_per_token, (
        "What stays of a token in one layer? Which of the arguments does it depend on?",
        "Each layer keeps one latent of kv_lora_rank numbers and one decoupled key of rope_dim "
        "numbers. Multiply by the layers and by the bytes of a number."), hint,
        describe=lambda layers, heads, rank, rope, width: f"layers={layers}, heads={heads}, "
        f"kv_lora_rank={rank}, rope_dim={rope}, width={width}", slips=slips)


def absorb_query(student, hint=1):
    """By hand: a matrix of 2 x 2, in which a wrong side shows; the notebook's query; others."""
    def other_side(q, w):
        """The wrong side, which has a shape of its own only if the matrices are square."""
        return q @ w.transpose(1, 2) if w.shape[1] == w.shape[2] else q[:0]

    slips = [
        ("You multiply by the matrix that is not transposed: this sum runs over the latent, and "
         "it must run over Dn.", other_side),
        ("All your heads use the matrix of head 0.", lambda q, w: q @ w[0]),
        ("You add up the heads. Each head keeps its own absorbed query.",
         lambda q, w: (q @ w).sum(0)),
    ]
    cases = [(torch.tensor([[[1.0, -0.5]]]), torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])),
             (torch.tensor([[[1.0, -0.5]]]), torch.tensor([[[1.0, 0.0, 0.5], [-1.0, 2.0, 0.0]]])),
             (normal(3, 4, 5, seed=1), normal(3, 5, 7, seed=2))]
    return compare(student, cases, oracles.absorb_query, (
        "Vectors are rows here. What is the transposed matrix times q, if q is a row?",
        "Head by head, q_nope (T, Dn) stands on the left of w_uk (Dn, Rkv); the operator @ does "
        "this for all heads at once."), hint,
        describe=lambda q, w: f"{len(q)} head{'s' * (len(q) > 1)}, T={q.shape[1]}, "
        f"Dn={q.shape[2]}, Rkv={w.shape[2]}", slips=slips)


def keys_of_heads(student, hint=1):
    """By hand: one token, two heads of one key and two values; then more tokens and heads."""
    def cut(kv, heads):
        return kv.unflatten(-1, (heads, -1))                           # (S, H, Dn+Dv)

    slips = [
        ("These are the first H * Dn numbers of a row. But a row holds key and value of head 0, "
         "then key and value of head 1.",
         lambda kv, heads, nope: kv[:, :heads * nope].unflatten(-1, (heads, -1)).transpose(0, 1)),
        ("These are the values. The key of a head stands before its value.",
         lambda kv, heads, nope: cut(kv, heads)[..., nope:].transpose(0, 1)),
        ("You reshape (S, H, Dn) to (H, S, Dn), which mixes tokens and heads. Swap the two axes.",
         lambda kv, heads, nope: cut(kv, heads)[..., :nope].reshape(heads, len(kv), nope)),
    ]
    cases = [(torch.tensor([[1.0, 10.0, 11.0, 2.0, 20.0, 21.0]]), 2, 1),
             (torch.tensor([[1.0, 10.0, 2.0, 20.0], [3.0, 30.0, 4.0, 40.0]]), 2, 1),
             (normal(5, 3 * (4 + 2), seed=1), 3, 4)]
    return compare(student, cases, oracles.keys_of_heads, (
        "In which order do keys and values stand in a row of kv?",
        "Divide into heads first, kv.unflatten(-1, (heads, -1)), and cut each head after nope "
        "numbers. Then swap the axes of tokens and heads."), hint,
        describe=lambda kv, heads, nope: (
            f"kv={kv.tolist()}, heads={heads}, nope={nope}" if kv.numel() < 9 else
            f"kv of shape {tuple(kv.shape)}, heads={heads}, nope={nope}"), slips=slips)


def break_even(student, hint=1):
    """By hand: expanding costs 3 * 2, a query 2 or 6; then V3 and the small model."""
    def expanded(rank, nope, value):
        return rank * (nope + value)

    slips = [
        ("Your absorbed query reads the latent once. It reads it twice: for the score and for the "
         "value.", lambda rank, nope, value: expanded(rank, nope, value) / (rank - nope - value)),
        ("Your expanded queries cost nothing.",
         lambda rank, nope, value: expanded(rank, nope, value) / (2 * rank)),
        ("You form the keys only, and no values.",
         lambda rank, nope, value: rank * nope / (2 * rank - nope - value)),
    ]
    cases = [(3, 1, 1), (512, 128, 128), (96, 16, 48)]
    return compare(student, cases, oracles.break_even, (
        "Per head and cached token: what does expanding cost once, and how much more does an "
        "absorbed query cost than an expanded one?",
        "Rkv (Dn + Dv) + T (Dn + Dr + Dv) = T (2 Rkv + Dr). Dr cancels; solve for T."), hint,
        describe=lambda rank, nope, value: f"kv_lora_rank={rank}, nope={nope}, value={value}",
        slips=slips)


def absorbed_attention(student, hint=1):
    """By hand: two queries and four tokens; the notebook's two routes; then what is forbidden."""
    by_hand = (torch.tensor([[[1.0, -0.5]]]), torch.tensor([[[0.3, 0.2]]]),
               torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]]),
               torch.tensor([[0.1, -0.4], [0.6, 0.2]]),
               torch.tensor([[[1.0, 0.0, 0.5], [-1.0, 2.0, 0.0]]]),
               torch.tensor([[[0.5, 1.0, 0.0], [0.0, -1.0, 1.0]]]), 0.5)
    cases = [latents(H=1, T=2, S=4, Dn=3, Dr=2, Dv=2, Rkv=3), by_hand,
             latents(H=3, T=4, S=6, Dn=5, Dr=2, Dv=4, Rkv=7), latents(**WATCHED)]
    return compare(watched(student), cases, oracles.expanded_attention, (
        "Four steps: logits (H, T, S) from two products; minus infinity where a query would look "
        "ahead; softmax; the weighted mean of the latents, which only then goes up.",
        "q_nope @ w_uk @ c_kv.T is the first product. The T queries are the last of S positions: "
        "torch.ones(T, S).triu(S - T + 1) marks what they may not see. The mean goes up by "
        "w_uv.transpose(1, 2)."), hint,
        describe=lambda q_nope, q_rope, c_kv, *rest: f"H={len(q_nope)}, T={q_nope.shape[1]}, "
        f"S={len(c_kv)}", slips=ATTENTION_SLIPS)


# Primes and 4: a product with the factor Dn, or with more than a few times Dv, can only be keys or
# values.
WATCHED = dict(H=2, T=3, S=41, Dn=29, Dr=2, Dv=37, Rkv=5)


def latents(H, T, S, Dn, Dr, Dv, Rkv):
    """Random arguments of absorbed_attention; the scale is 0.3."""
    return (normal(H, T, Dn, seed=1), normal(H, T, Dr, seed=2), normal(S, Rkv, seed=3),
            normal(S, Dr, seed=4), normal(H, Dn, Rkv, seed=5), normal(H, Dv, Rkv, seed=6), 0.3)


def watched(function):
    """The same function, which ends in an error if it forms keys or values of WATCHED."""
    sizes = {name: WATCHED[name] for name in ("H", "T", "S", "Dn", "Dv")}

    def run(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
        H, T, Dn = q_nope.shape
        if {"H": H, "T": T, "S": len(c_kv), "Dn": Dn, "Dv": w_uv.shape[1]} != sizes:
            return function(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale)
        with Products() as seen:
            output = function(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale)
        numbers = {shape: torch.Size(shape).numel() for shape in seen.shapes}
        keys = [shape for shape in seen.shapes if numbers[shape] % Dn == 0]
        values = [shape for shape in seen.shapes if numbers[shape] % w_uv.shape[1] == 0]
        if keys:
            raise ValueError(f"it computes keys, a product of shape {keys[0]}, with Dn={Dn}. No "
                             "key may be formed")
        if sum(numbers[shape] for shape in values) > 2 * H * T * w_uv.shape[1]:
            raise ValueError(f"it computes values of cached tokens, a product of shape "
                             f"{values[0]}, with Dv={w_uv.shape[1]}. Only the output may have "
                             "this width")
        if not seen.shapes:
            raise ValueError("the checker sees no product. Compute with torch, so that it can see "
                             "what is formed")
        return output
    return run


def attention_with(hidden, parts=lambda by_latent, by_position, scale:
                   scale * (by_latent + by_position)):
    """Absorbed attention with another mask, hidden(T, S), or with other logits."""
    def attention(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
        logits = parts(q_nope @ w_uk @ c_kv.T, q_rope @ k_rope.T, scale)
        mask = hidden(q_nope.shape[1], len(c_kv)).bool()
        weights = logits.masked_fill(mask, float("-inf")).softmax(-1)
        return weights @ c_kv @ w_uv.transpose(1, 2)
    return attention


def future(T, S):
    """1 where the last T of S positions may not look."""
    return torch.ones(T, S).triu(S - T + 1)


ATTENTION_SLIPS = [
    ("Your queries also see later positions: a mask is missing.", attention_with(torch.zeros)),
    ("Your queries do not see their own position.",
     attention_with(lambda T, S: torch.ones(T, S).triu(S - T))),
    ("Your queries stand at the beginning of the text. They are the last T of S positions.",
     attention_with(lambda T, S: torch.ones(T, S).triu(1))),
    ("Your logits lack the product of q_rope and k_rope.",
     attention_with(future, lambda by_latent, by_position, scale: scale * by_latent)),
    ("Your logits are not multiplied by scale.",
     attention_with(future, lambda by_latent, by_position, scale: by_latent + by_position)),
    ("Your scale multiplies only one of the two products.",
     attention_with(future, lambda by_latent, by_position, scale: scale * by_latent + by_position)),
]
