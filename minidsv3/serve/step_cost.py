"""How long one step takes on a unit: a group of GPUs that holds one copy of the model.

All GPUs of a unit work in lockstep, because every MoE layer exchanges tokens between all of them. A
step reads some prompt tokens, or decodes one token for each of some sequences, or does both (Work).
In every MoE layer there are four parts: attention, dispatch, experts, combine. A computation takes

    max(FLOPs / speed, bytes of weights or latents / bandwidth of the memory)

and a transfer takes its bytes / bandwidth of the network, plus a latency (report, section 3.4).
With two micro-batches, a transfer of one runs beside a computation of the other. Nothing here was
fitted: every number is in `Assumptions`, with its source. A prompt is read by as many GPUs as
share its heads; all else is divided evenly among the GPUs. `pools.py` runs many steps.
"""

import math
from typing import NamedTuple

from ..measure import accounting, cost


class Assumptions(NamedTuple):
    """Every number that is assumed. A GPU is an H800; section numbers are those of the report."""

    bf16: float = cost.H800_PEAK               # dense products [FLOP/s]
    fp8: float = 2 * cost.H800_PEAK            # the same in FP8
    memory: float = 80e9                       # [B]; the data sheet
    bandwidth: float = 3.35e12                 # of that memory [B/s]; the data sheet
    nvlink: float = 160e9                      # inside a node, effective [B/s]; section 3.2.2
    infiniband: float = 50e9                   # between nodes, per GPU, effective; section 3.2.2
    gpus_per_node: int = 8                     # section 3.1
    communication_sms: float = 20 / 132        # what two hops take from computing; section 3.2.2
    dollars_per_hour: float = 2                # rent of one GPU; section 1

    # Round numbers that we chose before any comparison with the real service.
    compute_share: float = 0.6                 # of the peak that products reach
    bandwidth_share: float = 0.8               # of the memory's bandwidth
    imbalance: float = 1.2                     # load of the busiest GPU's experts / mean load
    launch: float = 20e-6                      # fixed time of a computing part of a layer [s]
    latency: float = 20e-6                     # fixed time of a dispatch, combine or handover [s]
    gap: float = 1e-3                          # between two steps: sampling, scheduling [s]
    reserve: float = 0.1                       # of the memory: activations, buffers


ASSUMED = Assumptions()


class Layout(NamedTuple):
    """How a unit divides the model.

    tensor: GPUs that share the heads of attention. routed: experts on each GPU and layer, redundant
    ones included. shared_as_routed: the shared expert is one more routed expert; otherwise every
    GPU has it. two_hops: first to another node, then inside it; otherwise directly. drafts: tokens
    that the MTP module drafts per step.
    """

    gpus: int
    routed: int
    tensor: int = 1
    shared_as_routed: bool = False
    two_hops: bool = True
    drafts: int = 0


class Work(NamedTuple):
    """What a step does, summed over the GPUs of a unit.

    A chunk of n prompt tokens after c tokens of the same prompt is new=n, earlier=c and
    pairs=n*c + n*n/2. Of the earlier tokens there are only latents: their keys and values are
    expanded again, unless the absorbed form is faster (as `model/mla.py` decides).
    """

    new: int = 0                               # prompt tokens to compute
    longest: int = 0                           # of them, those of the longest chunk
    earlier: int = 0
    pairs: float = 0                           # (query, key) pairs of causal attention
    sequences: int = 0                         # to decode by one token, or more with drafts
    context: float = 0                         # cached tokens of these sequences, summed


class Parts(NamedTuple):
    """Seconds of the parts of a layer, for one micro-batch; dense replaces the last three."""

    attention: float
    dispatch: float
    experts: float
    combine: float
    dense: float
    head: float                                # not of a layer; again for every draft


