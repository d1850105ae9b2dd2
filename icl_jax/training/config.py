"""How to train, in names and numbers: what goes on a command line and into a record."""

from dataclasses import dataclass, field
from typing import Literal

import optax

from icl_jax import checks
from icl_jax.dims import Array

OptimizerName = Literal["adam", "adamw", "sgd"]
OPTIMIZERS = ("adam", "adamw", "sgd")
ScheduleName = Literal["constant", "cosine"]
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class TrainingConfig:
    """An optimizer, its schedule, and how often the host looks."""

    num_steps: int = field(default=5000, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=256, metadata={"help": "fresh prompts per step"})
    optimizer: OptimizerName = field(default="adam", metadata={"help": "optax optimizer"})
    learning_rate: float = field(default=1e-3, metadata={"help": "at the end of the warm-up"})
    warmup_steps: int = field(default=20, metadata={"help": "steps of linear rise from 0"})
    schedule: ScheduleName = field(
        default="cosine", metadata={"help": "after the warm-up; cosine ends at 0"}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled; adamw only"})
    gradient_clip: float | None = field(
        default=1.0, metadata={"help": "largest global gradient norm; none: no clipping"}
    )
    seed: int = field(default=0, metadata={"help": "of the initial weights and of every batch"})
    steps_per_call: int = field(default=50, metadata={"help": "steps per dispatch to the device"})
    checkpoint_every: int = field(
        default=500, metadata={"help": "steps; taken at the end of a dispatch"}
    )

    def __post_init__(self) -> None:
        where = "TrainingConfig"
        for name in ("num_steps", "batch_size", "steps_per_call", "checkpoint_every"):
            checks.positive_int(where, name, getattr(self, name))
        checks.one_of(where, "optimizer", self.optimizer, OPTIMIZERS)
        checks.one_of(where, "schedule", self.schedule, SCHEDULES)
        checks.positive(where, "learning_rate", self.learning_rate)
        checks.non_negative(where, "weight_decay", self.weight_decay)
        checks.non_negative(where, "seed", self.seed)
        if self.gradient_clip is not None:
            checks.positive(where, "gradient_clip", self.gradient_clip)
        if not 0 <= self.warmup_steps < self.num_steps:
            raise ValueError(
                f"{where}: warmup_steps must be at least 0 and below num_steps={self.num_steps}, "
                f"got {self.warmup_steps}. Warm up for fewer steps, or train for more."
            )
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(
                f"{where}: weight_decay={self.weight_decay} does nothing with optimizer="
                f"{self.optimizer!r}; set it to 0, or take optimizer='adamw'."
            )


def make_schedule(
    config: TrainingConfig, learning_rate: Array | float | None = None
) -> optax.Schedule:
    """The learning rate after each number of steps; ``learning_rate`` replaces the configured."""
    peak = config.learning_rate if learning_rate is None else learning_rate
    warmup = config.warmup_steps
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, config.num_steps - warmup)
    else:
        after = optax.constant_schedule(peak)
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(
    config: TrainingConfig, learning_rate: Array | float | None = None
) -> optax.GradientTransformation:
    """The optax transformation that ``config`` describes: clip, then step.

    ``learning_rate`` replaces the configured one, and may be traced, which a configuration cannot.
    """
    schedule = make_schedule(config, learning_rate)
    optimizer = {
        "adam": lambda: optax.adam(schedule),
        "adamw": lambda: optax.adamw(schedule, weight_decay=config.weight_decay),
        "sgd": lambda: optax.sgd(schedule),
    }[config.optimizer]()
    if config.gradient_clip is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.gradient_clip), optimizer)
