"""Linear attention that descends: layers that take a step by construction, and the best layer.

A layer of ``AttentionStack`` maps tokens ``(x, y)`` to

    S_t  +=  1/N sum_i (q(S_t) . k(S_i)) v(S_i)        over the examples i.

With ``q = k = x`` and ``v = (-gamma x, -rate y)`` that is a step of descent on what the label slots
hold: an example's label becomes its residual, the query's becomes minus the prediction, and (GD++)
the inputs shrink along the large eigenvalues of their second moment. With ``q = A^T x`` a matrix
takes the place of the rate.

Source: von Oswald et al. 2023 (arXiv 2212.07677), propositions 1 and 2, and GD++ of section 4; Ahn
et al. 2023 (arXiv 2306.00297) for matrices in place of rates.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, Params
from icl_jax.oracles.examples import count, present_examples, product


def one_step_weights(
    input_width: int,
    *,
    rate: float | Array,
    correction: float | Array = 0.0,
    dtype: jnp.dtype | type = jnp.float32,
) -> Params:
    """The layer that takes one step of gradient descent, or of GD++.

    Args:
      input_width: D; a token has C = D + 1 channels.
      rate: the learning rate, a number or (); traced or not.
      correction: gamma of GD++, a number or (); 0 for gradient descent.
      dtype: of the kernels.

    Returns:
      The kernels of a ``LinearAttention`` with one head of C features: ``query``, ``key`` and
      ``value`` (C, 1, C), ``out`` (1, C, C).

    Raises:
      ValueError: ``input_width`` is not a positive integer.

    Examples:
      >>> model, weights = linear_attention_stack(1, num_examples=2), one_step_weights(2, rate=0.5)
      >>> examples = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([2.0, 4.0])
      >>> query = jnp.array([1.0, 1.0])
      >>> tokens = prompt_tokens(Prompt(*examples, query, jnp.array(0.0)))
      >>> in_context = model.apply({"params": stacked_weights([weights])}, tokens)
      >>> float(in_context), float(descent_prediction(*examples, query, rate=0.5))
      (1.5, 1.5)
    """
    checks.positive_int("one_step_weights", "input_width", input_width)
    identity_DD = jnp.eye(input_width, dtype=dtype)
    rate, correction = (jnp.asarray(value, dtype) for value in (rate, correction))
    return _layer(identity_DD, input_gain=-correction, label_gain=-rate)


def preconditioned_step_weights(preconditioner_DD: Array) -> Params:
    """The layer that takes the step ``w - A grad L(w)``, A from the left and of any symmetry.

    Returns:
      The kernels of a ``LinearAttention``, as ``one_step_weights``.

    Raises:
      ValueError: a preconditioner that is not square.

    Examples:
      >>> model = linear_attention_stack(1, num_examples=2)
      >>> weights = preconditioned_step_weights(jnp.diag(jnp.array([0.5, 1.0])))
      >>> inputs, targets = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([2.0, 4.0])
      >>> tokens = prompt_tokens(Prompt(inputs, targets, jnp.array([1.0, 1.0]), jnp.array(0.0)))
      >>> float(model.apply({"params": stacked_weights([weights])}, tokens))
      2.5
    """
    where = "preconditioned_step_weights"
    checks.rank(where, "preconditioner_DD", preconditioner_DD, 2, "(D, D)")
    width = preconditioner_DD.shape[0]
    checks.axis_size(where, "preconditioner_DD", preconditioner_DD, 1, width, "as many as rows")
    return _layer(preconditioner_DD, input_gain=0.0, label_gain=-1.0)


def stacked_weights(layers: Sequence[Params]) -> Params:
    """The parameters of an ``AttentionStack`` with these layers, first to last.

    Of a looped stack, which has one layer for all, it is the stack of that one.

    Examples:
      >>> steps = stacked_weights([one_step_weights(2, rate=rate) for rate in (0.5, 0.1)])
      >>> sorted(steps)
      ['layers_0', 'layers_1']
    """
    return {f"layers_{index}": layer for index, layer in enumerate(layers)}


def optimal_preconditioner(covariance_DD: Array, num_examples: int) -> Array:
    """``G^-1`` with ``G = (1 + 1/N) L + tr(L)/N I``: the step of the best single layer, (D, D).

    For inputs ``x ~ N(0, L)``, labels ``w . x`` without noise and ``w ~ N(0, I)``. With few
    examples it is careful where the inputs vary little; with many it is the inverse of ``L``, and
    the layer is least squares that knows the covariance.

    Args:
      covariance_DD: L, symmetric and positive definite.
      num_examples: N in the context.

    Raises:
      ValueError: a covariance that is not square, ``num_examples`` below 1.

    Examples:
      >>> print(optimal_preconditioner(jnp.eye(2), 2).round(3))
      [[0.4 0. ]
       [0.  0.4]]

    Source: Zhang, Frei and Bartlett 2024 (arXiv 2306.09927), theorem 4.1.
    """
    return jnp.linalg.inv(_second_moment("optimal_preconditioner", covariance_DD, num_examples))


def optimal_linear_attention_loss(covariance_DD: Array, num_examples: int) -> Array:
    """``tr(L) - tr(L^2 G^-1)``: the mean squared error of the best single layer, ().

    With ``S = X^T X / N`` and ``E S^2 = L G``, the loss ``E |L^{1/2} (I - A S)|^2`` of a symmetric
    ``A`` that commutes with ``L`` is ``tr(L - 2 L^2 A + L^2 A^2 G)``; its minimum is ``A = G^-1``.

    Raises:
      ValueError: as ``optimal_preconditioner``.

    Examples:
      >>> losses = [optimal_linear_attention_loss(jnp.eye(2), count) for count in (2, 20, 200)]
      >>> [round(float(loss), 3) for loss in losses]  # falls with the number of examples
      [1.2, 0.261, 0.03]
    """
    moment_DD = _second_moment("optimal_linear_attention_loss", covariance_DD, num_examples)
    explained_DD = jnp.linalg.solve(moment_DD, product(covariance_DD, covariance_DD))
    return jnp.trace(covariance_DD) - jnp.trace(explained_DD)


def optimal_linear_attention(
    inputs_ND: Array,
    targets_N: Array,
    query_D: Array,
    *,
    covariance_DD: Array,
    present_N: Array | None = None,
) -> Array:
    """``query . G^-1 (1/N) sum_i y_i x_i``: what the best single layer predicts; an oracle.

    Args:
      inputs_ND: (N, D) in float32 or float64.
      targets_N: (N,).
      query_D: (D,).
      covariance_DD: L of the inputs; ``G`` is that of as many examples as are present.
      present_N: (N,) booleans, the examples in the context.

    Returns:
      The prediction, ().

    Raises:
      ValueError: shapes that disagree.
      TypeError: dtypes that disagree, or are narrower than float32.

    Examples:
      >>> inputs, targets = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([2.0, 4.0])
      >>> query, covariance = jnp.array([1.0, 1.0]), jnp.eye(2)
      >>> found = optimal_linear_attention(inputs, targets, query, covariance_DD=covariance)
      >>> round(float(found), 4)
      1.2

    Source: Zhang, Frei and Bartlett 2024 (arXiv 2306.09927), theorem 4.1.
    """
    where = "optimal_linear_attention"
    inputs_ND, targets_N, present_N = present_examples(
        where, inputs_ND, targets_N, query_D, present_N
    )
    num_present = jnp.maximum(count(present_N, query_D), 1)
    moment_DD = _second_moment(where, covariance_DD, num_present)
    average_D = product(targets_N, inputs_ND) / num_present
    return product(query_D, jnp.linalg.solve(moment_DD, average_D))


def _layer(score_DD: Array, *, input_gain: float | Array, label_gain: float | Array) -> Params:
    """Kernels that score by ``x_t^T A x_i`` and carry ``(input_gain x_i, label_gain y_i)``."""
    width = score_DD.shape[0]

    def kernel(block_DD: Array, corner: float | Array) -> Array:
        return jnp.pad(block_DD, ((0, 1), (0, 1))).at[width, width].set(corner)

    identity_DD = jnp.eye(width, dtype=score_DD.dtype)
    return {
        "query": kernel(score_DD, 0.0)[:, None, :],
        "key": kernel(identity_DD, 0.0)[:, None, :],
        "value": kernel(input_gain * identity_DD, label_gain)[:, None, :],
        "out": kernel(identity_DD, 1.0)[None],
    }


def _second_moment(where: str, covariance_DD: Array, num_examples: int | Array) -> Array:
    """``G``, with which ``E (X^T X / N)^2 = L G``."""
    checks.rank(where, "covariance_DD", covariance_DD, 2, "(D, D)")
    width = covariance_DD.shape[0]
    checks.axis_size(where, "covariance_DD", covariance_DD, 1, width, "as many as rows")
    if not isinstance(num_examples, jax.Array):
        checks.positive_int(where, "num_examples", num_examples)
    trace = jnp.trace(covariance_DD)
    isotropic_DD = trace * jnp.eye(width, dtype=covariance_DD.dtype)
    return covariance_DD + (covariance_DD + isotropic_DD) / num_examples
