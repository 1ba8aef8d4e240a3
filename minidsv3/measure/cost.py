"""What attention, memory and a whole run cost; `accounting` counts parameters and FLOPs.

A run's bill is arithmetic on the report's table 1. Its MFU (model FLOPs utilisation) is

    FLOPs per token * tokens per second and GPU / peak FLOPs per second

so it depends on which FLOPs one counts; `accounting.training_flops` lists the conventions.
"""

import math
from typing import NamedTuple

from ..command import UserError

H800_PEAK = 989.4e12                   # dense bfloat16 [FLOP/s]; FP8 has twice that


def break_even_queries(config, context=math.inf):
    """Above how many new tokens T, over S = context cached, expanding beats absorbing; None: never.

    Multiply-adds of a layer are then equal, the projections that both need left out:
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
    """Cache a token needs in all layers [bytes], width bytes a number (2: bfloat16).

    mla is the latent; expanded the keys (D) and values (Dv) formed from it. mha, gqa_8 and mqa are
    plain attention with as many query heads, keys and values of Dv each, so that o_proj reads the
    same width, and H, 8 (at most H) or 1 heads of keys and values. Without MTP unless named.
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
    """Memory of one GPU in training [bytes]; parameters: of the whole model, MTP included.

    Weights bfloat16, gradients and master weights float32, two moments of moment_width bytes (2 in
    the report, section 3.3.3), activations bfloat16 as `activation_bytes` estimates. batch is what
    the GPU sees at once. Routed experts are split over expert_ranks, which divide data_ranks;
    whatever has several copies then splits its master weights and moments among them (ZeRO-1).
    stages is of a pipeline: a mean stage has its share of the layers, but as many micro-batches
    under way, so activations stay. Left out: buffers, and the second copy of the weights that
    DualPipe needs. Raises UserError on ranks that do not divide.
    """
    if min(data_ranks, expert_ranks, stages) < 1 or data_ranks % expert_ranks:
        raise UserError(f"expert_ranks={expert_ranks} must divide data_ranks={data_ranks}, and "
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
    """An estimate of what a training step of batch * window tokens keeps for its backward pass.

    width is that of an activation [bytes]: 2 bfloat16, 4 float32. It follows this package's model
    with fused norm and attention kernels, as GPUs have them, which keep neither a normed copy nor
    window * window scores. Indices and an allocator's waste are left out. With recompute
    (DeepSeekV3.recompute) a block keeps its input, and one block at a time is whole. The report
    keeps less: it recomputes norms and up-projections, and stores inputs in FP8 (3.2.3, 3.3.3).
    """
    C, depths = config.hidden_size, config.num_nextn_predict_layers
    sparse, dense = (block_activations(config, kind, width) for kind in (True, False))
    mtp = sparse + 4 * 3 * C + width * 2 * C       # inputs of three more norms and of eh_proj
    blocks = [dense] * (config.num_hidden_layers - config.num_moe_layers)
    blocks += [sparse] * config.num_moe_layers + [mtp] * depths
    # Input of the final norm; for every depth the head's input and its error over the vocabulary.
    ends = 4 * C + (1 + depths) * width * (C + config.vocab_size)
    if not recompute:
        return batch * window * (sum(blocks) + ends)
    inputs = (config.num_hidden_layers + depths) * width * C     # MTP's state is a head's input too
    affinities = (config.num_moe_layers + depths) * 4 * config.n_routed_experts  # balance loss
    return batch * window * (inputs + affinities + ends + max(blocks))


def block_activations(config, sparse, width):
    """What one block keeps for its backward pass, a token [bytes]."""
    C, H, Dv = config.hidden_size, config.num_attention_heads, config.v_head_dim
    ranks = config.kv_lora_rank + (config.q_lora_rank or 0)
    norm_inputs = 4 * (2 * C + ranks)                            # float32, whatever flows
    outputs = 2 * C + ranks + config.qk_rope_head_dim            # of the norms; the latents whole
    # q, k; kv_b_proj's output, whole since v is a view of it; attention's, by head and by token.
    heads = H * (2 * config.qk_head_dim + (config.qk_nope_head_dim + Dv) + 2 * Dv)
    attention = norm_inputs + width * (outputs + heads)
    if not sparse:                     # a SwiGLU keeps gate, silu(gate), up and their product
        return attention + width * 4 * config.intermediate_size
    router = 4 * config.n_routed_experts + (4 * C if width < 4 else 0)  # a float32 copy of x
    F = config.moe_intermediate_size
    routed = config.num_experts_per_tok * (2 * C + 4 * F)        # rows before and after experts
    return attention + router + width * (routed + config.n_shared_experts * 4 * F)


class Run(NamedTuple):
    """What is known of a run; the defaults are the report's (table 1, sections 3 and 4.2)."""

    pre_training_hours: int = 2_664_000            # of one GPU, as all hours here
    context_extension_hours: int = 119_000
    post_training_hours: int = 5_000
    hours_per_trillion_tokens: int = 180_000       # pre-training
    tokens: int = 14_800_000_000_000               # pre-training
    gpus: int = 2_048
    dollars_per_hour: float = 2                    # of one GPU, rented


def bill(run):
    """GPU hours, days and dollars of a whole run; research and trials before it not counted."""
    hours = run.pre_training_hours + run.context_extension_hours + run.post_training_hours
    return {
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
    """MFU of pre-training, 0 to 1; peak [FLOP/s] is that of one GPU."""
    return flops_per_token * tokens_per_second(run) / peak
