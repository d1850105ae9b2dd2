"""Decision trees with random splits and random leaves, walked without a branch."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.tasks.prompt import Prompt, check_sample, noisy_prompt


@dataclass(frozen=True)
class DecisionTree:
    """A full binary tree of comparisons ``x[c] > 0``; the leaf that an input reaches is its value.

    The coordinate ``c`` of every inner node is uniform over the D coordinates (one may occur twice
    on a path), leaves and inputs are standard Gaussian.

    Attributes:
      input_width: D.
      depth: comparisons on every path; the tree has ``2^depth`` leaves.
      noise_std: standard deviation of the noise on the examples' labels.

    Raises:
      ValueError: a size or the noise is not what it has to be.

    Source: Garg et al. 2022 (arXiv 2208.01066), section 5 (depth 4, 20 coordinates).
    """

    input_width: int
    depth: int = 4
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        checks.positive_int("DecisionTree", "input_width", self.input_width)
        checks.positive_int("DecisionTree", "depth", self.depth)
        checks.non_negative("DecisionTree", "noise_std", self.noise_std)

    def sample(self, key: Array, *, num_examples: int, dtype: Any = jnp.float32) -> Prompt:
        """Draws inputs, comparisons, leaves, and noise."""
        check_sample("DecisionTree.sample", num_examples, dtype)
        inputs_key, splits_key, leaves_key, noise_key = jax.random.split(key, 4)
        inputs_TD = jax.random.normal(inputs_key, (num_examples + 1, self.input_width), dtype)
        num_leaves = 2**self.depth
        splits = jax.random.randint(splits_key, (num_leaves - 1,), 0, self.input_width, jnp.int32)
        leaves = jax.random.normal(leaves_key, (num_leaves,), dtype)
        values_T = jax.vmap(tree_value, in_axes=(None, None, 0))(splits, leaves, inputs_TD)
        return noisy_prompt(noise_key, inputs_TD, values_T, self.noise_std)


def tree_value(splits: Array, leaves: Array, input_D: Array) -> Array:
    """The leaf that one input reaches: right where its coordinate is positive, left otherwise.

    Args:
      splits: (2^depth - 1,) integers, the coordinate that each inner node compares with zero, in
        heap order: the root first, the children of node ``i`` at ``2 i + 1`` and ``2 i + 2``.
      leaves: (2^depth,), the leaves' values from left to right.
      input_D: (D,).

    Raises:
      ValueError: the number of leaves is not a power of two, or not one more than that of splits.
    """
    num_leaves = leaves.shape[0]
    depth = num_leaves.bit_length() - 1
    if num_leaves != 2**depth or splits.shape[0] != num_leaves - 1:
        raise ValueError(
            "tree_value: a full tree has 2^depth leaves and 2^depth - 1 splits, got "
            f"{num_leaves} leaves and {splits.shape[0]} splits."
        )
    node = jnp.zeros((), splits.dtype)
    for _ in range(depth):
        node = 2 * node + 1 + (input_D[splits[node]] > 0).astype(node.dtype)
    return leaves[node - (num_leaves - 1)]
