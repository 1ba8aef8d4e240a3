"""AdamW as in the report, and Muon, which later models of this architecture are trained with.

Muon makes each update of a matrix orthogonal: all its directions learn equally fast, while with
Adam a few directions dominate. Stacked experts are many matrices in one tensor. All matrices of
one shape, from all layers, are orthogonalised in one batched product.
"""

from collections import defaultdict

import torch

from ..device import has_fused_adamw, local
from ..kernels.orthogonal import orthogonalize


def make_optimizers(model, config):
    """The run's optimisers; each group's "peak" is its highest learning rate."""
    matrices, stacks, stacked_pairs, embeddings, gains = [], [], [], [], []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            gains.append(parameter)
        elif name.startswith(("embed_tokens", "lm_head")):
            embeddings.append(parameter)
        elif parameter.dim() == 2:
            matrices.append(parameter)
        else:
            (stacked_pairs if name.endswith("gate_up_proj") else stacks).append(parameter)
    optimizers, decayed, experts = [], embeddings, []
    if config.optimizer == "muon":
        groups = [{"params": matrices},
                  {"params": stacks, "every": config.expert_every},
                  {"params": stacked_pairs, "every": config.expert_every, "halves": 2}]
        groups = [group for group in groups if group["params"]]
        optimizers.append(Muon(groups, config.muon_learning_rate, weight_decay=config.weight_decay))
    else:
        decayed, experts = embeddings + matrices, stacks + stacked_pairs
    # Experts in a group of their own: on several processes they are shards of another mesh.
    groups = [{"params": decayed, "weight_decay": config.weight_decay},
              {"params": gains, "weight_decay": 0.0},
              {"params": experts, "weight_decay": config.weight_decay}]
    groups = [group for group in groups if group["params"]]
    betas, device = (config.beta1, config.beta2), decayed[0].device
    optimizers.append(ShortAdamW(groups, config.learning_rate, betas) if config.precision == "fp8"
                      else torch.optim.AdamW(groups, config.learning_rate, betas,
                                             fused=has_fused_adamw(device)))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


class ShortAdamW(torch.optim.Optimizer):
    """AdamW that keeps its two moments in bfloat16, half the bytes (report, section 3.3.3).

    An update is computed in float32, as weights and gradients are.
    """

    def __init__(self, params, lr, betas, eps=1e-8, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps,
                                  "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group)

    def update(self, parameter, group):
        """The first and second moment, and the bias-corrected Adam step."""
        (beta1, beta2), gradient, state = group["betas"], parameter.grad, self.state[parameter]
        step = state.get("step", 0) + 1
        first = state.get("first", torch.zeros_like(gradient)).float().lerp(gradient, 1 - beta1)
        second = state.get("second", torch.zeros_like(gradient)).float().lerp(
            gradient.square(), 1 - beta2)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        size = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(first, size, value=-group["lr"] / (1 - beta1**step))
        state.update(step=step, first=first.bfloat16(), second=second.bfloat16())


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; parameters (R, C), or (E, R, C) for E stacked matrices.

    A group's `halves` is the number of matrices stacked along R: 2 for gate_up_proj. Where its rate
    is 0, only the momentum changes, and nothing is orthogonalised. Its `every` is for `step.py`.
    On single matrices this is torch.optim.Muon, but for a closer form (`kernels/orthogonal.py`).
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay,
                                  "halves": 1, "every": 1})
        self.directions = directions             # scale/muon.py replaces it, for shards

    @torch.no_grad()
    def step(self):
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape[-2:]].append(parameter)
            for parameters in by_shape.values():
                self.step_same_shape(parameters, group)

    def step_same_shape(self, parameters, group):
        """Update parameters whose matrices share one shape, in one batch."""
        gradients = [local(parameter.grad) for parameter in parameters]
        buffers = [local(self.buffer_of(parameter)) for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        if not group["lr"]:
            return
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
        rows, columns = parameters[0].size(-2) // group["halves"], parameters[0].size(-1)
        directions = self.directions(updates, rows, columns, parameters)
        scale = max(1, rows / columns) ** 0.5    # tall matrices need larger steps
        parameters = [local(parameter) for parameter in parameters]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.add_(direction, alpha=-group["lr"] * scale)

    def buffer_of(self, parameter):
        """The parameter's running mean of gradients, zeros at first."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def directions(updates, rows, columns, parameters):
    """Orthogonal forms of updates that consist of matrices (rows, columns), in one batch.

    parameters: what they update, for shards of which the update is a shard too (`scale/muon.py`).
    """
    matrices = torch.cat([update.reshape(-1, rows, columns) for update in updates])
    parts = orthogonalize(matrices).split([u.numel() // (rows * columns) for u in updates])
    return [part.reshape(update.shape) for part, update in zip(parts, updates, strict=True)]
