"""The cost of attention, of training memory and of a whole run.

`accounting` counts parameters and FLOPs. The hours and dollars of a run follow from the report's
table 1. The MFU (model FLOPs utilisation) of a run is

    FLOPs per token * tokens per second and GPU / peak FLOPs per second

so it depends on which FLOPs are counted; `accounting.training_flops` lists the conventions.
"""

import math
from typing import NamedTuple

H800_PEAK = 989.4e12                   # dense bfloat16 [FLOP/s]; twice that in FP8


def break_even_queries(config, context=math.inf):
    """The number T of new tokens above which expanding is cheaper than absorbing; None: never.

    S = context tokens are cached. At T, both forms need the same number of multiply-adds in a
    layer, without the projections that both have:
    expansion * S + expanded_width * T * S = expansion * T + absorbed_width * T * S.
    """
    slope = expansion(config) / context + absorbed_width(config) - expanded_width(config)
    return expansion(config) / slope if slope > 0 else None


def expanded_width(config):
    """Multiply-adds of one query with one cached token, all heads, keys and values expanded."""
    return config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)


def absorbed_width(config):
    """The same on the latents: heads * (Rkv + Dr for the score, Rkv for the value)."""
    return config.num_attention_heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim)


def expansion(config):
    """Multiply-adds of kv_b_proj for one token: from its latent to keys and values."""
    return (config.kv_lora_rank * config.num_attention_heads
            * (config.qk_nope_head_dim + config.v_head_dim))


def cache_bytes(config, width=2):
    """Cache per token in all layers [bytes]; width is the bytes of one number (2: bfloat16).

    mla is the latent; expanded is the keys (D) and values (Dv) computed from it. mha, gqa_8 and mqa
    are plain attention with the same number of query heads and with H, 8 (at most H) or 1 heads of
    keys and values. Their keys and values have width Dv, so that o_proj has the same input. MTP is
    counted only in mla_with_mtp.
    """
    layer = width * (config.kv_lora_rank + config.qk_rope_head_dim)
    L, H = config.num_hidden_layers, config.num_attention_heads
    head = width * L * 2 * config.v_head_dim
    return {
        "mla": L * layer,
        "mla_with_mtp": (L + config.num_nextn_predict_layers) * layer,
        "expanded": L * width * expanded_width(config),
        "mha": H * head,
        "gqa_8": min(8, H) * head,
        "mqa": head,
    }


