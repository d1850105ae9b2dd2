"""How to train, in names and numbers: what goes on a command line and into a record."""

from dataclasses import dataclass, field
from typing import Any

import optax

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.optimizers import OptimizerConfig


def usual_optimizer(
    name: str = "adam", arguments: tuple[str, ...] = (), **changes: Any
) -> OptimizerConfig:
    """What trains unless something else is asked for: warmed up, clipped, and down to 0 at the end.

    Args:
      name, arguments, changes: see ``OptimizerConfig``.
    """
    usual: dict[str, Any] = {"schedule": "cosine", "warmup_steps": 20, "gradient_clip": 1.0}
    return OptimizerConfig(name, arguments, **(usual | changes))


@dataclass(frozen=True)
class TrainingConfig:
    """An optimizer, how long it trains, and how often the host looks.

    Examples:
      >>> config = TrainingConfig(num_steps=200, learning_rate=3e-3)
      >>> config.batch_size, config.optimizer.name
      (256, 'adam')
    """

    num_steps: int = field(default=5000, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=256, metadata={"help": "fresh prompts per step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "at the end of the warm-up"})
    seed: int = field(default=0, metadata={"help": "of the initial weights and of every batch"})
    steps_per_call: int = field(default=50, metadata={"help": "steps per dispatch to the device"})
    checkpoint_every: int = field(
        default=500, metadata={"help": "steps; taken at the end of a dispatch"}
    )
    optimizer: OptimizerConfig = field(default_factory=usual_optimizer)

    def __post_init__(self) -> None:
        where = "TrainingConfig"
        for name in ("num_steps", "batch_size", "steps_per_call", "checkpoint_every"):
            checks.positive_int(where, name, getattr(self, name))
        checks.positive(where, "learning_rate", self.learning_rate)
        checks.non_negative(where, "seed", self.seed)
        make_optimizer(self)  # It may refuse the number of steps.


def make_optimizer(
    config: TrainingConfig, learning_rate: Array | float | None = None
) -> optax.GradientTransformation:
    """The optax transformation that ``config`` describes: clip, then step.

    ``learning_rate`` replaces the configured one, and may be traced, which a configuration cannot.

    Examples:
      >>> optimizer = make_optimizer(TrainingConfig(num_steps=200, learning_rate=3e-3))
      >>> params = {"kernel": jnp.ones((2, 3))}
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> updates["kernel"].shape
      (2, 3)
    """
    rate = config.learning_rate if learning_rate is None else learning_rate
    return config.optimizer.make(rate, config.num_steps)
