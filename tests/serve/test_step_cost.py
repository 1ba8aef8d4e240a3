"""What one step costs: FLOPs, bytes and seconds by hand, from the report's numbers alone."""

import pytest

from minidsv3.config import ModelConfig
from minidsv3.measure import accounting, cost
from minidsv3.serve.step_cost import ASSUMED, Layout, Parts, StepCost, Work
from minidsv3.serve.step_picture import boxes, draw

CONFIG = ModelConfig.preset("v3-671b")
# No fixed times, no margins: what is left are FLOPs and bytes.
BARE = ASSUMED._replace(compute_share=1, bandwidth_share=1, imbalance=1, launch=0, latency=0, gap=0,
                        communication_sms=0)
DECODE, PREFILL = Layout(144, 2, two_hops=False), Layout(32, 9)
ATTENTION = (7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168)
EXPERT = 3 * 7168 * 2048


def test_a_decoding_step_by_hand():
    """Oracle: FLOPs and bytes of 100 sequences per GPU with 5,000 tokens each, by hand."""
    work = Work(sequences=144 * 100, context=144 * 100 * 5000)
    parts = StepCost(CONFIG, DECODE, BARE).parts(work, 1)
    latents = max(100 * 5000 * 1152 / 3.35e12, 2 * 100 * 5000 * 128 * 1088 / 989.4e12)
    projections = max(2 * 100 * ATTENTION / 1978.8e12, ATTENTION / 3.35e12)
    assert parts.attention == pytest.approx(latents + projections)
    assert parts.experts == pytest.approx(max(2 * 100 * 9 * EXPERT / 1978.8e12,
                                              3 * EXPERT / 3.35e12))
    copies = 8 * (144 - 8) / 144                           # of a row that leave the node
    assert parts.dispatch == pytest.approx(100 * copies * (7168 + 56 * 4) / 50e9)
    assert parts.combine == pytest.approx(100 * copies * 2 * 7168 / 50e9)
    assert parts.dense == pytest.approx(3 * 7168 * 18432 / 3.35e12)
    assert parts.head == pytest.approx(2 * 129280 * 7168 / 3.35e12)


def test_a_prefill_step_by_hand():
    """Oracle: FLOPs of a prompt of 4,096 tokens for each GPU; two hops to 4 nodes of 8 GPUs."""
    work = Work(32 * 4096, 4096, 0, 32 * 4096**2 / 2)
    parts = StepCost(CONFIG, PREFILL, BARE).parts(work, 1)
    assert parts.attention == pytest.approx(
        2 * 4096 * ATTENTION / 1978.8e12 + 2 * 128 * 320 * 4096**2 / 2 / 989.4e12)
    assert parts.experts == pytest.approx(2 * 4096 * 9 * EXPERT / 1978.8e12)
    assert parts.combine == pytest.approx(4096 * 3 * 2 * 7168 / 50e9)      # 3 other nodes


@pytest.mark.parametrize("layout", [PREFILL, DECODE])
def test_flops_of_a_token_are_those_of_the_accounting_module(layout):
    """Oracle: accounting.decoding_flops for one token with 4,096 cached, absorbed.

    With endless bandwidths and FP8 as fast as bfloat16, the seconds of a step are FLOPs / speed.
    """
    assume = BARE._replace(fp8=BARE.bf16, bandwidth=1e30, infiniband=1e30, nvlink=1e30)
    seconds = StepCost(CONFIG, layout, assume)(Work(sequences=layout.gpus,
                                                    context=4096 * layout.gpus))
    # The accounting module also counts the router's matrices and, as parameters, the norms.
    flops = accounting.decoding_flops(CONFIG, 4096)["absorbed"] - 2 * 58 * 256 * 7168
    assert seconds * BARE.bf16 == pytest.approx(flops, rel=2e-5)


def test_a_chunk_expands_or_absorbs_what_was_read_before():
    """Oracle: both forms by hand; a long chunk expands, a short one absorbs."""
    cost_of = StepCost(CONFIG, PREFILL, BARE)

    def reading(new, earlier):
        pairs = new * earlier + new * new / 2
        here = cost_of.parts(Work(32 * new, new, 32 * earlier, 32 * pairs), 1).attention
        expanded = (2 * earlier * 512 * 128 * 256 / 1978.8e12 + 2 * pairs * 128 * 320 / 989.4e12)
        absorbed = 2 * pairs * 128 * 1088 / 989.4e12
        products = max(2 * new * ATTENTION / 1978.8e12, ATTENTION / 3.35e12)
        return here - products, expanded, absorbed

    here, expanded, absorbed = reading(2048, 2048)
    assert here == pytest.approx(expanded) and expanded < absorbed
    here, expanded, absorbed = reading(16, 4096)
    assert here == pytest.approx(absorbed) and absorbed < expanded


