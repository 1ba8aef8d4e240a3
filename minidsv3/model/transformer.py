"""DeepSeek-V3 whole: embedding -> blocks -> norm -> head, and the terms of its training loss.

    logits = model(tokens)                       tokens (B, T) -> (B, T, V)
    terms  = model.loss(tokens)                  tokens (B, T+1) -> LossTerms
    model.update_router_bias(gamma)              once after each optimiser step

The first `first_k_dense_replace` blocks are dense, all others hold experts.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .block import Block
from .cache import LatentCache
from .experts import Experts
from .layers import Embedding, Linear, RMSNorm
from .moe import Router
from .mtp import MTP
from .objective import balance_losses, combine, mtp_losses, next_token_loss
from .rope import rope_table


class DeepSeekV3(nn.Module):
    """The network of the report, section 2, for any ModelConfig."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.activation_dtype = None     # None: that of the weights; bfloat16 is faster
        self.recompute = False           # True: run blocks again in the backward pass: less memory
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, sparse=i >= config.first_k_dense_replace)
            for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.mtp = nn.ModuleList(MTP(config) for _ in range(config.num_nextn_predict_layers))
        self.initialize()

    @torch.no_grad()
    def initialize(self):
        """Set all parameters and buffers: matrices from N(0, initializer_range^2), gains 1.

        A model made on the meta device becomes a new model by `to_empty` and then this method.
        """
        self.reset()
        if self.norm.weight.is_meta:     # nothing to draw, and torch would load its compiler for it
            return
        # Overwritten below: with this draw, a seed gives the same weights as in older runs.
        nn.Embedding.reset_parameters(self.embed_tokens)
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.weight.fill_(1)
            elif isinstance(module, (Linear, Embedding)):
                module.weight.normal_(std=self.config.initializer_range)
            elif isinstance(module, Experts):
                module.gate_up_proj.normal_(std=self.config.initializer_range)
                module.down_proj.normal_(std=self.config.initializer_range)

    def reset(self):
        """Tie the head to the embedding if the config says so; router biases and loads are 0."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        for router in self.routers():
            router.e_score_correction_bias.zero_()
            router.load.zero_()

    def forward(self, tokens, cache=None, counts=None):
        """tokens (B, T) -> logits (B, T, V); with a cache they follow the tokens it holds.

        counts: how many of the T tokens of each sequence are real; those after them are padding,
        which the cache forgets at once. None: all are real.
        """
        hidden, _ = self.hidden_states(tokens, cache, counts)
        return self.lm_head(hidden)

    def hidden_states(self, tokens, cache=None, counts=None):
        """tokens (B, T) -> state after the final norm (B, T, C), Routing of each sparse block."""
        B, T = tokens.shape
        counts = [T] * B if counts is None else [int(count) for count in counts]
        if cache is not None and not (len(counts) == B == len(cache.lengths)
                                      and all(0 <= count <= T for count in counts)):
            raise ValueError(f"counts={counts} for tokens {(B, T)} and a cache of "
                             f"{len(cache.lengths)} sequences; give each sequence 0 to {T}.")
        rope = (cache.make_room(T) if cache is not None
                else rope_table(self.config, torch.arange(T, device=tokens.device)))
        caches = None if cache is None else cache.layers
        x, routings = self.through(self.layers, self.embed(tokens), rope, caches)      # (B, T, C)
        if cache is not None:
            cache.advance(counts)
        return self.norm(x), routings

    def embed(self, tokens):
        """tokens (B, T) -> (B, T, C) in the dtype of activations."""
        x = self.embed_tokens(tokens)
        return x if self.activation_dtype is None else x.to(self.activation_dtype)

    def through(self, blocks, x, rope, caches=None):
        """x (B, T, C) through these blocks in order -> x (B, T, C), Routing of each sparse one."""
        routings = []
        for block, cache in zip(blocks, caches or [None] * len(blocks), strict=True):
            x, routing = self.run(block, x, rope, cache)
            if routing is not None:
                routings.append(routing)
        return x, routings

    def run(self, block, *inputs):
        """A block's output; with `recompute` its inner values are computed again, not kept."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def mtp_states(self, hidden, tokens):
        """Normed states of each MTP depth k, of hidden (B, T, C) and tokens (B, T).

        -> [(B, T-k, C) for each k], [Routing]. Depth k at index i joins the state of depth k-1 at i
        with token i+k, and predicts token i+k+1.
        With T = 4: depth 1 sees (h0, t1) (h1, t2) (h2, t3), depth 2 (h'0, t2) (h'1, t3).
        """
        states, routings = [], []
        for k, module in enumerate(self.mtp, start=1):
            embedded = self.embed(tokens[:, k:])                       # (B, T-k, C)
            positions = torch.arange(embedded.size(1), device=tokens.device)
            rope = rope_table(self.config, positions)
            hidden, routing = self.run(module, hidden[:, :-1], embedded, rope)
            states.append(hidden)
            routings.append(routing)
        return states, routings

    def loss(self, tokens, mtp_weight=0.3, balance_weight=1e-4, balance_over="affinity"):
        """tokens (B, T+1): T inputs and, one place later, T targets -> LossTerms.

        mtp_weight 0 leaves the MTP modules out. balance_over: see `objective.balance_losses`.
        """
        inputs, targets, head = tokens[:, :-1], tokens[:, 1:], self.lm_head.weight     # (B, T)
        hidden, routings = self.hidden_states(inputs)
        next_token = next_token_loss(hidden, head, targets)
        states, mtp_routings = self.mtp_states(hidden, inputs) if mtp_weight else ([], [])
        self.count(routings + mtp_routings)
        return combine(next_token, mtp_losses(states, head, targets),
                       balance_losses(routings + mtp_routings, balance_over),
                       mtp_weight, balance_weight)

    def count(self, routings):
        """In training, add the routings of all sparse blocks to their routers' loads."""
        if self.training:                # outside the blocks, so recomputation cannot count twice
            for router, routing in zip(self.routers(), routings):      # perhaps without MTP's
                router.load += routing.load

    def routers(self):
        """The router of each sparse block in order, the MTP modules' last."""
        return [module for module in self.modules() if isinstance(module, Router)]

    def router_loads(self):
        """Tokens sent to each expert since the last bias update: (layers, E) int64."""
        loads = [router.load for router in self.routers()]
        return torch.stack(loads) if loads else torch.zeros(
            0, self.config.n_routed_experts, dtype=torch.long, device=self.norm.weight.device)

    @torch.no_grad()
    def update_router_bias(self, gamma, loads=None):
        """Step every router's bias by these loads, (layers, E), and count anew -> the loads.

        Call once after each optimiser step, when all micro-batches are counted. loads: summed over
        the processes that train the same layers; None: the model's own.
        """
        own = self.router_loads()
        loads = own if loads is None else loads
        if loads.shape != own.shape or loads.is_floating_point():
            raise ValueError(f"loads {tuple(loads.shape)} {loads.dtype}, but the model's are "
                             f"{tuple(own.shape)} {own.dtype}; give sums of router_loads().")
        for router, load in zip(self.routers(), loads, strict=True):
            router.load.copy_(load)
            router.update_bias(gamma)
        return loads

    def count_parameters(self):
        """Parameters of the main model -> (all, activated per token); a tied matrix counts once.

        Of the routed experts of a sparse block a token activates K of E. Router biases are no
        parameters, and MTP modules are left out, since inference can drop them.
        """
        config = self.config
        total = sum(parameter.numel() for name, parameter in self.named_parameters()
                    if not name.startswith("mtp."))
        return total, total - config.num_moe_layers * config.idle_parameters

    def new_cache(self, batch, max_len):
        """An empty latent cache for `batch` sequences of up to `max_len` tokens."""
        weight = self.embed_tokens.weight
        dtype = self.activation_dtype or weight.dtype
        return LatentCache(self.config, batch, max_len, dtype, weight.device)
