"""A backward pass in two halves: together they are the whole, and neither does the other's work.

The oracle of all gradients is a plain `torch.autograd.grad` in float64.
"""

import gc
import weakref

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.scale.split_backward import backward_input, backward_weights
from minidsv3.scale.stage import Stage


class Product(torch.autograd.Function):
    """x @ w, as a node that is written in Python."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        return gradient @ w.T, x.T @ gradient


class Pair(torch.autograd.Function):
    """(x * w, x + w), two outputs of one node that is written in Python."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w, x + w

    @staticmethod
    def backward(ctx, product, total):
        x, w = ctx.saved_tensors
        return product * w + total, product * x + total


def make(seed=0, count=1):
    """Random leaves of shape (4, 4), in float64."""
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 4, generator=random, dtype=torch.float64, requires_grad=True)
            for _ in range(count)]


def chain(x, a, b, c):
    """Three linear layers."""
    return [((x @ a).tanh() @ b).tanh() @ c], [a, b, c]


def used_twice(x, a, b, c):
    """`a` at two places, one below the other, with `b` between them."""
    return [((x @ a).tanh() @ b).tanh() @ a], [a, b]


def view_used_twice(x, a, b, c):
    """The joins of `a` share even the node that leads from them to it."""
    turned = (a * c).T
    return [((x @ turned).tanh() @ b).tanh() @ turned], [a, b, c]


def two_roots(x, a, b, c):
    """The second root depends on the first one."""
    first = x @ a
    return [first, (first.tanh() @ b).sum()], [a, b]


def root_off_the_path(x, a, b, c):
    """`a` has a root of its own, which does not lead to x."""
    return [x @ a @ b, a.square().sum()], [a, b]


def leaf_as_root(x, a, b, c):
    """One root is x itself, another one is a weight."""
    return [x, b, x @ a], [a, b]


def branch_off_the_path(x, a, b, c):
    """`a` and `b` meet before they meet the path."""
    return [x.tanh() * (a @ b) + c], [a, b, c]


def python_join(x, a, b, c):
    """A Python node with a C++ node above it; `a` again below."""
    return [(Product.apply((x @ a).tanh(), a) @ b).tanh() @ c], [a, b, c]


def python_root(x, a, b, c):
    """A Python node that is a root, with other Python nodes directly below."""
    return [Product.apply(Product.apply(Product.apply(x @ a, b), c), a)], [a, b, c]


def python_root_and_more(x, a, b, c):
    """A Python node that is a root and has two consumers too."""
    root = Product.apply(x, a)
    return [root, root.tanh() @ b, Product.apply(root, a)], [a, b]


def python_pair(x, a, b, c):
    """Two outputs of one Python node; of a second one only one is used."""
    first, second = Pair.apply(x @ c, a)
    return [Pair.apply(first.sin() + second @ b, a)[1]], [a, b, c]


def python_off_the_path(x, a, b, c):
    """A Python node between a weight and its join."""
    return [x @ Product.apply(a, b) @ c], [a, b, c]


GRAPHS = [chain, used_twice, view_used_twice, two_roots, root_off_the_path, leaf_as_root,
          branch_off_the_path, python_join, python_root, python_root_and_more, python_pair,
          python_off_the_path]


def random_like(roots):
    random = torch.Generator().manual_seed(9)
    return [torch.randn(root.shape, generator=random, dtype=root.dtype) for root in roots]


def compare(roots, x, weights):
    """Split the backward pass of roots; its gradients must be those of a plain one, to 1e-12.

    The roots are gone before W, as in a pipeline: torch 2.11 loses some nodes with them.
    """
    gradients = random_like(roots)
    expected = torch.autograd.grad(roots, [x, *weights], gradients, retain_graph=True,
                                   allow_unused=True)
    groups = backward_input(roots, gradients, x, weights)
    roots.clear()
    torch.testing.assert_close(x.grad, expected[0], rtol=0, atol=1e-12)
    assert all(weight.grad is None for weight in weights)
    before = x.grad.clone()
    backward_weights(groups)
    assert torch.equal(x.grad, before)
    for weight, gradient in zip(weights, expected[1:], strict=True):
        if gradient is None:
            assert weight.grad is None
        else:
            torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("graph", GRAPHS)
def test_both_halves_give_the_gradients_of_the_whole(graph):
    """Oracle: `torch.autograd.grad`; I gives no weight a gradient, W leaves that of x alone."""
    x, *leaves = make(count=4)
    roots, weights = graph(x, *leaves)
    compare(roots, x, weights)


