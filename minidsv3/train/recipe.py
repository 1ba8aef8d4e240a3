"""Every number of a training run, and the schedules that follow from them (report, section 4.2).

Schedules are functions of *progress*, the share of the run's tokens that are trained, since the
report gives them in tokens: of its 14.8T, the learning rate holds until 10T, falls along a cosine
until 14.3T, then stays low; the MTP weight drops at 10T; the bias speed is zero after 14.3T; the
batch grows over the first 469B. The same shares serve a run of minutes.
"""

import dataclasses
import math
from dataclasses import dataclass

from ..command import UserError
from ..config import check_types, replace_fields


@dataclass(frozen=True)
class TrainConfig:
    """The recipe of one run. Raises UserError that names the field, its value and a remedy."""

    data: str = "python-stdlib"                  # or python-packages, a path, a URL, hf:NAME
    start: str = ""                              # checkpoint whose weights and tokenizer to take
    window: int = 256                            # tokens per sequence
    steps: int = 1500                            # optimiser steps
    batch_size: int = 8                          # sequences per step
    micro_batch: int = 8                         # sequences at once; halve it if memory runs out
    batch_start: int = 8                         # sequences per step at the beginning ...
    batch_ramp: float = 0.469 / 14.8             # ... growing to batch_size over this share
    splits: str = "wide"                         # of a new tokenizer, or released; see its file
    fim_rate: float = 0.1                        # share of documents in fill-in-the-middle form
    retrieval: float = 0.0                       # share of windows with notes to look up, see data

    optimizer: str = "adamw"                     # adamw, or muon (adamw for all but matrices)
    learning_rate: float = 3e-3                  # AdamW's highest
    muon_learning_rate: float = 1e-2             # Muon's highest
    expert_every: int = 1                        # Muon moves the experts in one of so many steps
    warmup: float = 0.04                         # share of linear warm-up; the report: 2,000 steps
    constant_until: float = 10 / 14.8            # share at the highest rate
    cosine_until: float = 14.3 / 14.8            # end of the fall to low_rate
    low_rate: float = 0.1                        # of the highest; the report: 2.2e-5 of 2.2e-4 ...
    last_from: float = 14.633 / 14.8             # ... and for the last 167B ...
    last_rate: float = 7.3e-6 / 2.2e-4           # ... 7.3e-6
    beta1: float = 0.9                           # AdamW
    beta2: float = 0.95
    weight_decay: float = 0.1                    # on matrices only
    clip_norm: float = 1.0                       # of the whole gradient
    ema_decay: float = 0.99                      # of the averaged weights; the report gives none

    mtp_weight: float = 0.3                      # lambda, until mtp_drop_at ...
    mtp_weight_late: float = 0.1                 # ... and after it
    mtp_drop_at: float = 10 / 14.8
    mtp_every: int = 1                           # MTP is trained in one of so many steps
    balance_weight: float = 1e-4                 # alpha of eq. 17; the released file says 0.001
    balance_over: str = "affinity"               # what eq. 18 counts: affinity (report) or routed
    gamma: float = 1e-3                          # speed of the router bias ...
    gamma_until: float = 14.3 / 14.8             # ... until then, 0 after

    precision: str = "auto"                      # of activations: auto, fp32, bf16; fp8: products
    recompute: bool = False                      # recompute blocks in the backward pass
    eval_every: int = 250                        # steps between quick evaluations
    save_every: int = 250                        # steps between checkpoints
    seed: int = 0

    def __post_init__(self):
        check_types(self)
        for name in ("window", "steps", "batch_size", "micro_batch", "batch_start", "expert_every",
                     "mtp_every", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed={self.seed} must be between 0 and 2^63 - 1, for instance 0.")
        if self.batch_start > self.batch_size:
            raise UserError(f"batch_start={self.batch_start} is above batch_size="
                            f"{self.batch_size}; choose 1 to {self.batch_size}.")
        for name, choices in (("optimizer", ("adamw", "muon")),
                              ("precision", ("auto", "fp32", "bf16", "fp8")),
                              ("splits", ("wide", "released")),
                              ("balance_over", ("affinity", "routed"))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)!r} is unknown; "
                                f"choose {' or '.join(choices)}.")
        for name in ("learning_rate", "muon_learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name}={getattr(self, name)} must be a number above 0.")
        for name in ("batch_ramp", "fim_rate", "retrieval", "warmup", "constant_until",
                     "cosine_until", "low_rate", "last_from", "last_rate", "beta1", "beta2",
                     "ema_decay", "mtp_drop_at", "gamma_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} is a share; choose 0 to 1.")
        for name in ("beta1", "beta2"):
            if getattr(self, name) == 1:
                raise UserError(f"{name}=1.0 would never forget a gradient; choose below 1, for "
                                "instance 0.9.")
        for name in ("weight_decay", "mtp_weight", "mtp_weight_late", "balance_weight", "gamma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}={getattr(self, name)} is negative; 0 switches it off.")
        if not self.warmup <= self.constant_until <= self.cosine_until <= self.last_from:
            raise UserError(f"warmup={self.warmup}, constant_until={self.constant_until}, "
                            f"cosine_until={self.cosine_until}, last_from={self.last_from} "
                            "must be in rising order.")

    @classmethod
    def preset(cls, name):
        """The recipe that goes with the model preset of that name."""
        if name not in PRESETS:
            raise UserError(f"no training recipe for preset {name!r}; "
                            f"choose one of {', '.join(PRESETS)}.")
        return cls(**PRESETS[name])

    def replace(self, **changes):
        """A copy with some fields changed, checked again; unknown names are errors."""
        return replace_fields(self, changes)

    def to_dict(self):
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


