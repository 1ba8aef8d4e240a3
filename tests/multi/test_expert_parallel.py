"""Experts on several processes equal the same layer on one: outputs, gradients, bytes sent."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from minidsv3 import ModelConfig, fp8
from minidsv3.device import local
from minidsv3.model.moe import MoE
from minidsv3.scale.expert_parallel import one_hop, spread, two_hops
from tests.multi.launch import run_ranks

pytestmark = pytest.mark.multi

CONFIG = ModelConfig.preset("tiny").replace(
    hidden_size=24, moe_intermediate_size=16, n_routed_experts=8, num_experts_per_tok=3,
    n_shared_experts=1, n_group=4, topk_group=2)
TOKENS = (5, 12, 1, 7)                           # of each process


def the_layer(biases, config=CONFIG, dtype=torch.float64):
    """The same MoE layer in every process; biases steer which experts are chosen."""
    torch.manual_seed(0)
    layer = MoE(config).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
        layer.gate.e_score_correction_bias.copy_(torch.tensor(biases))
    return layer


def the_tokens(world, config=CONFIG, dtype=torch.float64):
    """(1, N, C) of every process, and the gradient of its output."""
    generator = torch.Generator().manual_seed(1)
    shape = [(1, count, config.hidden_size) for count in TOKENS[:world]]
    return [tuple(torch.randn(2, *each, generator=generator, dtype=dtype)) for each in shape]


def route(kind):
    """The way of copies: one hop, or two hops over two nodes or over one."""
    world = dist.get_world_size()
    if kind == "one":
        return one_hop(dist.group.WORLD, per_node=2)
    nodes = {"two": 2, "two, one node": 1, "two, nodes of one": world}[kind]
    mesh = init_device_mesh("cpu", (nodes, world // nodes), mesh_dim_names=("node", "gpu"))
    return two_hops(mesh.get_group("node"), mesh.get_group("gpu"), world // nodes)


def through(layer, x, dy):
    """One pass forwards and backwards -> output, gradient of x, gradients by name."""
    x = x.clone().requires_grad_()
    y, _ = layer(x)
    y.backward(dy)
    return y.detach(), x.grad, {name: local(p.grad) for name, p in layer.named_parameters()}


def on_a_rank(rank, world, kind, biases, fp8_experts, fp8_way):
    """The layer spread over all processes, for this process's tokens."""
    dtype = torch.float32 if fp8_experts else torch.float64
    layer = the_layer(biases, dtype=dtype)
    if fp8_experts:
        holder = torch.nn.ModuleDict({"layer": layer})
        fp8.convert(holder)
    spread(layer, route(kind), fp8_way)
    return through(layer, *the_tokens(world, dtype=dtype)[rank])


def whole(world, biases, fp8_experts=False):
    """Oracle: the plain layer on one process with the tokens of all."""
    dtype = torch.float32 if fp8_experts else torch.float64
    layer = the_layer(biases, dtype=dtype)
    if fp8_experts:
        fp8.convert(torch.nn.ModuleDict({"layer": layer}))
    x, dy = (torch.cat(each, dim=1) for each in zip(*the_tokens(world, dtype=dtype), strict=True))
    return through(layer, x, dy)


def together(results):
    """What all processes have, as one process would: outputs joined, gradients joined or summed."""
    outputs, of_x, gradients = zip(*results, strict=True)
    joined = {name: (torch.cat if name.startswith("experts.") else sum)(
        [each[name] for each in gradients]) for name in gradients[0]}
    return torch.cat(outputs, dim=1), torch.cat(of_x, dim=1), joined


def gaps(got, expected):
    """The largest difference of outputs, of gradients of x, and of those of each parameter."""
    (y, dx, grads), (y0, dx0, grads0) = got, expected
    return {"y": (y - y0).abs().max().item(), "x": (dx - dx0).abs().max().item(),
            **{name: (grads[name] - grads0[name]).abs().max().item() for name in grads0}}


UNEVEN = {"even": [0.0] * 8, "one idle expert": [0, 0, 0, -9, 0, 0, 0, 0],
          "an idle process": [-9, -9, 0, 0, 0, 0, 0, 0],
          "one busy process": [-9, -9, -9, -9, 0, 0, 0, 0]}


@pytest.mark.parametrize("load", UNEVEN)
@pytest.mark.parametrize("world, kind", [(2, "one"), (2, "two, nodes of one"), (4, "one"),
                                         (4, "two"), (4, "two, one node")])
def test_experts_on_several_processes_are_those_of_one(world, kind, load):
    """Oracle: the plain layer. Float64; only the order of sums differs."""
    results = run_ranks(on_a_rank, world, world, kind, UNEVEN[load], False, False)
    found = gaps(together(results), whole(world, UNEVEN[load]))
    assert max(found.values()) < 1e-12, found


