"""Released tensor names and ours: names and layouts are translated here and nowhere else.

    released                                    here
    model.layers.3.mlp.experts.7.gate_proj ...  layers.3.mlp.experts.gate_up_proj[7], stacked
    model.layers.{L+k}.eh_proj ...              mtp.k.eh_proj: MTP modules follow the L blocks
    model.layers.{L+k}.embed_tokens, shared_head.head   no copies: embedding and head are shared
    lm_head, tied to the embedding              no copy either, but other programs look for it

A checkpoint may also hold the experts stacked, as transformers does in memory.
"""

import re

from ..command import UserError
from ..device import whole
from ..fp8 import BLOCK

SCALE = "_scale_inv"                             # FP8 weight W comes with W_scale_inv
FLOATS = ("F64", "F32", "F16", "BF16")           # safetensors' names of dtypes without a scale
FP8 = "F8_E4M3"


def is_fp8(name):
    """Whether the released FP8 checkpoint has this tensor in FP8: matrices of attention and FFN.

    Embedding, head, router, norms and eh_proj stay in bfloat16 (report, section 3.3.1).
    """
    return re.search(r"\.(self_attn|mlp)\..*_proj(_with_mqa)?\.weight$", name) is not None


def released_tensors(model):
    """Every weight and bias of a model under its released name, MTP copies included, as a dict."""
    return dict(each_released(model))


def each_released(model):
    """The same as pairs, one after the other; shards of several processes are gathered.

    All processes must read all pairs, and one of them keeps what it wants.
    """
    config, copies = model.config, {}
    for name, tensor in model.state_dict().items():
        tensor = whole(tensor)
        if name in ("embed_tokens.weight", "lm_head.weight"):
            copies[name] = tensor
        if name == "lm_head.weight" and config.tie_word_embeddings:
            tensor = tensor.clone()              # safetensors refuses two names of one memory
        yield from to_released(name, tensor, config.num_hidden_layers).items()
    for k in range(len(model.mtp)):
        prefix = f"model.layers.{config.num_hidden_layers + k}."
        yield prefix + "embed_tokens.weight", copies["embed_tokens.weight"].clone()
        yield prefix + "shared_head.head.weight", copies["lm_head.weight"].clone()


def released_name(name, num_layers):
    """Our name -> the released one; for experts, the name of their stack."""
    parts = name.split(".")
    if parts[0] == "mtp":
        parts = ["layers", str(num_layers + int(parts[1])), *parts[2:]]
    return ".".join(parts if parts[0] == "lm_head" else ["model", *parts])


def to_released(name, tensor, num_layers):
    """One tensor of ours -> {released name: the view of it that has this name}."""
    name = released_name(name, num_layers)
    return unstack(name, tensor) if name.endswith(("gate_up_proj", "down_proj")) else {name: tensor}


def unstack(name, tensor):
    """Stacked experts (E, ...) -> {released name: view of one expert}; name is the stack's."""
    stem, kind = name.rsplit(".", 1)
    if kind == "down_proj":
        return {f"{stem}.{e}.down_proj.weight": tensor[e] for e in range(len(tensor))}
    gates, ups = tensor.chunk(2, dim=1)                                # (E, F, C) each
    return {f"{stem}.{e}.{half}_proj.weight": stack[e]
            for half, stack in (("gate", gates), ("up", ups)) for e in range(len(stack))}


def places(model, names):
    """Where each released tensor belongs in a model: {name: view}.

    Experts are stacked if `names` has their stack. On a meta model this takes no memory and gives
    the shapes that a checkpoint must have.
    """
    L, found = model.config.num_hidden_layers, {}
    for name, tensor in model.state_dict().items():
        stack = released_name(name, L)
        found.update({stack: tensor} if stack in names else to_released(name, tensor, L))
    if model.config.tie_word_embeddings:
        found.pop("lm_head.weight", None)        # it is the embedding
    return found