class StepCost:
    """The seconds of a step: StepCost(config, layout)(work).

    `parts` gives those of a micro-batch in one layer. `room` is how many tokens of cache fit into
    the unit. Raises ValueError for a layout whose GPUs do not hold all experts.
    """

    def __init__(self, config, layout, assume=ASSUMED):
        if layout.gpus * layout.routed < config.n_routed_experts + layout.shared_as_routed:
            raise ValueError(
                f"gpus={layout.gpus} with routed={layout.routed} hold fewer experts than the "
                f"model's {config.n_routed_experts}; choose more of either.")
        self.config, self.layout, self.assume = config, layout, assume
        # Seconds of a multiply-add and of a byte, which is a weight in FP8.
        share = assume.compute_share * (1 - assume.communication_sms * layout.two_hops)
        self.fp8, self.bf16 = 2 / (share * assume.fp8), 2 / (share * assume.bf16)
        self.byte = 1 / (assume.bandwidth_share * assume.bandwidth)
        # An MTP module is one more MoE layer, and one more use of the head.
        self.sparse_layers = config.num_moe_layers + layout.drafts
        self.dense_layers = config.num_hidden_layers - config.num_moe_layers
        self.tokens_per_sequence = 1 + layout.drafts
        dense, sparse = (accounting.block_parameters(config, kind) for kind in (False, True))
        self.attention, self.dense = dense["attention"], dense["dense_ffn"]
        self.shared = 0 if layout.shared_as_routed else sparse["shared_experts"]
        expert = sparse["routed_experts"] // config.n_routed_experts
        self.copies = config.num_experts_per_tok + layout.shared_as_routed    # of a token
        self.experts_held = layout.routed * expert + self.shared              # on a GPU, a layer
        self.experts_used = assume.imbalance * self.copies * expert + self.shared    # by a token
        self.head = config.vocab_size * config.hidden_size
        self.expansion = cost.expansion(config)
        self.expanded, self.absorbed = cost.expanded_width(config), cost.absorbed_width(config)
        self.latent_bytes = cost.cache_bytes(config)["mla"] / config.num_hidden_layers
        self.row = config.hidden_size * self.copied_byte()
        self.room = self.cache_room()

    def copied_byte(self):
        """Seconds in which a GPU sends one byte for each copy of a token.

        Directly, every copy for another node goes over InfiniBand. With two hops one copy goes to
        each of the token's nodes, and from there all copies go over NVLink at the same time.
        """
        assume, gpus = self.assume, self.layout.gpus
        elsewhere = max(0, 1 - assume.gpus_per_node / gpus)            # share of other nodes
        if not self.layout.two_hops:
            return self.copies * elsewhere / assume.infiniband
        nodes = min(self.config.topk_group, math.ceil(gpus / assume.gpus_per_node))
        return max(nodes * elsewhere / assume.infiniband, self.copies / assume.nvlink)

    def cache_room(self):
        """Tokens of cache that fit into the unit beside its weights.

        Weights are FP8, embedding and head bfloat16. GPUs that share heads all need the latents.
        """
        layers = self.dense_layers + self.sparse_layers
        weights = (layers * self.attention / self.layout.tensor + self.dense_layers * self.dense
                   + self.sparse_layers * self.experts_held + 2 * 2 * self.head)
        free = (1 - self.assume.reserve) * self.assume.memory - weights
        return int(free * self.layout.gpus / (layers * self.latent_bytes * self.layout.tensor))

    def __call__(self, work):
        """Seconds of a step, with one micro-batch or with two, whichever is faster."""
        return min(self.step(work, 1), self.step(work, 2))

    def step(self, work, micro_batches):
        """Seconds of a step that is divided into 1 or 2 micro-batches."""
        parts = self.parts(work, micro_batches)
        attention, dispatch, experts, combine, dense, head = parts
        if micro_batches == 1:
            sparse = attention + dispatch + experts + combine
        else:
            sparse = sum(max(pair) for pair in self.slots(parts))
        return (self.assume.gap + self.sparse_layers * sparse
                + micro_batches * (self.dense_layers * (attention + dense)
                                   + self.tokens_per_sequence * head))

    @staticmethod
    def slots(parts):
        """What runs at the same time in an MoE layer: (part of one micro-batch, of the other).

        Both go through attention, dispatch, experts and combine. The second is one part behind the
        first, and both go on to their next parts together.
        """
        attention, dispatch, experts, combine, *_ = parts
        return ((attention, combine), (dispatch, attention), (experts, dispatch),
                (combine, experts))

    def parts(self, work, micro_batches):
        """Parts of a micro-batch that is an equal share of the step, on the busiest GPU."""
        layout, launch, latency = self.layout, self.assume.launch, self.assume.latency
        share = 1 / (layout.gpus * micro_batches)
        # A chunk stays on the GPUs that share its heads: few long chunks do not divide evenly.
        busiest = max(1, work.longest * layout.gpus / layout.tensor / work.new) if work.new else 1
        read, decoded = work.new * share, work.sequences * self.tokens_per_sequence * share
        tokens = busiest * read + decoded                              # of one GPU

        projections = max(tokens * self.attention * self.fp8,
                          self.attention / layout.tensor * self.byte)
        reading = busiest * share * min(                               # expanded, or absorbed
            work.earlier * self.expansion * self.fp8 + work.pairs * self.expanded * self.bf16,
            work.pairs * self.absorbed * self.bf16)
        # Decoding is absorbed: each latent is read once for all heads and drafts.
        decoding = share * work.context * max(
            self.absorbed * self.tokens_per_sequence * self.bf16,
            layout.tensor * self.latent_bytes * self.byte)
        # With shared heads, tokens are gathered before attention and summed after it, in bfloat16.
        gathering = (2 * (layout.tensor - 1) * tokens * 2 * self.config.hidden_size
                     / self.assume.nvlink)
        return Parts(
            attention=launch + projections + reading + decoding + gathering,
            dispatch=latency + tokens * self.row * (1 + 4 / 128),      # FP8, one scale per 128
            experts=launch + max((read + decoded) * self.experts_used * self.fp8,
                                 self.experts_held * self.byte),
            combine=latency + tokens * self.row * 2,                   # bfloat16
            dense=launch + max(tokens * self.dense * self.fp8, self.dense * self.byte),
            head=max(decoded * self.head * self.bf16, 2 * self.head * self.byte))
