"""Prompts unlike those of the training: linear regression on inputs that are not isotropic normal.

A shift maps isotropic normal inputs (T, D), the query last, to others; the labels are then those of
the same kind of linear function. A learner that has found an algorithm goes on; one that has
learned the distribution does not.

Source: Garg et al. 2022 (arXiv 2208.01066), section 4.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.tasks.linear import LinearRegression
from icl_jax.tasks.prompt import Prompt

#: ``shift(key, inputs_TD) -> inputs_TD``.
Shift = Callable[[Array, Array], Array]


def skewed(key: Array, inputs_TD: Array) -> Array:
    """Variances in proportion to ``1 / i^2``, their sum that of isotropic inputs."""
    width = inputs_TD.shape[1]
    variances_D = 1 / jnp.arange(1, width + 1, dtype=inputs_TD.dtype) ** 2
    return inputs_TD * jnp.sqrt(variances_D * width / jnp.sum(variances_D))[None, :]


def half_subspace(key: Array, inputs_TD: Array) -> Array:
    """All inputs in one random subspace of half the dimensions."""
    return _project(inputs_TD, _half(key, inputs_TD))


def orthogonal_query(key: Array, inputs_TD: Array) -> Array:
    """The examples in one half of the space, the query in the rest: they say nothing about it."""
    basis_DR = _half(key, inputs_TD)
    inside_TD = _project(inputs_TD, basis_DR)
    return inside_TD.at[-1].set(inputs_TD[-1] - inside_TD[-1])


def orthants(key: Array, inputs_TD: Array) -> Array:
    """All examples in one random orthant, the query in another (by chance the same)."""
    signs_2D = jax.random.rademacher(key, (2, inputs_TD.shape[1]), inputs_TD.dtype)
    signed_TD = jnp.abs(inputs_TD) * signs_2D[:1]
    return signed_TD.at[-1].set(jnp.abs(inputs_TD[-1]) * signs_2D[1])


def scaled(factor: float) -> Shift:
    """All inputs longer (or shorter) by a factor."""
    checks.positive("scaled", "factor", factor)
    return lambda key, inputs_TD: factor * inputs_TD


SHIFTS: Mapping[str, Shift] = MappingProxyType(
    {
        "skewed": skewed,
        "half_subspace": half_subspace,
        "orthogonal_query": orthogonal_query,
        "orthants": orthants,
        "scaled_half": scaled(0.5),
        "scaled_twice": scaled(2.0),
    }
)


@dataclass(frozen=True)
class ShiftedLinearRegression:
    """``LinearRegression`` of isotropic normal inputs that a shift then moves.

    Attributes:
      input_width: D; at least 2, so that half of it is a subspace.
      shift: one of ``SHIFTS``.
      noise_std: standard deviation of the noise on the examples' labels.

    Raises:
      ValueError: an unknown shift, or a size that cannot be.

    Examples:
      >>> task = ShiftedLinearRegression(input_width=4, shift="orthogonal_query")
      >>> prompt = task.sample(jax.random.key(0), num_examples=8)
      >>> similar = prompt.inputs_ND @ prompt.query_D  # no example says anything about the query
      >>> bool(jnp.allclose(similar, 0, atol=1e-5))
      True
    """

    input_width: int
    shift: str
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        checks.one_of("ShiftedLinearRegression", "shift", self.shift, tuple(SHIFTS))
        if self.input_width < 2:
            raise ValueError(
                f"ShiftedLinearRegression: input_width must be at least 2, got {self.input_width}."
            )
        self._base()

    def sample(self, key: Array, *, num_examples: int, dtype: Any = jnp.float32) -> Prompt:
        """Draws inputs and moves them, then weights and noise."""
        key, shift_key = jax.random.split(key)
        return self._base().sample_at(
            key,
            num_examples=num_examples,
            dtype=dtype,
            move=lambda inputs_TD: SHIFTS[self.shift](shift_key, inputs_TD),
        )

    def _base(self) -> LinearRegression:
        return LinearRegression(self.input_width, noise_std=self.noise_std)


def _half(key: Array, inputs_TD: Array) -> Array:
    """An orthonormal basis (D, R) of a uniformly random subspace of R = D // 2 dimensions."""
    width = inputs_TD.shape[1]
    directions_DR = jax.random.normal(key, (width, width // 2), inputs_TD.dtype)
    return jnp.linalg.qr(directions_DR)[0]


def _project(inputs_TD: Array, basis_DR: Array) -> Array:
    highest = jax.lax.Precision.HIGHEST
    return jnp.matmul(
        jnp.matmul(inputs_TD, basis_DR, precision=highest), basis_DR.T, precision=highest
    )
