"""A checkpoint as one GGUF file, the format of llama.cpp, by its own library `gguf`.

Names and settings are those of the architecture deepseek2, as llama.cpp's converter writes them for
DeepSeek-V3: the experts of a block are stacked, kv_b is divided into k_b (transposed) and v_b for
the absorbed form, and the MTP layers are left out. Rotary channels stay interleaved.
"""

import re

import torch

from ..command import UserError
from ..files import replacing
from . import Checkpoint, load, read_config
from .config import read_json
from .names import FP8, released_name
from .splits import RELEASED

UNUSED = "<｜place▁holder▁no▁"                   # begins the names of ids without a token


def write_gguf(folder, out):
    """Write the checkpoint in `folder` as the file `out`; FP8 becomes bfloat16. -> exit code 0.

    Raises UserError if the library is missing, or llama.cpp would compute or read something else.
    """
    gguf, config = library(), read_config(folder)
    content = tokenizer_content(folder, config.vocab_size)
    check(config)
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists already; name a new file.")
    stored = Checkpoint(folder).dtypes.get("model.embed_tokens.weight")
    short = stored in ("BF16", FP8)
    model = load(folder, torch.bfloat16 if short else torch.float32)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        writer = gguf.GGUFWriter(temporary, "deepseek2", use_temp_file=True)
        try:
            add_sizes(writer, gguf, config)
            writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if short
                                 else gguf.LlamaFileType.ALL_F32)
            add_tokenizer(writer, gguf, folder, config, content)
            add_tensors(writer, gguf, model)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    print(f"wrote {out}: {out.stat().st_size:,} bytes")
    return 0


def library():
    """The package gguf, which only this file needs. Raises UserError if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError("a GGUF file needs the package gguf; install it with: pip install "
                        "gguf") from None
    return gguf


def tokenizer_content(folder, vocab_size):
    """The content of tokenizer.json. Raises UserError if llama.cpp would give other ids."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path} is missing, and a GGUF file holds the tokenizer; copy it there.")
    content = read_json(path)
    try:
        steps = content["pre_tokenizer"].get("pretokenizers", [])
        splits = tuple(step["pattern"]["Regex"] for step in steps if step["type"] == "Split")
        usable = splits == RELEASED and content["model"]["type"] == "BPE"
        last = max(*content["model"]["vocab"].values(), *(
            token["id"] for token in content.get("added_tokens") or []))
    except (LookupError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise UserError(f"{path} splits texts in another way than the released model, and "
                        "llama.cpp knows only that one: train with --set splits=released.")
    normalizer = content.get("normalizer") or {}
    if normalizer.get("normalizers", normalizer):        # the release has an empty sequence
        raise UserError(f"{path} changes texts before it splits them (normalizer), and llama.cpp "
                        "would not; take the normalizer out.")
    if last >= vocab_size:
        raise UserError(f"{path} has token {last}, but config.json says vocab_size={vocab_size}; "
                        "they belong to different models.")
    return content


def check(config):
    """Raise UserError if llama.cpp would not load these settings, or would compute otherwise."""
    scaling = config.rope_scaling
    if scaling and (not scaling.mscale_all_dim or scaling.mscale != scaling.mscale_all_dim):
        raise UserError(f"rope_scaling.mscale={scaling.mscale} and mscale_all_dim="
                        f"{scaling.mscale_all_dim}: llama.cpp needs them to be equal and above 0.")
    # It knows models without a query latent by their numbers of blocks.
    blocks, rank = config.num_hidden_layers, config.q_lora_rank
    if (rank is None) != (blocks in (26, 27) or (blocks, config.vocab_size) == (48, 128_256)):
        raise UserError(f"q_lora_rank={rank} with num_hidden_layers={blocks}: llama.cpp expects "
                        "null with 26 or 27 blocks, and a number with others.")
    if not config.n_shared_experts and blocks > config.first_k_dense_replace:
        raise UserError("n_shared_experts=0: llama.cpp needs at least one shared expert.")


def add_sizes(writer, gguf, config):
    """The sizes and switches of the architecture."""
    latent, rotary = config.kv_lora_rank, config.qk_rope_head_dim
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_leading_dense_block_count(min(config.first_k_dense_replace,
                                             config.num_hidden_layers))
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1)                  # in the absorbed form all heads read one latent
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + rotary)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config.qk_nope_head_dim + rotary)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_group_count(config.n_group)
    writer.add_expert_group_used_count(config.topk_group)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_rope_dimension_count(rotary)
    writer.add_rope_freq_base(config.rope_theta)
    if scaling := config.rope_scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)
        writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
        writer.add_rope_scaling_yarn_log_mul(0.1 * scaling.mscale_all_dim)


