"""Every number of the architecture, under the names of the released `config.json`.

A field keeps the released key; its comment gives the unit and the report's symbol (arXiv
2412.19437, section 4.2). `ModelConfig.preset(NAME)` knows five models:

    tiny            a laptop CPU, minutes             small        one 12 GB consumer GPU, hours
    short           the same, a window of 64 tokens, from which it is extended to 2,048
    moonlight-16b   the released Moonlight-16B-A3B    v3-671b      the released DeepSeek-V3

Numbers of a *training run* (learning rate, balance weight, ...) live in `train/recipe.py`.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from .command import UserError, notice
from .fields import build, check_types, replace_fields
from .files import write_text


@dataclass(frozen=True)
class RopeScaling:
    """YaRN: how rotary frequencies are stretched for a window longer than trained (report, 4.3)."""

    factor: float                              # window multiplier, s
    original_max_position_embeddings: int      # window before extension [tokens], L
    beta_fast: float = 32.0                    # rotations above which a channel is kept, beta
    beta_slow: float = 1.0                     # rotations below which it is stretched, alpha
    mscale: float | None = None                # weight of ln s in the temperature, cos/sin side
    mscale_all_dim: float | None = None        # the same, softmax side (squared there)
    type: str = "yarn"

    def __post_init__(self):
        check_types(self)
        if self.type != "yarn":
            raise UserError(f"rope_scaling.type={self.type!r} is unknown; use 'yarn' or null.")
        for name in ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise UserError(f"rope_scaling.{name}={getattr(self, name)} must be finite and "
                                "not negative.")
        if self.factor < 1:
            raise UserError(f"rope_scaling.factor={self.factor} must be at least 1, as 4 is.")
        if self.original_max_position_embeddings < 1:
            raise UserError("rope_scaling.original_max_position_embeddings="
                            f"{self.original_max_position_embeddings} must be at least 1 token.")
        if not self.beta_fast >= self.beta_slow > 0:
            raise UserError(f"rope_scaling.beta_fast={self.beta_fast} must not be below "
                            f"beta_slow={self.beta_slow}, and both above 0, as 32 and 1 are.")


# A larger size is certainly a mistake, and building such a model would only exhaust the memory.
LARGEST = {"max_position_embeddings": 2**40, "num_hidden_layers": 2**12, "n_routed_experts": 2**14,
           "n_shared_experts": 2**10, "num_nextn_predict_layers": 2**6}

# A text may be so many times as long as the trained window. Context extension needs little more
# than 32; a longer text is certainly a mistake too.
FARTHEST = 64


@dataclass(frozen=True)
class ModelConfig:
    """The shape of one DeepSeek-V3 model; the defaults are those of the released 671B model.

    Raises UserError that names the field, its value and a remedy.
    """

    vocab_size: int = 129280                   # entries of the embedding and the head, V
    hidden_size: int = 7168                    # width of the residual stream, d
    num_hidden_layers: int = 61                # blocks, L
    intermediate_size: int = 18432             # inner width of a dense SwiGLU
    max_position_embeddings: int = 163840      # trained window [tokens]
    tie_word_embeddings: bool = False          # one matrix for embedding and head

    num_attention_heads: int = 128             # n_h
    q_lora_rank: int | None = 1536             # width of the query latent, d_c'; None: no latent
    kv_lora_rank: int = 512                    # width of the cached key-value latent, d_c
    qk_nope_head_dim: int = 128                # per head, without position, d_h
    qk_rope_head_dim: int = 64                 # per head, rotary, shared by all heads, d_h^R
    v_head_dim: int = 128                      # per head, value

    n_routed_experts: int = 256                # N_r
    n_shared_experts: int = 1                  # N_s
    num_experts_per_tok: int = 8               # K_r
    moe_intermediate_size: int = 2048          # inner width of one expert
    first_k_dense_replace: int = 3             # number of dense blocks, before all others
    n_group: int = 8                           # expert groups (nodes in training)
    topk_group: int = 4                        # groups a token may use, M
    norm_topk_prob: bool = True                # gates of a token sum to one (before scaling)
    routed_scaling_factor: float = 2.5         # gates are multiplied by this

    num_nextn_predict_layers: int = 1          # multi-token-prediction modules, D

    rope_theta: float = 10000.0                # base of the rotary frequencies
    rope_scaling: RopeScaling | None = RopeScaling(40.0, 4096, mscale=1.0, mscale_all_dim=1.0)

    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02            # std of initial weights; the report says 0.006
    bos_token_id: int | None = 0
    eos_token_id: int | tuple | None = 1       # several tokens may end a text; None: no token does

    def __post_init__(self):
        if isinstance(self.rope_scaling, dict):
            scaling = build(RopeScaling, self.rope_scaling, "rope_scaling.")
            object.__setattr__(self, "rope_scaling", scaling)
        if isinstance(self.eos_token_id, list | tuple):                # JSON has lists
            ends = tuple(token for place, token in enumerate(self.eos_token_id)
                         if token not in self.eos_token_id[:place])
            object.__setattr__(self, "eos_token_id", ends if len(ends) > 1 else
                               next(iter(ends), None))
        check_types(self)
        self._check_sizes()
        self._check_experts()

    def _check_sizes(self):
        at_least_one = [
            "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size",
            "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
            "v_head_dim", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size",
            "n_group", "topk_group", "max_position_embeddings"]
        if self.q_lora_rank is not None:
            at_least_one.append("q_lora_rank")
        may_be_none = ("n_shared_experts", "first_k_dense_replace", "num_nextn_predict_layers")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in may_be_none:
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} is negative; 0 means none.")
        for name in (*at_least_one, *may_be_none):
            largest = LARGEST.get(name, 2**24)
            if getattr(self, name) > largest:
                raise UserError(f"{name}={getattr(self, name)} is more than any model has; "
                                f"choose up to {largest}.")
        for name in ("rope_theta", "rms_norm_eps", "initializer_range", "routed_scaling_factor"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name}={getattr(self, name)} must be a number above 0.")
        if self.rope_theta <= 1:
            raise UserError(f"rope_theta={self.rope_theta} must be above 1, as 10000 is.")
        if self.qk_rope_head_dim % 2:
            raise UserError(f"qk_rope_head_dim={self.qk_rope_head_dim} is odd, but rotary "
                            f"channels come in pairs; use {self.qk_rope_head_dim + 1}.")
        bos = () if self.bos_token_id is None else (self.bos_token_id,)
        for name, ids in (("bos_token_id", bos), ("eos_token_id", self.end_ids)):
            for token in ids:
                if type(token) is not int or not 0 <= token < self.vocab_size:
                    raise UserError(f"{name}={token!r} is no token id of a vocabulary of "
                                    f"{self.vocab_size}; choose 0 to {self.vocab_size - 1}.")

    def _check_experts(self):
        if self.n_routed_experts % self.n_group:
            near = max(1, round(self.n_routed_experts / self.n_group)) * self.n_group
            raise UserError(f"n_routed_experts={self.n_routed_experts} does not divide into "
                            f"n_group={self.n_group} groups; choose a multiple of {self.n_group}, "
                            f"for instance {near}.")
        per_group = self.n_routed_experts // self.n_group
        if self.n_group > 1 and per_group < 2:
            raise UserError(f"n_group={self.n_group} leaves {per_group} expert per group, but "
                            "a group is scored by its two best; choose n_group up to "
                            f"{self.n_routed_experts // 2}.")
        if self.topk_group > self.n_group:
            raise UserError(f"topk_group={self.topk_group} is more than n_group={self.n_group}; "
                            f"choose 1 to {self.n_group}.")
        reachable = per_group * self.topk_group
        if self.num_experts_per_tok > reachable:
            raise UserError(f"num_experts_per_tok={self.num_experts_per_tok} is more than the "
                            f"{reachable} experts in topk_group={self.topk_group} groups; "
                            f"choose 1 to {reachable}.")

    @property
    def end_ids(self):
        """The tokens that end a text, as a tuple; the first one separates training texts."""
        ends = self.eos_token_id
        return ends if isinstance(ends, tuple) else () if ends is None else (ends,)

    @property
    def qk_head_dim(self):
        """Width of a query or key head, with and without position together."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def num_moe_layers(self):
        """Blocks of the main model that have experts; the MTP modules' blocks are not counted."""
        return max(0, self.num_hidden_layers - self.first_k_dense_replace)

    @property
    def idle_parameters(self):
        """Parameters of the routed experts of one sparse block that a token does not activate."""
        expert = 3 * self.hidden_size * self.moe_intermediate_size
        return (self.n_routed_experts - self.num_experts_per_tok) * expert

    def check_length(self, tokens):
        """Print a notice if a text of so many tokens goes beyond the trained window.

        Raises UserError far beyond it: a mistyped number would only exhaust the memory.
        """
        window = self.max_position_embeddings
        trained = f"the {window:,} that this model was trained on (max_position_embeddings)"
        if tokens > FARTHEST * window:
            raise UserError(f"{tokens:,} tokens are more than {FARTHEST} times {trained}; choose "
                            f"up to {FARTHEST * window:,}.")
        if tokens > window:
            notice(f"{tokens:,} tokens are more than {trained}; what lies beyond may be predicted "
                   "badly.")

    @classmethod
    def preset(cls, name):
        """The preset of that name. Raises UserError that lists the names if it is unknown."""
        if name not in PRESETS:
            raise UserError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}.")
        return cls(**PRESETS[name])

    @classmethod
    def from_dict(cls, values):
        """A config from {field: value}; UserError for an unknown field names the nearest one."""
        return build(cls, values)

    def to_dict(self):
        """Plain numbers under the released keys, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, path):
        """Read what `to_json` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def to_json(self, path):
        """Write the fields as JSON."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        write_text(Path(path), text)

    def replace(self, **changes):
        """A copy with some fields changed and all checks repeated; UserError for unknown names."""
        return replace_fields(self, changes)


# Presets tiny and short tie embedding and head, unlike the released model: a separate head would be
# a tenth of their weights. Windows are those of the recipes. Preset short is to be extended. Its
# window and its rope_theta are 64 times smaller than the released model's before extension.
PRESETS = {
    "tiny": dict(
        vocab_size=2048, hidden_size=192, num_hidden_layers=4, intermediate_size=512,
        max_position_embeddings=256, tie_word_embeddings=True,
        num_attention_heads=4, q_lora_rank=96, kv_lora_rank=96,
        qk_nope_head_dim=16, qk_rope_head_dim=32, v_head_dim=48,
        n_routed_experts=16, num_experts_per_tok=4, moe_intermediate_size=96,
        first_k_dense_replace=1, n_group=4, topk_group=2, rope_scaling=None,
        initializer_range=0.02),
    "short": dict(
        vocab_size=1280, hidden_size=96, num_hidden_layers=3, intermediate_size=256,
        max_position_embeddings=64, tie_word_embeddings=True,
        num_attention_heads=4, q_lora_rank=48, kv_lora_rank=48,
        qk_nope_head_dim=16, qk_rope_head_dim=32, v_head_dim=32,
        n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=80,
        first_k_dense_replace=1, n_group=2, topk_group=1, num_nextn_predict_layers=0,
        rope_theta=156.25, rope_scaling=None, initializer_range=0.02),
    "small": dict(
        vocab_size=8192, hidden_size=768, num_hidden_layers=12, intermediate_size=2048,
        max_position_embeddings=1024,
        num_attention_heads=12, q_lora_rank=384, kv_lora_rank=192,
        qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64,
        n_routed_experts=32, num_experts_per_tok=4, moe_intermediate_size=320,
        first_k_dense_replace=1, n_group=4, topk_group=2, rope_scaling=None,
        initializer_range=0.02),
    "moonlight-16b": dict(
        vocab_size=163840, hidden_size=2048, num_hidden_layers=27, intermediate_size=11264,
        max_position_embeddings=8192,
        num_attention_heads=16, q_lora_rank=None,
        n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6, moe_intermediate_size=1408,
        first_k_dense_replace=1, n_group=1, topk_group=1, routed_scaling_factor=2.446,
        num_nextn_predict_layers=0, rope_theta=50000.0, rope_scaling=None, rms_norm_eps=1e-5,
        bos_token_id=163584, eos_token_id=163585),
    "v3-671b": dict(),
}
