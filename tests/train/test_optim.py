"""Muon against torch.optim.Muon, AdamW against its formula, and which weights decay."""

import pytest
import torch

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.train import optim
from minidsv3.train.optim import Muon, ShortAdamW, make_optimizers
from minidsv3.train.recipe import TrainConfig

# Newton-Schulz runs in bfloat16 (8 bits), and torch's code rounds in another order than ours. The
# entries of an orthogonal direction of these sizes are about 0.1 to 0.3.
TOLERANCE = 0.02


def config(**changes):
    return ModelConfig.preset("tiny").replace(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, intermediate_size=48,
        moe_intermediate_size=16, **changes)


def update(optimizer_of, weight, gradients):
    """The total change of a weight after some steps with given gradients."""
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = optimizer_of([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach() - weight


def quintic(matrices):
    """The orthogonal form with which Muon began, and which torch has: five times one quintic."""
    X = matrices.bfloat16()
    X = X / X.norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        gram = X @ X.mT
        X = 3.4445 * X + (-4.7750 * gram + 2.0315 * gram @ gram) @ X
    return X


@pytest.mark.parametrize("rows, columns", [(24, 7), (7, 24), (12, 12)])
def test_muon_is_torchs_on_single_matrices(rows, columns, monkeypatch):
    """Oracle: torch.optim.Muon, with learning rate 1 so that directions are compared.

    Both with the same orthogonal form; ours is compared with the SVD in tests/kernels.
    """
    monkeypatch.setattr(optim, "orthogonalize", quintic)
    generator = torch.Generator().manual_seed(rows)
    weight, *gradients = torch.randn(6, rows, columns, generator=generator)
    ours = update(lambda p: Muon(p, lr=1.0, weight_decay=0.1), weight, gradients)
    theirs = update(lambda p: torch.optim.Muon(p, lr=1.0, weight_decay=0.1), weight, gradients)
    assert theirs.abs().max() > 0.5
    scale = max(1, rows / columns) ** 0.5
    assert (ours - theirs).abs().max() < TOLERANCE * len(gradients) * scale


def test_a_stack_is_its_members_one_by_one():
    """Oracle: the same optimiser on each matrix alone."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 10, 6, generator=generator)
    gradients = torch.randn(4, 3, 10, 6, generator=generator)
    together = update(lambda p: Muon(p, lr=1.0), weight, gradients)
    alone = torch.stack([update(lambda p: Muon(p, lr=1.0), weight[i], gradients[:, i])
                         for i in range(3)])
    assert (together - alone).abs().max() < TOLERANCE * 4 * (10 / 6) ** 0.5


def test_at_a_rate_of_0_muon_gathers_momentum_alone():
    """Oracle: the momentum of both gradients by hand, and one step in its direction."""
    generator = torch.Generator().manual_seed(3)
    # float64, since Muon computes in bfloat16 where that is fast
    weight, first, second = torch.randn(3, 8, 5, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = Muon([parameter], lr=0.0, weight_decay=0.1)
    parameter.grad = first
    optimizer.step()
    assert torch.equal(parameter, weight)                  # no decay either
    optimizer.param_groups[0]["lr"], parameter.grad = 0.5, second
    optimizer.step()
    momentum = 0.95 * (0.05 * first) + 0.05 * second
    direction = optim.orthogonalize((0.05 * second + 0.95 * momentum)[None])[0]
    expected = 0.95 * weight - 0.5 * (8 / 5) ** 0.5 * direction
    torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-5)


def test_gate_and_up_are_two_matrices():
    """Oracle: each half of gate_up_proj as its own parameter. As one matrix it would differ."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(3, 16, 6, generator=generator)
    gradients = torch.randn(4, 3, 16, 6, generator=generator)
    gradients[..., :8, :] *= 20                            # so that a shared norm would show

    def halves(parameters):
        return Muon([{"params": parameters, "halves": 2}], lr=1.0)

    joined = update(halves, weight, gradients)
    apart = torch.cat([update(lambda p: Muon(p, lr=1.0), half, gradient) for half, gradient in
                       zip(weight.split(8, 1), gradients.split(8, 2))], dim=1)
    whole = update(lambda p: Muon(p, lr=1.0), weight, gradients)
    assert (joined - apart).abs().max() < TOLERANCE * 4 * (8 / 6) ** 0.5
    assert (joined - whole).abs().max() > 10 * TOLERANCE * 4


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_exactly_one_optimiser(optimizer, tied):
    """Oracle: the model's own list of parameters."""
    model = DeepSeekV3(config(tie_word_embeddings=tied))
    groups = [group for each in make_optimizers(model, TrainConfig(optimizer=optimizer))
              for group in each.param_groups]
    held = sorted(id(parameter) for group in groups for parameter in group["params"])
    assert held == sorted(id(parameter) for parameter in model.parameters())
    assert all(group["peak"] == group["lr"] > 0 for group in groups)
    if optimizer == "muon":                      # a stack of gate and up is two matrices
        name_of = {parameter: name for name, parameter in model.named_parameters()}
        joint = {name_of[parameter] for group in groups if group.get("halves") == 2
                 for parameter in group["params"]}
        assert joint and joint == {name for name in name_of.values() if "gate_up_proj" in name}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_matrices_decay_and_gains_do_not(optimizer):
    """Oracle: with zero gradients only decay is left, a factor of 1 - lr * weight_decay."""
    model = DeepSeekV3(config())
    recipe = TrainConfig(optimizer=optimizer, learning_rate=0.5, muon_learning_rate=0.25,
                         weight_decay=0.2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for each in make_optimizers(model, recipe):
        for group in each.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        each.step()
    for name, parameter in model.named_parameters():
        by_muon = optimizer == "muon" and not name.startswith(("embed_tokens", "lm_head"))
        factor = 1.0 if parameter.dim() < 2 else 1 - 0.2 * (0.25 if by_muon else 0.5)
        torch.testing.assert_close(parameter.detach(), factor * before[name], msg=name)


def test_adamw_is_written_out():
    """Oracle: two steps of the textbook formula in float64 for one matrix."""
    model = DeepSeekV3(config())
    recipe = TrainConfig(optimizer="adamw", learning_rate=0.01, beta1=0.9, beta2=0.95,
                         weight_decay=0.1)
    (optimizer,) = make_optimizers(model, recipe)
    weight = model.layers[0].mlp.down_proj.weight
    expected = weight.detach().double().clone()
    first = second = torch.zeros_like(expected)
    for step in (1, 2):
        gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.95 * second + 0.05 * gradient.double() ** 2
        expected *= 1 - 0.01 * 0.1
        expected -= 0.01 * (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
    assert (weight.detach() - expected).abs().max() < 1e-6


def short_adamw_by_hand(weight, gradients, lr, betas, eps, decay):
    """AdamW one number at a time; both moments are rounded to bfloat16 after every step."""
    def short(x):
        return torch.tensor(x).bfloat16().item()

    first = second = 0.0
    for step, gradient in enumerate(gradients, start=1):
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        weight *= 1 - lr * decay
        weight -= lr * (first / (1 - betas[0]**step)) / (
            (second / (1 - betas[1]**step)) ** 0.5 + eps)
        first, second = short(first), short(second)
    return weight


def test_short_moments_are_those_worked_out_number_by_number():
    """Oracle: the loop above in Python floats; 1e-6 allows for float32."""
    generator = torch.Generator().manual_seed(4)
    weight, *gradients = torch.randn(9, 3, 4, generator=generator)
    options = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    got = weight + update(lambda p: ShortAdamW(p, weight_decay=0.1, **options), weight, gradients)
    for place in range(weight.numel()):
        expected = short_adamw_by_hand(weight.flatten()[place].item(),
                                       [g.flatten()[place].item() for g in gradients],
                                       decay=0.1, **options)
        assert got.flatten()[place].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_short_moments_take_half_the_bytes_and_hardly_another_step():
    """Oracle: torch.optim.AdamW: twice the bytes, and equal updates within bfloat16's 8 bits."""
    generator = torch.Generator().manual_seed(5)
    weight, *gradients = torch.randn(6, 20, 10, generator=generator)
    parameter = torch.nn.Parameter(weight.clone())
    ours = ShortAdamW([parameter], 0.01, (0.9, 0.95), weight_decay=0.1)
    parameter.grad = gradients[0]
    ours.step()
    state = ours.state[parameter]
    assert state["first"].nbytes == state["second"].nbytes == weight.nbytes // 2
    got = update(lambda p: ShortAdamW(p, 0.01, (0.9, 0.95), weight_decay=0.1), weight, gradients)
    theirs = update(lambda p: torch.optim.AdamW(p, 0.01, (0.9, 0.95), weight_decay=0.1), weight,
                    gradients)
    assert (got - theirs).abs().max() < 0.02 * theirs.abs().max()


def test_eight_bits_bring_short_moments():
    """Oracle: the class of the optimiser for each precision of the recipe."""
    model = DeepSeekV3(config())
    kinds = {precision: type(make_optimizers(model, TrainConfig(precision=precision))[0])
             for precision in ("fp8", "bf16")}
    assert kinds == {"fp8": ShortAdamW, "bf16": torch.optim.AdamW}
