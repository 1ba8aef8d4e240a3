"""Parameters of a model, those activated per token, and what they need in FLOPs and bytes.

Everything follows from a ModelConfig by closed formulas; no model is allocated. Conventions: a
multiply-add is 2 FLOP; a matrix of n entries takes 2n FLOP per token forwards and 4n backwards.

    python -m minidsv3.measure.accounting v3-671b           tables
    python -m minidsv3.measure.accounting DIR --json        a checkpoint; full numbers

The cost of attention, of memory and of a whole run is in `cost.py`.
"""

import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

from ..command import Parser, UserError, answer
from ..config import PRESETS, ModelConfig
from ..hf import read_config
from . import cost


def block_matrices(config, sparse):
    """The matrices of one block: {component: [(how many, rows, columns), ...]}."""
    C, H, E = config.hidden_size, config.num_attention_heads, config.n_routed_experts
    Rq, Rkv, queries = config.q_lora_rank, config.kv_lora_rank, H * config.qk_head_dim
    Dn, Dr, Dv = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim

    def swiglus(number, inner):
        return [(2 * number, inner, C), (number, C, inner)]            # gate and up; down

    attention = [
        *([(1, queries, C)] if Rq is None                              # q_proj, or
          else [(1, Rq, C), (1, queries, Rq)]),                        # q_a_proj, q_b_proj
        (1, Rkv + Dr, C),                                              # kv_a_proj_with_mqa
        (1, H * (Dn + Dv), Rkv),                                       # kv_b_proj
        (1, C, H * Dv)]                                                # o_proj
    if not sparse:
        return {"attention": attention, "dense_ffn": swiglus(1, config.intermediate_size)}
    F = config.moe_intermediate_size
    # Several shared experts are one SwiGLU of their summed width.
    return {"attention": attention, "routed_experts": swiglus(E, F),
            "shared_experts": swiglus(1, config.n_shared_experts * F), "router_gates": [(1, E, C)]}


def block_parameters(config, sparse):
    """{component: parameters} of one block."""
    counts = {component: sum(math.prod(matrix) for matrix in matrices)
              for component, matrices in block_matrices(config, sparse).items()}
    norms = 2 * config.hidden_size + (config.q_lora_rank or 0) + config.kv_lora_rank
    return counts | {"norms": norms}


def main_parameters(config):
    """{component: parameters} of the main model; a tied head has 0, as it is the embedding."""
    vocabulary = config.vocab_size * config.hidden_size
    counts = {"embedding": vocabulary, "head": 0 if config.tie_word_embeddings else vocabulary}
    sparse = config.num_moe_layers
    of_dense, of_sparse = block_parameters(config, False), block_parameters(config, True)
    for component in ("attention", "dense_ffn", "routed_experts", "shared_experts",
                      "router_gates", "norms"):
        counts[component] = ((config.num_hidden_layers - sparse) * of_dense.get(component, 0)
                             + sparse * of_sparse.get(component, 0))
    return counts | {"final_norm": config.hidden_size}


def mtp_parameters(config):
    """{component: parameters} of all MTP modules, without the shared embedding and head."""
    C, depths = config.hidden_size, config.num_nextn_predict_layers
    block = sum(block_parameters(config, True).values())
    return {"blocks": depths * block, "eh_proj": depths * 2 * C * C, "norms": depths * 3 * C}


def released_parameters(config):
    """How many numbers of each dtype the released form of a checkpoint has, as the hub counts.

    Matrices of blocks are FP8, with one float32 scale per block of 128 x 128. Norms, router
    weights, embedding, head and eh_proj are bfloat16; router biases are float32. Every MTP module
    has its own copy of embedding and head, and a tied head is stored like any other.
    """
    depths, sparse = config.num_nextn_predict_layers, config.num_moe_layers
    fp8 = scales = 0
    for number, matrices in [(config.num_hidden_layers - sparse, block_matrices(config, False)),
                             (sparse + depths, block_matrices(config, True))]:
        for component in matrices.keys() - {"router_gates"}:
            for copies, rows, columns in matrices[component]:
                fp8 += number * copies * rows * columns
                scales += number * copies * math.ceil(rows / 128) * math.ceil(columns / 128)
    weights = sum(main_parameters(config).values()) + sum(mtp_parameters(config).values())
    copies = (2 * depths + config.tie_word_embeddings) * config.vocab_size * config.hidden_size
    biases = (sparse + depths) * config.n_routed_experts
    counts = {"F8_E4M3": fp8, "BF16": weights - fp8 + copies, "F32": scales + biases}
    tensor_bytes = counts["F8_E4M3"] + 2 * counts["BF16"] + 4 * counts["F32"]
    return counts | {"total": sum(counts.values()), "tensor_bytes": tensor_bytes}