def copies(config):
    """{released name of a copy: name of the tensor that it repeats}; both are one tensor here."""
    embedding = "model.embed_tokens.weight"
    head = embedding if config.tie_word_embeddings else "lm_head.weight"
    found = {"lm_head.weight": embedding} if config.tie_word_embeddings else {}
    for k in range(config.num_nextn_predict_layers):
        prefix = f"model.layers.{config.num_hidden_layers + k}."
        found |= {prefix + "embed_tokens.weight": embedding,
                  prefix + "shared_head.head.weight": head}
    return found


def check_number(names, config):
    """Raise UserError if a checkpoint has far fewer names than the config's model.

    Config.json may ask for millions of experts. This is noticed before all their names are made.
    """
    stacks = sum(name.endswith(".experts.down_proj") for name in names)
    needed = (7 * config.num_hidden_layers       # of attention and norms, without a query latent
              + 3 * config.n_routed_experts * max(0, config.num_moe_layers - stacks))
    if needed > 2 * len(names):                  # fewer are named one by one
        raise UserError(f"the checkpoint has {len(names):,} tensors, but config.json asks for more "
                        f"than {needed:,} (num_hidden_layers={config.num_hidden_layers}, "
                        f"n_routed_experts={config.n_routed_experts}); they belong to different "
                        "models.")


def problems(wanted, shapes, dtypes, config):
    """Why the tensors of a checkpoint do not fill a model: one line each, none if they do.

    wanted: {name: view} from `places`; shapes and dtypes: of the checkpoint, scales included.
    """
    wanted = wanted | {copy: wanted[name] for copy, name in copies(config).items()
                       if copy in shapes}
    for name, view in wanted.items():
        shape, needed = shapes.get(name), tuple(view.shape)
        if shape is None:
            yield (f"the checkpoint lacks tensor {name} {needed}{asked_by(name, config)}; it is "
                   "incomplete, or config.json belongs to another model.")
        elif shape != needed:
            yield (f"tensor {name} has shape {shape}, but config.json asks for {needed}; they "
                   "belong to different models.")
        elif dtypes[name] == FP8:
            yield from scale_problems(name, shapes, dtypes)
        elif dtypes[name] not in FLOATS:
            yield (f"tensor {name} is {dtypes[name]}; only floating point and {FP8} with scales "
                   "are read.")
    for name in shapes:
        owner = name.removesuffix(SCALE)
        if owner != name and dtypes.get(owner) == FP8 and owner in wanted:
            continue
        if name not in wanted and not name.endswith("rotary_emb.inv_freq"):    # computed here
            yield (f"the checkpoint has tensor {name}, for which config.json has no place"
                   f"{asked_by(name, config)}; they belong to different models.")


def asked_by(name, config):
    """The keys of config.json that decide whether this tensor exists, as text; may be empty."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if layer and int(layer.group(1)) >= config.num_hidden_layers:
        return (f" (num_hidden_layers={config.num_hidden_layers}, num_nextn_predict_layers="
                f"{config.num_nextn_predict_layers})")
    if name == "lm_head.weight":
        return f" (tie_word_embeddings={config.tie_word_embeddings})"
    return ""


def scale_problems(name, shapes, dtypes):
    """What is wrong with the scales of an FP8 matrix."""
    shape = shapes[name]
    if len(shape) != 2:
        yield f"tensor {name} is {FP8} of shape {shape}; only matrices are read in FP8."
        return
    needed = tuple(-(-size // step) for size, step in zip(shape, BLOCK, strict=True))
    if shapes.get(name + SCALE) != needed:
        yield (f"tensor {name} is {FP8} and needs {name + SCALE} of shape {needed}; found "
               f"{shapes.get(name + SCALE, 'none')}.")
    elif dtypes[name + SCALE] not in FLOATS:
        yield f"tensor {name + SCALE} is {dtypes[name + SCALE]}; scales are floating point."