def test_one_long_prompt_keeps_its_gpu_busy_and_the_others_wait():
    """Oracle: a prompt alone takes the attention of as many tokens on each of the 32 GPUs."""
    cost_of = StepCost(CONFIG, PREFILL, BARE)
    alone = cost_of.parts(Work(4096, 4096, 0, 4096**2 / 2), 1)
    everywhere = cost_of.parts(Work(32 * 4096, 4096, 0, 32 * 4096**2 / 2), 1)
    assert alone.attention == pytest.approx(everywhere.attention)
    assert alone.dispatch == pytest.approx(everywhere.dispatch)
    assert alone.experts < everywhere.experts
    shared = StepCost(CONFIG, PREFILL._replace(tensor=4), BARE).parts(
        Work(4096, 4096, 0, 4096**2 / 2), 1)
    assert shared.dispatch == pytest.approx(alone.dispatch / 4)


def test_two_micro_batches_overlap_as_the_slots_say():
    """Oracle: the drawn boxes: no two of one row overlap, and each part follows its predecessor."""
    cost_of = StepCost(CONFIG, DECODE)
    work = Work(sequences=144 * 100, context=144 * 100 * 5000)
    found = boxes(cost_of, work, layers=3)
    for row in (0, 1):
        spans = sorted((start, end) for this, *_, start, end in found if this == row)
        assert all(a[1] <= b[0] + 1e-12 for a, b in zip(spans, spans[1:]))
    times = {(layer, micro_batch, name): (start, end)
             for _, micro_batch, name, layer, start, end in found}
    order = [(layer, name) for layer in range(3)
             for name in ("attention", "dispatch", "experts", "combine")]
    for micro_batch in (1, 2):
        chain = [times[layer, micro_batch, name] for layer, name in order
                 if (layer, micro_batch, name) in times]
        assert all(a[1] <= b[0] + 1e-12 for a, b in zip(chain, chain[1:]))
    assert {(row, name) for row, _, name, *_ in found} == {
        (1, "attention"), (1, "experts"), (0, "dispatch"), (0, "combine")}
    by_hand = Parts(attention=3, dispatch=1, experts=2, combine=4, dense=9, head=9)
    assert sum(max(pair) for pair in cost_of.slots(by_hand)) == 4 + 3 + 2 + 4
    parts = cost_of.parts(work, 2)
    assert max(end for *_, end in found) == pytest.approx(
        3 * sum(max(pair) for pair in cost_of.slots(parts)))
    assert "Two micro-batches" in draw(cost_of, work).axes[0].get_title(loc="left")


def test_a_large_step_gains_from_two_micro_batches_and_a_small_one_does_not():
    """Oracle: both ways by themselves; the step takes the faster one."""
    cost_of = StepCost(CONFIG, DECODE)
    for sequences, faster in ((1, 1), (120, 2)):
        work = Work(sequences=144 * sequences, context=144 * sequences * 5000)
        both = {count: cost_of.step(work, count) for count in (1, 2)}
        assert min(both, key=both.get) == faster and cost_of(work) == both[faster]


def test_the_cache_fills_what_the_weights_leave():
    """Oracle: weights of a decode GPU and 70,272 bytes per token, by hand."""
    weights = (61 * ATTENTION + 3 * 3 * 7168 * 18432 + 58 * 3 * EXPERT + 4 * 129280 * 7168)
    room = 144 * (72e9 - weights) / 70272
    assert StepCost(CONFIG, DECODE).room == pytest.approx(room, rel=1e-3)
    drafting = StepCost(CONFIG, DECODE._replace(drafts=1))
    assert drafting.room < StepCost(CONFIG, DECODE).room
    assert cost.cache_bytes(CONFIG)["mla"] == 70272


def test_a_layout_without_all_experts_is_refused():
    """Oracle: the words of the error."""
    with pytest.raises(ValueError, match="routed=1 hold fewer .* 256; choose more"):
        StepCost(CONFIG, Layout(32, 1))