def activated_parameters(config):
    """Parameters activated per token, in every common convention; a tied matrix counts once.

    The report's 37B is "all". The embedding only looks up a row, so FLOPs are computed from the
    number without embedding, which includes the head.
    """
    counts = main_parameters(config)
    vocabulary, shared = counts["embedding"], counts["embedding"] + counts["head"]
    body = sum(counts.values()) - shared - config.num_moe_layers * config.idle_parameters
    depths = config.num_nextn_predict_layers
    mtp = sum(mtp_parameters(config).values()) - depths * config.idle_parameters
    return {
        "all": body + shared,
        "without_embedding": body + vocabulary,
        "without_embedding_and_head": body,
        "mtp": mtp,
        "mtp_with_embedding_and_head": mtp + shared if depths else 0,
    }


def training_flops(config, window):
    """FLOPs per token in training, forwards and backwards, by convention.

    matrices: 6 N, where N is the activated parameters without input embedding. Attention adds
    6 H (D + Dv) S per layer for S visible keys: window / 2 on average if only causal pairs are
    counted, window if masked pairs are counted too. MTP adds its modules, and the head once more
    for each. Recomputation is never counted.
    """
    activated, depths = activated_parameters(config), config.num_nextn_predict_layers
    matrices = 6 * activated["without_embedding"]
    square = 6 * cost.expanded_width(config) * window                       # per layer
    mtp = 6 * (activated["mtp"] + depths * config.vocab_size * config.hidden_size)
    causal = matrices + config.num_hidden_layers * square // 2
    return {
        "matrices": matrices,
        "causal": causal,
        "non_causal": matrices + config.num_hidden_layers * square,
        "causal_with_mtp": causal + mtp + depths * square // 2,
    }


def decoding_flops(config, context):
    """FLOPs of decoding one token with a latent cache of `context` tokens, its own included.

    absorbed: attention on the latents, with one key of Rkv + Dr and one value of Rkv for all heads.
    expanded: the keys and values of every cached token are computed again. Both include 2 N.
    """
    N, L = activated_parameters(config)["without_embedding"], config.num_hidden_layers
    latent, expanded = cost.absorbed_width(config) * context, cost.expanded_width(config) * context
    # N includes kv_b_proj for one token; expanding applies it to the whole context.
    again = cost.expansion(config) * (context - 1)
    return {"absorbed": 2 * (N + L * latent), "expanded": 2 * (N + L * (expanded + again))}


class Table(NamedTuple):
    """One group of figures: its key in JSON, and its title and unit in a terminal."""

    key: str
    title: str
    unit: str          # "" for full numbers, "%", or a unit that takes a prefix: FLOP, B
    rows: dict         # {name: number} or {name: {column: number}}, without prefixes


