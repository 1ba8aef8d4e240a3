"""A plain dense GPT with today's parts: the baseline that our model is compared with.

    x <- x + Attention(RMSNorm(x))
    x <- x + SwiGLU(RMSNorm(x))

Multi-head attention with rotary positions on whole heads, no experts, no latents, no MTP.
`matched_to(config)` gives it the depth, width, heads and vocabulary of our model. Its SwiGLU is so
wide that it has as many parameters as ours without MTP activates per token. The matrix FLOPs per
token are then equal too, those of the head included. Linear, RMSNorm, SwiGLU, `attend` and the loss
are shared with our model, so both have the same precision and the same optimised code.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from minidsv3.command import UserError
from minidsv3.kernels.attention import attend
from minidsv3.model.layers import Linear, RMSNorm, SwiGLU, at_least_float32
from minidsv3.model.objective import combine, next_token_loss
from minidsv3.model.transformer import DeepSeekV3


@dataclass(frozen=True)
class GPTConfig:
    """The shape of the dense model, under ModelConfig's names."""
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int                       # inner width of each SwiGLU
    tie_word_embeddings: bool
    rope_theta: float
    rms_norm_eps: float
    initializer_range: float
    n_routed_experts: int = 1                    # only measure/evaluate.py reads it


def matched_to(config, multiple=8):
    """The dense model with as many parameters as a ModelConfig's main model activates per token.

    Solves for the inner width of SwiGLU and rounds it. Raises UserError if no width fits.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    if width % (2 * config.num_attention_heads):
        raise UserError(f"hidden_size={width} does not divide into num_attention_heads="
                        f"{config.num_attention_heads} heads of even width; change one of them.")
    with torch.device("meta"):                   # only to count parameters
        _, active = DeepSeekV3(config).count_parameters()
    vocabularies = 1 if config.tie_word_embeddings else 2
    elsewhere = (vocabularies * config.vocab_size + 1) * width + layers * (4 * width + 2) * width
    inner = round((active - elsewhere) / (3 * width * layers) / multiple) * multiple
    if inner < 1:
        raise UserError(f"{active:,} activated parameters leave a dense model of hidden_size="
                        f"{width} nothing for its SwiGLU; choose wider experts.")
    return GPTConfig(config.vocab_size, width, layers, config.num_attention_heads, inner,
                     config.tie_word_embeddings, config.rope_theta, config.rms_norm_eps,
                     config.initializer_range)


class Attention(nn.Module):
    """Multi-head attention: every head has its own keys and values."""

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.q_proj = Linear(config.hidden_size, config.hidden_size)
        self.k_proj = Linear(config.hidden_size, config.hidden_size)
        self.v_proj = Linear(config.hidden_size, config.hidden_size)
        self.o_proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x, rope):
        q, k, v = (rearrange(project(x), "B T (H D) -> B H T D", H=self.num_heads)
                   for project in (self.q_proj, self.k_proj, self.v_proj))
        o = attend(rotate(q, rope), rotate(k, rope), v, q.size(-1)**-0.5)  # (B, H, T, D)
        return self.o_proj(rearrange(o, "B H T D -> B T (H D)"))       # (B, T, C)


def rotate(x, tables):
    """Rotary positions: x (B, H, T, D) -> the same shape.

    Pair m is in channels m and m + D/2, which is faster than neighbouring channels.
    """
    cos, sin = tables                                                  # (T, D/2)
    a, b = at_least_float32(x).chunk(2, dim=-1)                        # (B, H, T, D/2) each
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


class Block(nn.Module):
    """A pre-norm residual block."""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(self, x, rope):
        x = x + self.self_attn(self.input_layernorm(x), rope)
        return x + self.mlp(self.post_attention_layernorm(x))


class DenseGPT(nn.Module):
    """embedding -> blocks -> norm -> head; trained and evaluated like minidsv3's DeepSeekV3."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.activation_dtype = None             # None: that of the weights
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        for module in self.modules():
            if isinstance(module, (Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=config.initializer_range)

    def forward(self, tokens):
        """tokens (B, T) -> logits (B, T, V)."""
        return self.lm_head(self.hidden_states(tokens)[0])

    def hidden_states(self, tokens):
        """tokens (B, T) -> state after the final norm (B, T, C), and no Routing."""
        x = self.embed_tokens(tokens).to(self.activation_dtype or self.norm.weight.dtype)
        rope = self.rope_tables(tokens)
        for block in self.layers:
            x = block(x, rope)
        return self.norm(x), []

    def rope_tables(self, tokens):
        """Cosine and sine at the positions of tokens (B, T): two float32 tensors (T, D/2)."""
        width = self.config.hidden_size // self.config.num_attention_heads
        position = torch.arange(tokens.size(1), device=tokens.device).float()
        channel = torch.arange(0, width, 2, device=tokens.device).float()
        angle = position[:, None] / self.config.rope_theta ** (channel / width)  # (T, D/2)
        return angle.cos(), angle.sin()

    def loss(self, tokens, *_):
        """tokens (B, T+1): inputs and, one place later, targets -> LossTerms of the next token."""
        hidden, _ = self.hidden_states(tokens[:, :-1])                 # (B, T, C)
        return combine(next_token_loss(hidden, self.lm_head.weight, tokens[:, 1:]), [], [], 0, 0)

    def mtp_states(self, hidden, tokens):
        """There are no MTP modules: no states and no Routing."""
        return [], []

    def routers(self):
        """There are no routers."""
        return []

    def router_loads(self):
        """No load, as a training step wants it: (0, 0)."""
        return torch.zeros(0, 0, dtype=torch.long, device=self.norm.weight.device)

    def update_router_bias(self, gamma, loads=None):
        """Nothing to do without routers."""
