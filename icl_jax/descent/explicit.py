"""Descent on what a context showed, by name: which weights, by what, on which batches."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from icl_jax import checks
from icl_jax.optimizers import OptimizerConfig

TrainsName = Literal["first_kernel", "mlp", "keys_and_values", "attention", "blocks", "everything"]
BatchName = Literal["one", "full"]

#: The choices of weights that hold the kernel whose updates are compared.
MOVES_KERNEL = ("first_kernel", "mlp", "blocks", "everything")


@dataclass(frozen=True)
class ExplicitConfig:
    """How the same learner is fine-tuned on the examples that the context showed."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trains: TrainsName = field(
        default="first_kernel", metadata={"help": "the weights that descend, in every block"}
    )
    batch: BatchName = field(
        default="one",
        metadata={"help": "one example per step, in order, or full: all at every step"},
    )
    num_steps: int = field(
        default=50, metadata={"help": "of full batches; one by one there are as many as examples"}
    )
    layer_causal: bool = field(
        default=False, metadata={"help": "every layer descends on a loss of its own"}
    )

    def __post_init__(self) -> None:
        checks.one_of("ExplicitConfig", "trains", self.trains, get_args(TrainsName))
        checks.one_of("ExplicitConfig", "batch", self.batch, ("one", "full"))
        checks.positive_int("ExplicitConfig", "num_steps", self.num_steps)