def test_fp8_experts_on_several_processes_are_those_of_one():
    """Oracle: the plain layer, converted. Float32; Wgrad's tiles hold the same tokens on any way.

    Copies sent in FP8 change nothing, since the experts quantise them in the same way; what comes
    back in bfloat16 is rounded to 8 bits. The shared expert is left out: in its Wgrad, the tiles of
    a process hold its own tokens.
    """
    def compared(kind, fp8_way):
        results = run_ranks(on_a_rank, 4, 4, kind, UNEVEN["even"], True, fp8_way)
        found = gaps(together(results), expected)
        return {name: gap for name, gap in found.items() if "shared" not in name}

    expected = whole(4, UNEVEN["even"], fp8_experts=True)
    size = expected[0].abs().max().item()
    for kind in ("one", "two"):
        found = compared(kind, False)
        assert max(found.values()) < 1e-5 * size, found
        found = compared(kind, True)
        assert 1e-5 * size < found["y"] < 2 * 2**-8 * size, found


def with_spare_rows(rank, load):
    """Experts in bfloat16 pad the rows of an expert on CPUs; here to multiples of 4."""
    layer, (x, dy) = the_layer(UNEVEN[load]), the_tokens(2)[rank]
    experts = spread(layer, route("one")).experts
    plain = experts.dispatch
    experts.dispatch = lambda x, routing, multiple: plain(x, routing, 4)
    return through(layer, x, dy)


@pytest.mark.parametrize("load", ["even", "an idle process"])
def test_spare_rows_change_nothing(load):
    """Oracle: the plain layer. Float64."""
    found = gaps(together(run_ranks(with_spare_rows, 2, load)), whole(2, UNEVEN[load]))
    assert max(found.values()) < 1e-12, found


def bytes_sent(rank, kind, fp8_way):
    """Bytes of one pass, forwards and backwards -> experts chosen, bytes across, bytes inside."""
    layer = the_layer(UNEVEN["even"])
    x, dy = the_tokens(4)[rank]
    way = route(kind)
    spread(layer, way, fp8_way)
    through(layer, x, dy)
    _, routing = layer.gate(x)
    return (routing.experts[0].tolist(), sum(link.across for link in way.links),
            sum(link.inside for link in way.links))


def copies_by_loop(chosen, rank, hops):
    """Copies that a process sends of its own tokens or passes on -> across nodes, inside nodes.

    The experts are on 4 processes, two a node. chosen: experts of every token, by process.
    """
    across = inside = 0
    for sender, tokens in enumerate(chosen):
        for experts in tokens:
            targets = {expert // 2 for expert in experts}
            if hops == 1 and sender == rank:
                across += sum(target // 2 != rank // 2 for target in targets)
                inside += sum(target // 2 == rank // 2 and target != rank for target in targets)
            if hops == 2:
                nodes = {target // 2 for target in targets}
                across += sender == rank and 1 - rank // 2 in nodes
                forwarder = {node: 2 * node + sender % 2 for node in nodes}
                inside += sum(forwarder[target // 2] == rank and target != rank
                              for target in targets)
    return across, inside


@pytest.mark.parametrize("kind, hops", [("one", 1), ("two", 2)])
def test_bytes_across_and_inside_nodes(kind, hops):
    """Oracle: a loop over tokens and their experts. Float64 rows, then FP8 and bfloat16.

    There: C numbers, K+1 whole numbers, K weights. Back: C numbers. In the backward pass: C and C
    numbers and K weights.
    """
    C, K = CONFIG.hidden_size, CONFIG.num_experts_per_tok
    plain = 8 * C + 8 * (K + 1) + 8 * K + 8 * C + 8 * C + 8 * C + 8 * K
    short = 2 * (C + 4 + 2 * C) + 8 * (K + 1) + 2 * 8 * K              # C codes and one scale
    for fp8_way, row in ((False, plain), (True, short)):
        results = run_ranks(bytes_sent, 4, kind, fp8_way)
        chosen = [result[0] for result in results]
        copies = [copies_by_loop(chosen, rank, hops) for rank in range(4)]
        # Beside the rows, how many are sent: 8 bytes to each process of each link.
        counts = (16, 8) if hops == 1 else (8, 8)
        for place in (0, 1):                     # across nodes, inside nodes
            assert sum(result[1 + place] for result in results) == sum(
                row * each[place] + counts[place] for each in copies)


def test_experts_that_cannot_be_divided():
    """8 experts over 3 processes."""
    with pytest.raises(AssertionError, match="8 routed experts cannot be divided over 3"):
        run_ranks(on_a_rank, 3, 3, "one", UNEVEN["even"], False, False)
