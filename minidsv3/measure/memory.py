"""The memory that training really keeps, counted from tensors; `cost` estimates it by formulas."""

import torch

from .. import fp8
from ..device import local


def bytes_kept(model, function):
    """Bytes of all storages that autograd keeps while function() runs, without the parameters.

    Copies of weights that the step itself makes, to cast or to join them, are counted.
    """
    weights = {local(p).untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = local(tensor).untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage          # while held, no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(storage.nbytes() for storage in kept.values())


def saved_by_eight_bits(model, tokens, optimizers):
    """Bytes that a training step keeps in FP8 and in wider formats -> {name: bytes}.

    The step is that of tokens (B, T+1) and of a model made by fp8.convert. `kept` is what it saves
    for the backward pass; E5M6 is stored in 16 bits here, not in 12. `kept_in_bf16` is the same for
    the model before conversion, with bfloat16 activations. `moments` is the state of the
    optimisers, `moments_in_fp32` the same state in float32.
    """
    def step():
        model.loss(tokens)

    was = model.training, model.activation_dtype, model.recompute
    model.eval()                                        # does not count loads
    model.recompute = False                             # recomputed blocks keep only their input
    try:
        sizes = {"kept": bytes_kept(model, step)}
        with fp8.suspended(model):
            model.activation_dtype = torch.bfloat16
            sizes["kept_in_bf16"] = bytes_kept(model, step)
    finally:
        training, model.activation_dtype, model.recompute = was
        model.train(training)
    states = [tensor for optimizer in optimizers for state in optimizer.state.values()
              for tensor in state.values() if torch.is_tensor(tensor)]
    states = [local(tensor) for tensor in states]
    sizes["moments"] = sum(tensor.nbytes for tensor in states)
    sizes["moments_in_fp32"] = sum(4 * tensor.numel() for tensor in states)
    return sizes
