"""Every attention kernel gives the same sum, and the choice follows its rule."""

import pytest
import torch
import torch.nn.functional as F

from minidsv3.device import explicit_attention_is_faster
from minidsv3.kernels.attention import attend, attend_explicitly, last_queries


def by_sums(q, k, v, scale):
    """softmax(q k^T * scale) v of one head, one query at a time, in float64."""
    rows, behind = [], len(k) - len(q)
    for t, query in enumerate(q.double()):
        p = (k[:behind + t + 1].double() @ query * scale).softmax(dim=0)
        rows.append(p @ v[:behind + t + 1].double())
    return torch.stack(rows)


def example(T, S, D, Dv, dtype=torch.float32):
    """q (2, 3, T, D), k (2, 3, S, D), v (2, 3, S, Dv)."""
    generator = torch.Generator().manual_seed(T + S)
    return [torch.randn(2, 3, rows, width, generator=generator).to(dtype)
            for rows, width in ((T, D), (S, D), (S, Dv))]


@pytest.mark.parametrize("T, S", [(9, 9), (1, 9), (5, 9)])
@pytest.mark.parametrize("D, Dv", [(12, 8), (12, 12), (12, 20)], ids=["narrow", "equal", "wide"])
@pytest.mark.parametrize("form", [attend, attend_explicitly], ids=["attend", "explicit"])
def test_every_form_is_the_sum(T, S, D, Dv, form):
    """Oracle: the sums, one query at a time, in float64; values narrower and wider than keys."""
    q, k, v = example(T, S, D, Dv)
    rest = (last_queries(T, S, q.device),) if form is attend_explicitly else ()
    got = form(q, k, v, 0.3, *rest)
    assert got.shape == (2, 3, T, Dv)
    for b in range(2):
        for h in range(3):
            expected = by_sums(q[b, h], k[b, h], v[b, h], 0.3)
            assert (got[b, h] - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_filling_up_changes_no_gradient():
    """Oracle: torch's function on values that are not padded, in float64."""
    leaves = [x.double().requires_grad_() for x in example(7, 7, 12, 8)]
    plain = F.scaled_dot_product_attention(*leaves, is_causal=True, scale=0.3)
    probe = torch.linspace(-1, 1, plain.numel(), dtype=plain.dtype).view_as(plain)
    ours = torch.autograd.grad((attend(*leaves, 0.3) * probe).sum(), leaves)
    theirs = torch.autograd.grad((plain * probe).sum(), leaves)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_is_a_rounding_of_it_on_both_kinds_of_processor(monkeypatch, fast):
    """Oracle: the sums of the same rounded inputs, within the 8 bits of bfloat16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    q, k, v = example(9, 9, 12, 8, torch.bfloat16)
    assert explicit_attention_is_faster(q, 9) == fast
    expected = by_sums(q[0, 0], k[0, 0], v[0, 0], 0.3)
    got = attend(q, k, v, 0.3)[0, 0]
    assert got.dtype == torch.bfloat16
    assert (got.double() - expected).abs().max() <= 1e-2 * expected.abs().max()


def test_plain_products_are_for_short_windows_in_bfloat16(monkeypatch):
    """Oracle: the rule by hand, for device, dtype and number of keys."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    q = torch.zeros(1, 1, 2, 4, dtype=torch.bfloat16)
    assert explicit_attention_is_faster(q, 512) and not explicit_attention_is_faster(q, 513)
    assert not explicit_attention_is_faster(q.float(), 9)
    assert not explicit_attention_is_faster(q.to("meta"), 9)