PRESETS = {
    "tiny": dict(optimizer="muon", steps=1400, gamma=4e-3, expert_every=2, mtp_every=2),
    "short": dict(optimizer="muon", steps=600, gamma=4e-3, window=64, batch_size=32,
                  micro_batch=32, batch_start=32, retrieval=0.5),
    "small": dict(optimizer="muon", window=1024, steps=2000, batch_size=64, micro_batch=4,
                  batch_start=16, warmup=0.02, ema_decay=0.999, eval_every=500, save_every=500),
}


def batch_size_at(config, step):
    """Sequences in optimiser step `step` (0-based): a straight ramp, then constant."""
    ramp = config.batch_ramp * config.steps
    share = 1.0 if step >= ramp else step / ramp
    return round(config.batch_start + share * (config.batch_size - config.batch_start))


def batch_sizes(config):
    """Sequences of every step of the run."""
    return [batch_size_at(config, step) for step in range(config.steps)]


def learning_rate_factor(config, progress):
    """Share of the highest learning rate at a share of the run's tokens: five phases."""
    if progress < config.warmup:
        return progress / config.warmup
    if progress <= config.constant_until:
        return 1.0
    if progress <= config.cosine_until:
        fall = (progress - config.constant_until) / (config.cosine_until - config.constant_until)
        return config.low_rate + 0.5 * (1 - config.low_rate) * (1 + math.cos(math.pi * fall))
    return config.low_rate if progress <= config.last_from else config.last_rate


def mtp_weight_at(config, progress, number=0):
    """lambda of eq. 25 in step `number`, from 0 on: 0.3, then 0.1.

    With mtp_every = n it is n times that in every n-th step, and 0 in the others.
    """
    if (number + 1) % config.mtp_every:
        return 0.0
    weight = config.mtp_weight if progress <= config.mtp_drop_at else config.mtp_weight_late
    return config.mtp_every * weight


def gamma_at(config, progress):
    """Speed of the router bias: constant, then 0, so that the biases stay as they are."""
    return config.gamma if progress <= config.gamma_until else 0.0