def tables(config):
    """All groups of figures for a model; the cost of the run only for the report's model."""
    window = min(4096, config.max_position_embeddings)
    reported = config == ModelConfig.preset("v3-671b")
    # The report's layout (section 3.2): 2,048 GPUs = 16 stages * 128, experts over 64 of the 128.
    plan = dict(zip(("data_ranks", "expert_ranks", "stages"),
                    (128, 64, 16) if reported else (8, 8, 1)))
    main, mtp = main_parameters(config), mtp_parameters(config)
    main_model, modules = sum(main.values()), sum(mtp.values())
    sizes = (config, main_model + modules, 1, window)
    memory = {"one_gpu": cost.training_memory(*sizes),
              "with_recomputation": cost.training_memory(*sizes, recompute=True),
              "and_sharded": cost.training_memory(*sizes, recompute=True, **plan)}
    flops = training_flops(config, window)
    groups = [
        Table("assumptions", "Assumed: window and micro-batch in tokens; gradients and master "
              "weights float32, the rest bfloat16", "",
              {"window": window, "micro_batch": window, **plan}),
        Table("parameters", "Parameters", "", {
            **main, "main_model": main_model,
            "router_biases_apart": config.num_moe_layers * config.n_routed_experts,
            **{f"mtp_{name}": count for name, count in mtp.items()}, "mtp_modules": modules}),
        Table("activated_parameters", "Parameters activated per token", "",
              activated_parameters(config)),
        Table("released_checkpoint", "Numbers in a checkpoint in V3's released FP8 form", "",
              released_parameters(config)),
        Table("training_flops_per_token", "Training, per token", "FLOP", flops),
        Table("decoding_flops_per_token", "Decoding, per token, with a cache of the window", "FLOP",
              decoding_flops(config, window)),
        Table("break_even_queries", "New tokens at once above which expanding is cheaper", "",
              {"cache_of_the_window": cost.break_even_queries(config, window),
               "limit": cost.break_even_queries(config)}),
        Table("cache_bytes_per_token", "Cache, bytes per token", "", cost.cache_bytes(config)),
        Table("training_memory_bytes", "Training, memory of one GPU (activations estimated)", "B",
              {part: {where: parts[part] for where, parts in memory.items()}
               for part in memory["one_gpu"]})]
    if reported:
        groups += [Table("run", "The report's run on H800 GPUs; hours are GPU hours", "",
                         cost.bill(cost.Run())),
                   Table("mfu", "MFU of the run, of 989.4 TFLOP/s, by convention", "%",
                         {name: cost.utilisation(n, cost.Run()) for name, n in flops.items()})]
    return groups


def as_text(table):
    """A table as aligned lines, its title first."""
    rows = {name: row if isinstance(row, dict) else {"": row} for name, row in table.rows.items()}
    columns = next(iter(rows.values()))
    lines = [table.title]
    if len(columns) > 1:
        lines.append(" " * 32 + "".join(f"{words(column):>20}" for column in columns))
    lines += [f"  {words(name):30}" + "".join(f"{figure(n, table.unit):>20}" for n in row.values())
              for name, row in rows.items()]
    return "\n".join(lines)


def figure(number, unit):
    """A number as text: 70,272 or 56.72, 39.06 %, 250.46 GFLOP; "never" for None."""
    if number is None:
        return "never"
    if unit in ("", "%"):
        number = 100 * number if unit else number
        text = f"{number:,}" if isinstance(number, int) else f"{number:,.2f}"
        return f"{text} {unit}".rstrip()
    power = min((len(str(int(number))) - 1) // 3, 4)
    return f"{number / 1000**power:,.2f} {' kMGT'[power].strip()}{unit}"


def words(key):
    """A JSON key as words: mtp_blocks -> MTP blocks, master_weights -> master weights."""
    acronyms = {"mtp", "ffn", "mla", "mha", "gqa", "mqa", "gpu"}
    return " ".join(word.upper() if word in acronyms else word for word in key.split("_"))


def model_config(name):
    """The ModelConfig of a preset or of a checkpoint's folder.

    Raises UserError or OSError if the name is neither.
    """
    if name in PRESETS:
        return ModelConfig.preset(name)
    if not Path(name).is_dir():
        raise UserError(f"{name!r} is neither a preset nor a folder; choose one of "
                        f"{', '.join(PRESETS)}, or a folder with a config.json.")
    return read_config(name)


def run(arguments):
    """Print all figures of a model -> exit code."""
    parser = Parser(prog="python -m minidsv3.measure.accounting", description=__doc__)
    parser.add_argument("name", metavar="NAME",
                        help=f"a preset ({', '.join(PRESETS)}) or a checkpoint's folder")
    parser.add_argument("--json", action="store_true",
                        help="JSON with full numbers: parameters, FLOP, bytes, hours, dollars")
    options = parser.parse_args(arguments)
    groups = tables(model_config(options.name))
    if options.json:
        print(json.dumps({"model": options.name} | {t.key: t.rows for t in groups}, indent=2))
    else:
        print("\n\n".join([options.name, *map(as_text, groups)]))


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
