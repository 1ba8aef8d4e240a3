"""DeepSeek-V3 whole: embedding -> blocks -> norm -> head, and the terms of its training loss.

    logits = model(tokens)                       tokens (B, T) -> (B, T, V)
    terms  = model.loss(tokens)                  tokens (B, T+1) -> LossTerms
    model.update_router_bias(gamma)              once after each optimiser step

The first `first_k_dense_replace` blocks are dense, all others hold experts.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from .block import Block
from .cache import LatentCache
from .cross_entropy import cross_entropy
from .experts import Experts
from .layers import Linear, RMSNorm
from .moe import Router, sequence_balance
from .mtp import MTP
from .rope import rope_table


class LossTerms(NamedTuple):
    """The training loss and its parts; the parts are unweighted."""

    total: torch.Tensor              # next_token + mtp_weight * mtp + balance_weight * balance
    next_token: torch.Tensor         # mean cross-entropy [nats]
    mtp: torch.Tensor                # mean over depths of eq. 24 [nats]; 0 without modules
    balance: torch.Tensor            # sum over sparse blocks, MTP's too; 1 a block when balanced


class DeepSeekV3(nn.Module):
    """The network of the report, section 2, for any ModelConfig."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.activation_dtype = None     # None: that of the weights; bfloat16 is faster
        self.recompute = False           # True: run blocks again in the backward pass, saves memory
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, sparse=i >= config.first_k_dense_replace)
            for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.mtp = nn.ModuleList(MTP(config) for _ in range(config.num_nextn_predict_layers))
        self.initialize()

    @torch.no_grad()
    def initialize(self):
        """Draw every matrix from N(0, initializer_range^2); gains stay 1, router biases 0."""
        for module in self.modules():
            if isinstance(module, (Linear, nn.Embedding)):
                module.weight.normal_(std=self.config.initializer_range)
            elif isinstance(module, Experts):
                module.gate_up_proj.normal_(std=self.config.initializer_range)
                module.down_proj.normal_(std=self.config.initializer_range)

    def forward(self, tokens, cache=None, counts=None):
        """tokens (B, T) -> logits (B, T, V); with a cache they follow the tokens it holds.

        counts: how many of the T tokens of each sequence are real, the others behind them filling
        that the cache forgets at once; None: all.
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
        x, routings = self.embed(tokens), []                           # (B, T, C)
        for i, block in enumerate(self.layers):
            x, routing = self.run(block, x, rope, None if cache is None else cache.layers[i])
            routings.append(routing)
        if cache is not None:
            cache.advance(counts)
        return self.norm(x), [routing for routing in routings if routing is not None]

    def embed(self, tokens):
        """tokens (B, T) -> (B, T, C) in the dtype that activations shall have."""
        x = self.embed_tokens(tokens)
        return x if self.activation_dtype is None else x.to(self.activation_dtype)

    def run(self, block, *inputs):
        """A block's output, recomputed in the backward pass if memory matters more than time."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def mtp_states(self, hidden, tokens):
        """Normed states of each MTP depth k, of hidden (B, T, C) and tokens (B, T).

        -> [(B, T-k, C) for each k], [Routing]. Depth k at index i joins the state of depth k-1 at i
        with token i+k, and guesses token i+k+1.
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

        balance_over: "affinity" counts the top-K of the plain affinities, as eq. 18 is written;
        "routed" counts the experts really chosen, as the code of DeepSeek-V2 did.
        """
        inputs, targets = tokens[:, :-1], tokens[:, 1:]                # (B, T) each
        hidden, routings = self.hidden_states(inputs)
        next_token = self.cross_entropy(hidden, targets) / targets.numel()
        states, mtp_routings = self.mtp_states(hidden, inputs)
        # eq. 24 divides T-k terms by T; here x[k+1..T] are the targets of depth k.
        depths = [self.cross_entropy(state, targets[:, k:]) / targets.numel()
                  for k, state in enumerate(states, start=1)]
        mtp = torch.stack(depths).mean() if depths else next_token.new_zeros(())  # eq. 25 / lambda
        balance = next_token.new_zeros(())
        for router, routing in zip(self.routers(), routings + mtp_routings, strict=True):
            chosen = routing.experts
            if balance_over == "affinity":
                chosen = routing.affinity.detach().topk(router.top_k, dim=-1).indices
            balance = balance + sequence_balance(routing.affinity, chosen).mean()
            if self.training:            # outside the blocks, so recomputation cannot count twice
                router.load += routing.load
        total = next_token + mtp_weight * mtp + balance_weight * balance
        return LossTerms(total, next_token, mtp, balance)

    def cross_entropy(self, hidden, targets):
        """Summed -log p of targets (B, T) under the head's logits for hidden (B, T, C) [nats]."""
        return cross_entropy(hidden.flatten(0, 1), self.lm_head.weight, targets.flatten())

    def routers(self):
        """The router of each sparse block in order, the MTP modules' last."""
        return [module for module in self.modules() if isinstance(module, Router)]

    @torch.no_grad()
    def update_router_bias(self, gamma):
        """Step every router's bias by the load since the last call -> that load, (layers, E).

        Call once after each optimiser step, when all micro-batches are counted; with
        torch.distributed the load is summed over all processes first.
        """
        if not self.routers():
            return torch.zeros(0, self.config.n_routed_experts, dtype=torch.long,
                               device=self.norm.weight.device)
        loads = torch.stack([router.load for router in self.routers()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(loads)
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
