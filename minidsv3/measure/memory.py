"""What training really keeps, counted from its tensors; `cost` estimates the same by arithmetic."""

import torch

from .. import fp8


def bytes_kept(model, function):
    """Memory of all storages that autograd keeps while function() runs, the parameters' apart.

    Copies of weights that the step itself makes, to cast or to join them, are counted.
    """
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage          # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(storage.nbytes() for storage in kept.values())


def saved_by_eight_bits(model, tokens, optimizers):
    """Bytes that a step of tokens (B, T+1) keeps in FP8, and what wider numbers would take.

    kept: for the backward pass, by a model that fp8.convert made; E5M6 lies in 16 bits here, not
    12. moments: the state of the optimisers. Compared are the same model in its own precision, in
    bfloat16, and AdamW's two moments in float32.
    """
    def step():
        model.loss(tokens)

    was = model.training, model.activation_dtype, model.recompute
    model.eval()                                        # in which loads are not counted
    model.recompute = False                             # or blocks would hide what they keep
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
    sizes["moments"] = sum(tensor.nbytes for tensor in states)
    sizes["moments_in_fp32"] = sum(4 * tensor.numel() for tensor in states)
    return sizes
