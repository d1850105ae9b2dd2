"""Linear functions of Gaussian inputs, isotropic or with a given covariance, or of uniform ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.tasks.prompt import Prompt, check_sample, noisy_prompt

#: Tuples, so that a task stays hashable: the D variances of independent coordinates, or D rows.
Covariance = tuple[float, ...] | tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LinearRegression:
    """``y = w . x + noise`` with ``w ~ N(0, weight_std^2 I)`` and ``x ~ N(0, covariance)``.

    The examples carry the noise, the query's target does not: a perfect predictor has loss zero.

    Attributes:
      input_width: D.
      noise_std: standard deviation of the noise on the examples' labels.
      covariance: of the inputs; None is the identity, D numbers are its diagonal (the eigenvalues
        of a skewed but axis-aligned distribution), D rows of D numbers the whole matrix. It may be
        singular: inputs then lie in a subspace.
      weight_std: standard deviation of each weight.
      input_range: when given, inputs are uniform on ``[-input_range, input_range]`` in every
        coordinate (von Oswald et al., arXiv 2212.07677, take 1), and have no covariance.

    Raises:
      ValueError: a size, a standard deviation or the covariance is not what it has to be.
      TypeError: the covariance is not a tuple.

    Source: Garg et al. 2022 (arXiv 2208.01066), sections 3 and 4; their code adds the noise to the
    label of the query as well, which raises every loss by ``noise_std^2``. Dherin et al. 2025
    (arXiv 2507.16003), section 4, is the noiseless isotropic case.
    """

    input_width: int
    noise_std: float = 0.0
    covariance: Covariance | None = None
    weight_std: float = 1.0
    input_range: float | None = None

    def __post_init__(self) -> None:
        checks.positive_int("LinearRegression", "input_width", self.input_width)
        checks.non_negative("LinearRegression", "noise_std", self.noise_std)
        checks.positive("LinearRegression", "weight_std", self.weight_std)
        if self.covariance is not None:
            _check_covariance(self.covariance, self.input_width)
        if self.input_range is not None:
            checks.positive("LinearRegression", "input_range", self.input_range)
            if self.covariance is not None:
                raise ValueError(
                    f"LinearRegression: input_range={self.input_range} is for uniform inputs, "
                    "which take no covariance; leave one of the two out."
                )

    def sample(self, key: Array, *, num_examples: int, dtype: Any = jnp.float32) -> Prompt:
        """Draws weights, inputs and noise."""
        return self.sample_at(key, num_examples=num_examples, dtype=dtype)

    def sample_at(
        self,
        key: Array,
        *,
        num_examples: int,
        dtype: Any = jnp.float32,
        move: Callable[[Array], Array] = lambda inputs_TD: inputs_TD,
    ) -> Prompt:
        """As ``sample``, at inputs (T, D), the query last, that ``move`` has moved."""
        check_sample("LinearRegression.sample", num_examples, dtype)
        inputs_key, weights_key, noise_key = jax.random.split(key, 3)
        highest = jax.lax.Precision.HIGHEST
        shape = (num_examples + 1, self.input_width)
        if self.input_range is None:
            inputs_TD = jax.random.normal(inputs_key, shape, dtype)
        else:
            end = self.input_range
            inputs_TD = jax.random.uniform(inputs_key, shape, dtype, -end, end)
        if self.covariance is not None:
            root_DD = jnp.asarray(_square_root(self.covariance), dtype)
            inputs_TD = jnp.matmul(inputs_TD, root_DD, precision=highest)
        inputs_TD = move(inputs_TD)
        weights_D = self.weight_std * jax.random.normal(weights_key, (self.input_width,), dtype)
        values_T = jnp.matmul(inputs_TD, weights_D, precision=highest)
        return noisy_prompt(noise_key, inputs_TD, values_T, self.noise_std)


def _check_covariance(covariance: Covariance, width: int) -> None:
    where = "LinearRegression: covariance"
    entries = tuple | float | int | np.number
    if not isinstance(covariance, tuple) or not all(isinstance(e, entries) for e in covariance):
        raise TypeError(
            f"{where} must be a tuple of numbers or of tuples, so that the task can be hashed, got "
            f"{covariance!r}. Convert an array with tuple(variances.tolist()) or "
            "tuple(map(tuple, matrix.tolist()))."
        )
    shapes = [np.shape(entry) for entry in covariance]
    if shapes not in ([()] * width, [(width,)] * width):
        raise ValueError(
            f"{where} must have {width} numbers or {width} rows of {width} numbers (input_width), "
            f"got {len(covariance)} entries of shapes {shapes}."
        )
    matrix_DD = _matrix(covariance)
    if not np.all(np.isfinite(matrix_DD)) or not np.allclose(matrix_DD, matrix_DD.T, atol=0.0):
        raise ValueError(f"{where} must be finite and symmetric, got {covariance}.")
    spectrum_D = np.linalg.eigvalsh(matrix_DD)
    if spectrum_D[0] < -_rounding(spectrum_D):
        raise ValueError(
            f"{where} must be positive semi-definite, got the eigenvalue {spectrum_D[0]:.3g}."
        )


def _matrix(covariance: Covariance) -> np.ndarray:
    array = np.array(covariance, np.float64)
    return np.diag(array) if array.ndim == 1 else array


def _square_root(covariance: Covariance) -> np.ndarray:
    """The symmetric root, at trace time; unlike a Cholesky factor it exists when singular."""
    spectrum_D, vectors_DD = np.linalg.eigh(_matrix(covariance))
    return np.matmul(vectors_DD * np.sqrt(np.maximum(spectrum_D, 0.0)), vectors_DD.T)


def _rounding(spectrum_D: np.ndarray) -> float:
    """How far below zero rounding puts an eigenvalue that is zero."""
    return float(10 * len(spectrum_D) * np.finfo(np.float64).eps * np.max(np.abs(spectrum_D)))
