"""Descent as an experiment describes it: which weights, by which optimiser, on which batches."""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.tools.flags import option
from icl_jax import checks
from icl_jax.descent.optimizers import OptimizerConfig
from icl_jax.descent.parameters import SELECTIONS
from icl_jax.dims import Array, Params
from icl_jax.measures.nulls import random_vector

TrainsName = Literal["first_kernel", "mlp", "keys_and_values", "attention", "blocks", "everything"]
BatchName = Literal["one", "full"]

#: The choices of weights that hold the kernel whose updates are compared.
MOVES_KERNEL = ("first_kernel", "mlp", "blocks", "everything")


@dataclass(frozen=True)
class ExplicitConfig:
    """How the same learner is fine-tuned on the examples that the context showed."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trains: TrainsName = option("first_kernel", "the weights that descend, in every block")
    batch: BatchName = option("one", "one example per step, in order, or full: all at every step")
    num_steps: int = option(50, "of full batches; one by one there are as many as examples")
    layer_causal: bool = option(False, "every layer descends on a loss of its own")

    def __post_init__(self) -> None:
        checks.one_of("ExplicitConfig", "trains", self.trains, tuple(SELECTIONS))
        checks.one_of("ExplicitConfig", "batch", self.batch, ("one", "full"))
        checks.positive_int("ExplicitConfig", "num_steps", self.num_steps)


def kernel_of(block_params: Params) -> Array:
    """The first kernel (D, H) of a block's MLP; the gate of a gated one."""
    mlp = block_params["mlp"]
    return mlp["gate" if "gate" in mlp else "layer_0"]["kernel"]


def random_points(key: Array, points: Params) -> Params:
    """A walk whose every point is as far from the start as that of ``points``, leaf by leaf.

    Kernels move by a random outer product of the same norm, as a rank-1 update does; what is no
    matrix moves in a random direction.
    """
    leaves, tree = jax.tree.flatten(points)

    def moved(leaf_key: Array, leaf: Array) -> Array:
        start, distances = leaf[0], leaf - leaf[:1]
        rows = distances.reshape(len(leaf), start.shape[0] if start.ndim > 1 else 1, -1)

        def one(point_key: Array, row: Array) -> Array:
            left_key, right_key = jax.random.split(point_key)
            length = jnp.linalg.norm(row)
            right = random_vector(right_key, jnp.full_like(row[0], 1.0))
            left = random_vector(left_key, jnp.full_like(row[:, 0], 1.0))
            product = left[:, None] * right[None, :]
            return (product * (length / jnp.linalg.norm(product))).reshape(start.shape)

        return start[None] + jax.vmap(one)(jax.random.split(leaf_key, len(leaf)), rows)

    keys = jax.random.split(key, len(leaves))
    moves: list[Any] = [moved(k, leaf) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, moves)
