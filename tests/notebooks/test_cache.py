"""Notebook 02: its checkers take every right answer, and refuse what the task forbids."""

import pytest
import torch

FORMS = [torch.Tensor.float, torch.Tensor.double, torch.Tensor.tolist]


@pytest.mark.parametrize("form", FORMS)
def test_a_right_answer_passes_in_each_form(form, check, capsys):
    """Oracle: the verdict; einsum and slices, as float32, as float64 and as lists."""
    assert check.absorb_query(lambda q, w: form(torch.einsum("htn,hnr->htr", q, w)))
    assert check.keys_of_heads(lambda kv, heads, nope: form(torch.stack(
        [row[:, :nope] for row in kv.chunk(heads, dim=1)])))
    assert check.cache_bytes_per_token(lambda layers, heads, rank, rope, width: form(
        torch.tensor(layers * width * (rank + rope))))
    assert check.break_even(lambda rank, nope, value: form(
        1 / (torch.tensor(2 / (nope + value)).double() - 1 / rank)))
    assert check.absorbed_attention(lambda *inputs: form(by_products(*inputs)))
    assert capsys.readouterr().out == 5 * "passed\n"


def seen(T, S):
    """What the last T of S positions may see, by comparing positions."""
    return torch.arange(S - T, S)[:, None] >= torch.arange(S)


def by_products(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """Two products with the joined latents, as in multi-query attention."""
    q = torch.cat([q_nope @ w_uk, q_rope], dim=-1)
    logits = scale * q @ torch.cat([c_kv, k_rope], dim=-1).T
    hidden = ~seen(q.shape[1], len(c_kv))
    return logits.masked_fill(hidden, float("-inf")).softmax(-1) @ c_kv @ w_uv.mT


def by_einsum(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """Sums in an order that brings the query down first."""
    logits = (torch.einsum("htn,hnr,sr->hts", q_nope, w_uk, c_kv)
              + torch.einsum("htd,sd->hts", q_rope, k_rope)) * scale
    weights = logits.where(seen(q_nope.shape[1], len(c_kv)), -torch.inf).softmax(-1)
    return torch.einsum("hts,sr,hvr->htv", weights, c_kv, w_uv)


def by_kernel(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """torch's own attention, with the latent as key and as value of every head."""
    q = torch.cat([q_nope @ w_uk, q_rope], dim=-1)
    k = torch.cat([c_kv, k_rope], dim=-1).expand(len(q), -1, -1)
    z = torch.nn.functional.scaled_dot_product_attention(
        q, k, c_kv.expand(len(q), -1, -1), attn_mask=seen(q.shape[1], len(c_kv)), scale=scale)
    return z @ w_uv.mT


def by_loops(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """One head and one query at a time, with sums in place of products."""
    H, T, S = len(q_nope), q_nope.shape[1], len(c_kv)
    rows = []
    for h in range(H):
        for t in range(T):
            near = slice(0, S - T + t + 1)
            q = (q_nope[h, t][:, None] * w_uk[h]).sum(0)
            weights = (scale * (c_kv[near] @ q + k_rope[near] @ q_rope[h, t])).softmax(0)
            rows.append(w_uv[h] @ (weights[:, None] * c_kv[near]).sum(0))
    return torch.stack(rows).unflatten(0, (H, T))


@pytest.mark.parametrize("way", [by_products, by_einsum, by_kernel, by_loops])
def test_every_way_of_absorbing_passes(way, check, capsys):
    """Oracle: the verdict; no way forms a key or a value of a cached token."""
    assert check.absorbed_attention(way)
    assert capsys.readouterr().out == "passed\n"


def with_keys(keys_of_head):
    """Right attention whose keys of a head are formed by a function of its W_UK and the latents."""
    def attention(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
        k = torch.stack([keys_of_head(w, c_kv) for w in w_uk])         # (H, S, Dn)
        logits = scale * (q_nope @ k.mT + q_rope @ k_rope.T)
        logits = logits.where(seen(q_nope.shape[1], len(c_kv)), -torch.inf)
        return logits.softmax(-1) @ c_kv @ w_uv.mT
    return attention


def with_values(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """Absorbed queries, and the values of all cached tokens."""
    logits = scale * (q_nope @ w_uk @ c_kv.T + q_rope @ k_rope.T)
    logits = logits.where(seen(q_nope.shape[1], len(c_kv)), -torch.inf)
    return logits.softmax(-1) @ torch.einsum("sr,hvr->hsv", c_kv, w_uv)


def out_of_sight(*inputs):
    """A right result whose products torch does not compute."""
    *tensors, scale = inputs
    q_nope, q_rope, c_kv, k_rope, w_uk, w_uv = (x.numpy() for x in tensors)
    logits = scale * (q_nope @ w_uk @ c_kv.T + q_rope @ k_rope.T)
    weights = torch.tensor(logits).where(seen(q_nope.shape[1], len(c_kv)), -torch.inf).softmax(-1)
    return weights.numpy() @ c_kv @ w_uv.swapaxes(1, 2)


@pytest.mark.parametrize("way, words", [
    (with_keys(lambda w, c: c @ w.T), "it computes keys, a product of shape (41, 29)"),
    (with_keys(lambda w, c: torch.stack([w @ row for row in c])), "a product of shape (29,)"),
    (with_keys(lambda w, c: (w * c[:, None]).sum(-1)), "a product of shape (41, 29)"),
    (with_values, "it computes values of cached tokens, a product of shape"),
    (out_of_sight, "the checker sees no product"),
])
def test_forming_keys_or_values_is_refused(way, words, check, capsys):
    """Oracle: the words. The numbers of these functions are right, as the first cases show."""
    assert not check.absorbed_attention(way)
    verdict = capsys.readouterr().out
    assert verdict.startswith("not yet: H=2, T=3, S=41: ") and words in verdict
