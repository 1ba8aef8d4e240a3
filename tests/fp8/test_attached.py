"""FP8 is attached to modules of any class: what they are stays, and so does what they computed."""

import copy

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig, fp8
from minidsv3.fp8.linear import RECIPES, Layer
from minidsv3.model.experts import Experts
from minidsv3.model.layers import Linear

TINY = ModelConfig.preset("tiny").replace(hidden_size=48, moe_intermediate_size=24, vocab_size=97,
                                          num_hidden_layers=2, intermediate_size=40)


class ElsewhereExperts(Experts):
    """Experts with their own way there and back, as on several machines; both are recorded."""

    calls = ()

    def dispatch(self, x, routing, multiple=1):
        """As Experts, recorded: with the multiple that the rows are padded to."""
        self.calls += (f"dispatch, multiple {multiple}",)
        return super().dispatch(x, routing, multiple)

    def combine(self, rows, slots, weights):
        """As Experts, recorded, and weighed twice as much."""
        self.calls += ("combine",)
        return 2 * super().combine(rows, slots, weights)


class ScaledLinear(Linear):
    """A Linear whose output counts twice."""

    def forward(self, x):
        return 2 * super().forward(x)


def tripled(x, weight):
    """A product of a module's own, three times as large."""
    return 3 * torch.nn.functional.linear(x, weight)


def model_of_subclasses():
    """A model in which some modules are of a subclass, or hold a product of their own."""
    torch.manual_seed(0)
    model = DeepSeekV3(TINY)
    mlp, attention = model.layers[1].mlp, model.layers[1].self_attn
    mlp.experts = like(mlp.experts, ElsewhereExperts(TINY))
    out = attention.o_proj
    attention.o_proj = like(out, ScaledLinear(out.in_features, out.out_features))
    attention.q_b_proj.product = tripled
    return model


def like(module, other):
    """The other module, with the weights of the first."""
    other.load_state_dict(module.state_dict())
    return other


TOKENS = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(1))


def results(model):
    """Total loss and the gradient of every weight that has one."""
    model.zero_grad()
    total = model.loss(TOKENS).total
    total.backward()
    return [total.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def same(ours, theirs):
    """Whether two lists of tensors are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_subclass_keeps_its_class_its_methods_and_its_results(recipe):
    """Oracle: the unconverted model inside suspended(), and itself after it, bit for bit."""
    model = model_of_subclasses()
    plain = results(model)
    classes = [type(module) for module in model.modules()]
    experts, calls = model.layers[1].mlp.experts, ("dispatch, multiple 1", "combine")
    fp8.convert(model, recipe)
    eight = results(model)
    assert not same(eight, plain)
    experts.calls = ()
    with fp8.suspended(model):
        assert same(results(model), plain)
        assert [type(module) for module in model.modules()] == classes and experts.calls == calls
    assert same(results(model), eight)
    assert [type(module) for module in model.modules()] == classes and experts.calls == 2 * calls


def test_the_methods_of_a_subclass_act_on_results_in_eight_bits():
    """Oracle: twice what the same FP8 experts and linear give without the subclass."""
    torch.manual_seed(0)
    usual = Linear(48, 40)
    torch.nn.init.normal_(usual.weight)
    own, x = like(usual, ScaledLinear(48, 40)), torch.randn(5, 48)
    for layer in (usual, own):
        fp8.convert(torch.nn.ModuleDict({"q_b_proj": layer}))
    assert torch.equal(own(x), 2 * usual(x))


def test_what_is_suspended_comes_back_after_an_error():
    """Oracle: results of before."""
    model = fp8.convert(model_of_subclasses())
    eight = results(model)
    with pytest.raises(InterruptedError), fp8.suspended(model):
        raise InterruptedError
    assert same(results(model), eight)


def test_suspending_twice_or_what_was_never_converted_changes_nothing():
    """Oracle: the plain results inside, the results of before outside."""
    model = model_of_subclasses()
    plain = results(model)
    with fp8.suspended(model):
        assert same(results(model), plain)
    eight = results(fp8.convert(model))
    with fp8.suspended(model):
        with fp8.suspended(model):
            assert same(results(model), plain)
        assert same(results(model), plain)
    assert same(results(model), eight)


def test_converting_again_changes_the_recipe_and_keeps_what_was_before():
    """Oracle: a model that was converted once; the unconverted one inside suspended()."""
    model = model_of_subclasses()
    plain = results(model)
    once = results(fp8.convert(model_of_subclasses(), "per-tensor"))
    fp8.convert(fp8.convert(model), "per-tensor")
    assert same(results(model), once)
    with fp8.suspended(model):
        assert same(results(model), plain)


def test_a_copy_is_independent():
    """Oracle: results of the original while its copy is suspended, converted anew or changed."""
    model = fp8.convert(model_of_subclasses())
    eight, twin = results(model), copy.deepcopy(model)
    assert same(results(twin), eight)
    with fp8.suspended(twin):
        assert same(results(model), eight) and not same(results(twin), eight)
    fp8.convert(twin, "per-tensor")
    with torch.no_grad():
        twin.layers[1].mlp.experts.down_proj.zero_()
    assert same(results(model), eight) and not same(results(twin), eight)


def test_a_model_that_moves_stays_converted():
    """Oracle: the layers held before; a device that holds no numbers, and another dtype."""
    model = fp8.convert(DeepSeekV3(TINY))
    held = [module.product for module in model.modules() if isinstance(module, Linear)]
    assert sum(isinstance(product, Layer) for product in held) == 24
    for moved in (model.double(), model.to("meta")):
        assert [m.product for m in moved.modules() if isinstance(m, Linear)] == held


@pytest.mark.parametrize("count", [1, 3, 300])
def test_experts_in_eight_bits_never_take_a_short_cut_or_pad(count, monkeypatch):
    """Oracle: the methods that are called; bfloat16, where plain experts do both."""
    model = fp8.convert(model_of_subclasses())
    mlp = model.layers[1].mlp
    monkeypatch.setattr("minidsv3.model.experts.one_by_one", None)
    x = torch.randn(1, count, 48).bfloat16()
    mlp(x)
    assert mlp.experts.calls == ("dispatch, multiple 1", "combine")
    with fp8.suspended(model):
        mlp(x)                                   # a subclass takes no short cut in any precision
        multiple = 64 if count > 256 else 1
        assert mlp.experts.calls[2:] == (f"dispatch, multiple {multiple}", "combine")
        mlp.experts = like(mlp.experts, Experts(TINY))
        if count <= 3:
            with pytest.raises(TypeError, match="not callable"):
                mlp(x)


class TwiceExperts(Experts):
    """Experts that compute something else, and are dispatched and combined as usual."""

    def feed_forward(self, rows, runs):
        """Twice as much."""
        return 2 * super().feed_forward(rows, runs)


def test_a_subclass_may_override_one_method_alone():
    """Oracle: twice the usual result, for one token as for many."""
    torch.manual_seed(0)
    mlp = DeepSeekV3(TINY).double().layers[1].mlp
    mlp.shared_experts = None
    for count in (1, 3, 20):
        x = torch.randn(1, count, 48, dtype=torch.float64)
        usual, other = mlp.experts, like(mlp.experts, TwiceExperts(TINY)).double()
        expected = mlp(x)[0]
        mlp.experts = other
        torch.testing.assert_close(mlp(x)[0], 2 * expected, rtol=1e-12, atol=0)
        mlp.experts = usual