def training_memory(config, parameters, batch, window, moment_width=2, recompute=False,
                    data_ranks=1, expert_ranks=1, stages=1):
    """Memory of one GPU in training [bytes], by part; parameters counts the whole model with MTP.

    Weights are bfloat16, gradients and master weights float32, the two moments moment_width bytes
    each (2 in the report, section 3.3.3), and activations bfloat16, as `activation_bytes`
    estimates. batch is the number of sequences that the GPU processes at once.

    Routed experts are split over expert_ranks, which must divide data_ranks. Weights with several
    copies split their master weights and moments among the copies (ZeRO-1). stages is the number
    of pipeline stages: an average stage has its share of the layers, but holds the activations of
    as many micro-batches as there are stages, so activations are not divided. Not counted are
    buffers, and the second copy of the weights that DualPipe needs. Raises ValueError if
    expert_ranks does not divide data_ranks.
    """
    if min(data_ranks, expert_ranks, stages) < 1 or data_ranks % expert_ranks:
        raise ValueError(f"expert_ranks={expert_ranks} must divide data_ranks={data_ranks}, and "
                         f"stages={stages} be at least 1; choose 1, 1 and 1 for one GPU.")
    experts = config.num_moe_layers + config.num_nextn_predict_layers      # layers that have them
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    others = (parameters - experts * config.n_routed_experts * expert) / stages
    routed = experts * math.ceil(config.n_routed_experts / expert_ranks) * expert / stages
    held = others + routed
    optimised = others / data_ranks + routed / (data_ranks // expert_ranks)
    parts = {"weights": 2 * held, "gradients": 4 * held, "master_weights": 4 * optimised,
             "moments": 2 * moment_width * optimised,
             "activations": activation_bytes(config, batch, window, recompute=recompute)}
    parts = {part: math.ceil(size) for part, size in parts.items()}
    return parts | {"total": sum(parts.values())}


def activation_bytes(config, batch, window, width=2, recompute=False):
    """Estimated bytes that a step of batch * window tokens keeps for its backward pass.

    width is the bytes of one activation: 2 for bfloat16, 4 for float32. The estimate is for this
    package's model with fused norm and attention kernels, as on GPUs: these keep neither a
    normalised copy nor window * window scores. Indices and memory lost by the allocator are not
    counted. With recompute (DeepSeekV3.recompute) every block keeps only its input, and one block
    at a time keeps everything. The report keeps less: it recomputes norms and up-projections, and
    stores inputs in FP8 (sections 3.2.3, 3.3.3).
    """
    C, depths = config.hidden_size, config.num_nextn_predict_layers
    sparse, dense = (block_activations(config, kind, width) for kind in (True, False))
    mtp = sparse + 4 * 3 * C + width * 2 * C       # inputs of three more norms and of eh_proj
    blocks = [dense] * (config.num_hidden_layers - config.num_moe_layers)
    blocks += [sparse] * config.num_moe_layers + [mtp] * depths
    # Input of the final norm; at every depth, the head's input and the gradient of its logits.
    ends = 4 * C + (1 + depths) * width * (C + config.vocab_size)
    if not recompute:
        return batch * window * (sum(blocks) + ends)
    inputs = (config.num_hidden_layers + depths) * width * C     # MTP's input is a head's input too
    affinities = (config.num_moe_layers + depths) * 4 * config.n_routed_experts  # balance loss
    return batch * window * (inputs + affinities + ends + max(blocks))


def block_activations(config, sparse, width):
    """What one block keeps for its backward pass, per token [bytes]."""
    C, H, Dv = config.hidden_size, config.num_attention_heads, config.v_head_dim
    ranks = config.kv_lora_rank + (config.q_lora_rank or 0)
    norm_inputs = 4 * (2 * C + ranks)                            # float32, whatever width is
    outputs = 2 * C + ranks + config.qk_rope_head_dim            # of the norms; the latents whole
    # q and k; kv_b_proj's whole output, since v is a view of it; the output of attention twice,
    # by head and by token.
    heads = H * (2 * config.qk_head_dim + (config.qk_nope_head_dim + Dv) + 2 * Dv)
    attention = norm_inputs + width * (outputs + heads)
    if not sparse:                     # a SwiGLU keeps gate, silu(gate), up and their product
        return attention + width * 4 * config.intermediate_size
    router = 4 * config.n_routed_experts + (4 * C if width < 4 else 0)  # a float32 copy of x
    F = config.moe_intermediate_size
    routed = config.num_experts_per_tok * (2 * C + 4 * F)        # rows before and after experts
    return attention + router + width * (routed + config.n_shared_experts * 4 * F)


class Run(NamedTuple):
    """Hours, tokens, GPUs and price of a run; defaults: the report, table 1, sections 3 and 4.2."""

    pre_training_hours: int = 2_664_000            # GPU hours, as all hours here
    context_extension_hours: int = 119_000
    post_training_hours: int = 5_000
    hours_per_trillion_tokens: int = 180_000       # in pre-training
    tokens: int = 14_800_000_000_000               # in pre-training
    gpus: int = 2_048
    dollars_per_hour: float = 2                    # rent of one GPU


def bill(run):
    """GPU hours and dollars of each stage and of the whole run, its days, and its speed.

    Research and trial runs before it are not counted.
    """
    stages = {"pre_training": run.pre_training_hours,
              "context_extension": run.context_extension_hours,
              "post_training": run.post_training_hours}
    hours = sum(stages.values())
    each = {}
    for stage, of_stage in stages.items():
        each |= {f"{stage}_hours": of_stage, f"{stage}_dollars": of_stage * run.dollars_per_hour}
    return each | {
        "gpu_hours": hours,
        "dollars": hours * run.dollars_per_hour,
        "days": hours / run.gpus / 24,
        "pre_training_days": run.tokens / 1e12 * run.hours_per_trillion_tokens / run.gpus / 24,
        "days_per_trillion_tokens": run.hours_per_trillion_tokens / run.gpus / 24,
        "tokens_per_second_and_gpu": tokens_per_second(run),
    }


def tokens_per_second(run):
    """Pre-training speed of one GPU [tokens/s]."""
    return 1e12 / (run.hours_per_trillion_tokens * 3600)


def utilisation(flops_per_token, run, peak=H800_PEAK):
    """MFU of pre-training, from 0 to 1; peak is the speed of one GPU [FLOP/s]."""
    return flops_per_token * tokens_per_second(run) / peak