def add_tokenizer(writer, gguf, folder, config, content):
    """The tokens, their kinds and the merges of a tokenizer.json with the released splits."""
    added = {token["id"]: token for token in content.get("added_tokens") or []}
    names = {number: name for name, number in content["model"]["vocab"].items()}
    names |= {number: token["content"] for number, token in added.items()}

    def kind(number):
        name = names.get(number, UNUSED)
        if name.startswith(UNUSED):
            return gguf.TokenType.UNUSED
        # No ordinary token has this letter: GPT-2's alphabet of bytes lacks it.
        if "｜" in name or added.get(number, {}).get("special"):
            return gguf.TokenType.CONTROL
        return gguf.TokenType.USER_DEFINED if number in added else gguf.TokenType.NORMAL

    ids = range(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-v3")
    writer.add_token_list([names.get(number, f"[PAD{number}]") for number in ids])
    writer.add_token_types([kind(number) for number in ids])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair)
                             for pair in content["model"]["merges"]])
    beside = folder / "tokenizer_config.json"
    settings = read_json(beside) if beside.is_file() else {}
    padding = settings.get("pad_token")
    padding = padding["content"] if isinstance(padding, dict) else padding
    for number in [number for number, name in names.items() if name == padding]:
        writer.add_pad_token_id(number)
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    if config.end_ids:
        writer.add_eos_token_id(config.end_ids[0])
    begins = ((content.get("post_processor") or {}).get("single") or [{}])[0]
    writer.add_add_bos_token(bool(settings.get("add_bos_token")) or "SpecialToken" in begins)


def add_tensors(writer, gguf, model):
    """Every tensor of the main model under its name in GGUF; vectors and routers in float32."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, model.config.num_hidden_layers)
    for name, tensor in main_tensors(model):
        # The library knows the stem, and the end stays as it is.
        stem, end = re.fullmatch(r"(.*)\.(weight|bias)", name).groups()
        long = tensor.dim() == 1 or stem.endswith("mlp.gate")
        values = tensor.float().contiguous().numpy()
        kind = gguf.GGMLQuantizationType.F32
        if tensor.dtype == torch.bfloat16 and not long:
            kind = gguf.GGMLQuantizationType.BF16
            values = gguf.quants.quantize(values, kind)
        writer.add_tensor(f"{names.get_name(stem)}.{end}", values, raw_dtype=kind)


def main_tensors(model):
    """(name, tensor) pairs of the main model, experts stacked, as the library's table names them.

    k_b (H, Rkv, Dn) and v_b (H, Dv, Rkv) come from kv_b (H*(Dn+Dv), Rkv).
    """
    config = model.config
    for name, tensor in model.state_dict().items():
        if name.startswith("mtp.") or name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = released_name(name, config.num_hidden_layers)
        stem, _, last = name.rpartition(".")
        if last == "gate_up_proj":               # (E, 2F, C)
            for half, stack in zip(("gate", "up"), tensor.chunk(2, dim=1)):
                yield f"{stem}.{half}_proj.weight", stack              # (E, F, C)
        elif last == "down_proj":
            yield f"{name}.weight", tensor                             # (E, C, F)
        elif name.endswith("kv_b_proj.weight"):
            heads = tensor.unflatten(0, (config.num_attention_heads, -1))
            k_b, v_b = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
            yield name.replace("kv_b", "k_b"), k_b.mT
            yield name.replace("kv_b", "v_b"), v_b
        else:
            yield name.replace("correction_bias", "correction.bias"), tensor