def test_a_weight_that_is_not_in_the_graph_is_left_alone():
    """Oracle: no gradient, neither for a weight that is not used nor for one that is frozen."""
    x, a, unused, frozen = make(count=4)
    frozen.requires_grad_(False)
    roots, _ = chain(x, a, frozen, a)
    backward_weights(backward_input(roots, random_like(roots), x, [a, unused, frozen]))
    assert a.grad is not None and unused.grad is None and frozen.grad is None


def test_w_adds_to_gradients_that_are_there():
    """Oracle: one gradient, then twice that; equal gradients do not share their memory."""
    x, a, b = make(count=3)
    for times in (1, 2):
        roots = [x + (a + b)]
        x.grad = None
        backward_weights(backward_input(roots, random_like(roots), x, [a, b]))
        for weight in (a, b):
            torch.testing.assert_close(weight.grad, times * x.grad, rtol=0, atol=1e-12)
        assert len({leaf.grad.data_ptr() for leaf in (x, a, b)}) == 3


def make_model(tied):
    """A random model in float64 with dense and sparse blocks and two MTP modules."""
    torch.manual_seed(3)
    return DeepSeekV3(ModelConfig(
        vocab_size=31, hidden_size=12, num_hidden_layers=3, intermediate_size=16,
        max_position_embeddings=32, tie_word_embeddings=tied, num_attention_heads=2,
        q_lora_rank=8, kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=4,
        n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=2, topk_group=1,
        moe_intermediate_size=6, first_k_dense_replace=1, num_nextn_predict_layers=2,
        rope_scaling=None, initializer_range=0.2)).double()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("index, count", [(0, 1), (0, 3), (1, 3), (2, 3)])
def test_stages_of_a_model(index, count, tied):
    """Oracle: `torch.autograd.grad`. The last stages have MTP modules and their embedding."""
    model = make_model(tied)
    stage = Stage(model, index, count)
    tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(4))
    x = stage.embed(tokens).detach().requires_grad_()      # (B, T, C)
    out, terms = stage(x, tokens, 0.3, 0.01)
    roots = [root for root in ([terms.total] if stage.last else [terms.total, out])
             if root.requires_grad]
    del out, terms
    compare(roots, x, [*stage.parameters()])


def flops(call):
    """FLOPs of all matrix products in call(), and its result."""
    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


@pytest.mark.parametrize("graph, repeated", [(chain, 0), (branch_off_the_path, 0),
                                             (used_twice, 2), (view_used_twice, 2)])
def test_no_product_is_computed_twice(graph, repeated):
    """Oracle: the products of a whole backward pass; I has those of activations, W the others.

    Only what lies between two uses of one weight is repeated: here the two products by a and b.
    """
    x, *leaves = make(count=4)
    roots, weights = graph(x, *leaves)
    gradients, one = random_like(roots), flops(lambda: x @ x)[0]
    whole, _ = flops(lambda: torch.autograd.grad(roots, [x, *weights], gradients,
                                                 retain_graph=True))
    path, _ = flops(lambda: torch.autograd.grad(roots, [x], gradients, retain_graph=True))
    first, groups = flops(lambda: backward_input(roots, gradients, x, weights))
    second, _ = flops(lambda: backward_weights(groups))
    assert one == 2 * 4 ** 3 and whole > path
    assert first == path
    assert second == whole - path + repeated * one


class Box:
    """What autograd keeps instead of a tensor."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_the_graph_lives_until_w_has_run():
    """Oracle: weak references, to what the nodes keep and to the gradients that arrive at joins.

    With torch 2.11, the nodes of a `torch.autograd.Function` need the roots to stay alive.
    """
    x, a, b = make(count=3)
    boxes = []

    def pack(tensor):
        box = Box(tensor.detach())
        boxes.append(weakref.ref(box))
        return box

    def alive(references):
        return [reference() is not None for reference in references]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        roots = [((x @ a).tanh() @ b).exp()]
    gc.disable()                                 # no reference may wait for a garbage collection
    try:
        groups = backward_input(roots, random_like(roots), x, [a, b])
        roots.clear()
        kept = [weakref.ref(gradient) for group in groups for arriving in group.kept.values()
                for gradient in arriving]
        assert alive(kept) == [True] * 2
        assert alive(boxes) == [True] * 6        # two of each product, one of each function
        backward_weights(groups)
        assert not any(alive(kept + boxes))
    finally:
        gc.enable()
