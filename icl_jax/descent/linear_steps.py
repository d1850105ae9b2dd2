"""Explicit descent on the squared error of a linear function, from ``w = 0``.

    L(w) = 1/(2n) sum_i (x_i . w - y_i)^2      grad L(w) = -1/n X^T (y - X w)

over the ``n`` examples present. S counts steps here and P = S + 1 iterates, the start included.
Examples that are absent are never read, and without any all iterates are 0. Functions that predict
are oracles in the sense of ``closed_form``: with ``functools.partial`` for their options they go
through ``prefix_predictions``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.oracles.examples import count, present_examples, product
from icl_jax.patches.carry import varying_like

#: Of GD++: inputs, query, residuals, prediction.
_Carry = tuple[Array, Array, Array, Array]


def gradient_steps(
    inputs_ND: Array,
    targets_N: Array,
    *,
    num_steps: int,
    rate: float | Array,
    present_N: Array | None = None,
) -> Array:
    """``w_{k+1} = w_k - rate grad L(w_k)``: plain gradient descent.

    Args:
      inputs_ND: (N, D) in float32 or float64.
      targets_N: (N,).
      num_steps: how often; static.
      rate: the learning rate, a number or (); traced or not. Descent converges below
        ``2 / lambda`` with ``lambda`` the largest eigenvalue of ``X^T X / n``.
      present_N: (N,) booleans, the examples in the context.

    Returns:
      The weights (P, D): ``w_0 = 0``, then one row per step.

    Raises:
      ValueError: shapes that disagree, ``num_steps`` below 1.
      TypeError: dtypes that disagree, or are narrower than float32.

    Examples:
      >>> inputs, targets = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([2.0, 4.0])
      >>> gradient_steps(inputs, targets, num_steps=2, rate=1.0).tolist()
      [[0.0, 0.0], [1.0, 2.0], [1.5, 3.0]]
    """
    where = "gradient_steps"
    checks.positive_int(where, "num_steps", num_steps)
    inputs_ND, targets_N, present_N = present_examples(where, inputs_ND, targets_N, None, present_N)
    rate = _rate(where, "rate", rate, inputs_ND)
    rates_S = jnp.broadcast_to(rate[None], (num_steps,))
    return _descend(inputs_ND, targets_N, present_N, rates_S, jnp.multiply)


def preconditioned_steps(
    inputs_ND: Array,
    targets_N: Array,
    *,
    preconditioners_SDD: Array,
    present_N: Array | None = None,
) -> Array:
    """``w_{k+1} = w_k - A_k grad L(w_k)``: descent with a matrix for a learning rate.

    ``A = rate I`` is ``gradient_steps``; the inverse of ``X^T X / n`` gives least squares at once.

    Args:
      inputs_ND: (N, D) in float32 or float64.
      targets_N: (N,).
      preconditioners_SDD: (S, D, D), ``A_k`` of each step, from the left; not only symmetric ones.
      present_N: (N,) booleans, the examples in the context.

    Returns:
      The weights (P, D) with P = S + 1.

    Raises:
      ValueError: shapes that disagree.
      TypeError: dtypes that disagree, or are narrower than float32.

    Examples:
      >>> inputs, targets = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([2.0, 4.0])
      >>> inverse = jnp.linalg.inv(inputs.T @ inputs / 2)
      >>> preconditioned_steps(inputs, targets, preconditioners_SDD=inverse[None]).tolist()
      [[0.0, 0.0], [2.0, 2.0]]

    Source: Ahn et al. 2023 (arXiv 2306.00297), which find such steps at the minima of the training
    loss of linear transformers.
    """
    where = "preconditioned_steps"
    inputs_ND, targets_N, present_N = present_examples(where, inputs_ND, targets_N, None, present_N)
    checks.rank(where, "preconditioners_SDD", preconditioners_SDD, 3, "(S, D, D)")
    for axis in (1, 2):
        checks.axis_size(
            where,
            "preconditioners_SDD",
            preconditioners_SDD,
            axis,
            inputs_ND.shape[1],
            "the width of an input",
        )
    checks.same_dtype(where, inputs_ND=inputs_ND, preconditioners_SDD=preconditioners_SDD)
    return _descend(inputs_ND, targets_N, present_N, preconditioners_SDD, product)


def descent_prediction(
    inputs_ND: Array,
    targets_N: Array,
    query_D: Array,
    *,
    rate: float | Array,
    num_steps: int = 1,
    present_N: Array | None = None,
) -> Array:
    """``query . w_k``: what gradient descent says after ``num_steps`` steps from ``w = 0``.

    One step says ``rate/n sum_i y_i (x_i . query)``, which a layer of linear attention can compute:
    ``linear_attention.one_step_weights``.

    Args:
      inputs_ND: (N, D) in float32 or float64.
      targets_N: (N,).
      query_D: (D,).
      rate: the learning rate, a number or ().
      num_steps: how often; static.
      present_N: (N,) booleans, the examples in the context.

    Returns:
      The prediction, ().

    Raises:
      ValueError: shapes that disagree, ``num_steps`` below 1.
      TypeError: dtypes that disagree, or are narrower than float32.

    Examples:
      >>> inputs, targets = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([2.0, 4.0])
      >>> float(descent_prediction(inputs, targets, jnp.array([1.0, 1.0]), rate=1.0, num_steps=2))
      4.5

    Source: von Oswald et al. 2023 (arXiv 2212.07677), section 2.
    """
    present_examples("descent_prediction", inputs_ND, targets_N, query_D, present_N)
    weights_PD = gradient_steps(
        inputs_ND, targets_N, num_steps=num_steps, rate=rate, present_N=present_N
    )
    return product(query_D, weights_PD[-1])


def gd_plus_plus(
    inputs_ND: Array,
    targets_N: Array,
    query_D: Array,
    *,
    rate: float | Array,
    correction: float | Array,
    num_steps: int,
    present_N: Array | None = None,
) -> Array:
    """GD++: descent on residuals, and after every step inputs that are better conditioned.

    With residuals ``r`` (at first ``y``), a step at once does

        w = rate/n X^T r ;  prediction += query . w ;  r -= X w
        H = X^T X / n ;     X <- X (I - correction H) ;  query <- (I - correction H) query

    so large eigenvalues of ``H`` shrink and one rate suits all directions. All of it is linear in
    ``y``: on the original inputs it is ``preconditioned_steps`` with ``A_k = rate P_k^2``, where
    ``P_k`` is the product of the corrections so far. ``correction = 0`` is gradient descent.

    Args:
      inputs_ND: (N, D) in float32 or float64.
      targets_N: (N,).
      query_D: (D,).
      rate: the learning rate, a number or ().
      correction: gamma of the paper, a number or ().
      num_steps: how often; static.
      present_N: (N,) booleans, the examples in the context.

    Returns:
      The predictions (P,) after 0, 1, ..., ``num_steps`` steps.

    Raises:
      ValueError: shapes that disagree, ``num_steps`` below 1.
      TypeError: dtypes that disagree, or are narrower than float32.

    Examples:
      >>> inputs, targets = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([2.0, 4.0])
      >>> query = jnp.array([1.0, 1.0])
      >>> gd_plus_plus(inputs, targets, query, rate=1.0, correction=0.5, num_steps=2).tolist()
      [0.0, 3.0, 3.84375]

    Source: von Oswald et al. 2023 (arXiv 2212.07677), section 4 and its appendix; our ``H`` is a
    mean over the examples, so that ``correction`` means the same at every length.
    """
    where = "gd_plus_plus"
    checks.positive_int(where, "num_steps", num_steps)
    inputs_ND, targets_N, present_N = present_examples(
        where, inputs_ND, targets_N, query_D, present_N
    )
    rate = _rate(where, "rate", rate, query_D)
    correction = _rate(where, "correction", correction, query_D)
    num_present = jnp.maximum(count(present_N, query_D), 1)

    def step(carry: _Carry, _: None) -> tuple[_Carry, Array]:
        inputs_ND, query_D, residuals_N, prediction = carry
        weights_D = rate * product(residuals_N, inputs_ND) / num_present
        prediction += product(query_D, weights_D)
        residuals_N -= product(inputs_ND, weights_D)
        curvature_DD = product(inputs_ND.T, inputs_ND) / num_present
        inputs_ND -= correction * product(inputs_ND, curvature_DD)
        query_D -= correction * product(query_D, curvature_DD)
        return (inputs_ND, query_D, residuals_N, prediction), prediction

    start = jnp.zeros((), query_D.dtype)
    # In the loop each of the four reads all the others, and the two numbers.
    reads = (inputs_ND, query_D, targets_N, present_N, rate, correction)
    carry = varying_like((inputs_ND, query_D, targets_N, start), reads)
    _, predictions_S = jax.lax.scan(step, carry, length=num_steps)
    return jnp.concatenate([start[None], predictions_S])


def _descend(
    inputs_ND: Array,
    targets_N: Array,
    present_N: Array,
    scales: Array,
    apply: Callable[[Array, Array], Array],
) -> Array:
    """The weights (P, D) of steps ``w - apply(scale, grad L(w))``, one per entry of ``scales``."""
    num_present = jnp.maximum(count(present_N, inputs_ND), 1)

    def step(weights_D: Array, scale: Array) -> tuple[Array, Array]:
        residuals_N = targets_N - product(inputs_ND, weights_D)
        gradient_D = -product(residuals_N, inputs_ND) / num_present
        weights_D = weights_D - apply(scale, gradient_D)
        return weights_D, weights_D

    start_D = jnp.zeros(inputs_ND.shape[1], inputs_ND.dtype)
    carry_D = varying_like(start_D, inputs_ND, targets_N, present_N, scales)
    _, weights_SD = jax.lax.scan(step, carry_D, scales)
    return jnp.concatenate([start_D[None, :], weights_SD])


def _rate(where: str, name: str, value: float | Array, like: Array) -> Array:
    checks.rank(where, name, value, 0, "()")
    return jnp.asarray(value, like.dtype)
