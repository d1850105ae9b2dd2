"""How alike two ways of learning leave the inside of a model: attention outputs and attention maps.

The three measures of Dai et al. 2023, "Why can GPT learn in-context?" (arXiv 2212.10559), section
4: per query, layer and head. Untrained models score high on them as well (Deutch et al.,
arXiv 2311.07772), so they mean nothing without their nulls.
"""

import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.patches.vectors import inner_product, nan_unless, vector_norm


def check_vectors(where: str, axes: str, **vectors: Array) -> None:
    """Raises unless all are floating vectors of one shape and dtype; ``axes`` describes them."""
    for name, vector in vectors.items():
        checks.rank(where, name, vector, 1, axes)
        checks.floating(where, name, vector)
    checks.same_shape(where, **vectors)
    checks.same_dtype(where, **vectors)


def vector_cosine(first_D: Array, second_D: Array) -> Array:
    """``first . second / (|first| |second|)``, () of vectors (D,), in float32 or wider.

    Returns:
      (); NaN when one of them is zero, which has no direction.

    Raises:
      ValueError: not vectors, or shapes that differ.
      TypeError: the dtypes differ.

    Examples:
      >>> round(float(vector_cosine(jnp.array([3.0, 4.0]), jnp.array([4.0, 3.0]))), 4)
      0.96
    """
    check_vectors("vector_cosine", "(D)", first_D=first_D, second_D=second_D)
    return _cosine(first_D, second_D)


def update_similarity(
    in_context_D: Array, finetuned_D: Array, zero_shot_D: Array, *, normalise: bool = True
) -> Array:
    """SimAOU: ``cos(h_icl - h_zsl, h_ft - h_zsl)``, () of attention outputs of the last token.

    Args:
      in_context_D: (D,), the output of one attention layer with the examples in the context.
      finetuned_D: (D,), that of the model fine-tuned on the examples, for the query alone.
      zero_shot_D: (D,), that of the model as it was, for the query alone.
      normalise: whether each output is first divided by its length, as in the source; False
        compares the changes themselves, which is what a weight update adds.

    Returns:
      (); NaN when an output did not change.

    Raises:
      ValueError: not vectors, or shapes that differ.
      TypeError: the dtypes differ.

    Examples:
      >>> in_context, finetuned, plain = jnp.array([[1.0, 1.0], [2.0, 3.0], [1.0, 0.0]])
      >>> round(float(update_similarity(in_context, finetuned, plain, normalise=False)), 4)
      0.9487

    Source: Dai et al. 2023 (arXiv 2212.10559), section 4, "similarity of attention output updates".
    """
    outputs = {
        "in_context_D": in_context_D,
        "finetuned_D": finetuned_D,
        "zero_shot_D": zero_shot_D,
    }
    check_vectors("update_similarity", "(D)", **outputs)
    wide = [output_D.astype(accumulator(output_D.dtype)) for output_D in outputs.values()]
    if normalise:
        wide = [output_D / vector_norm(output_D) for output_D in wide]
    in_context_D, finetuned_D, zero_shot_D = wide
    return _cosine(in_context_D - zero_shot_D, finetuned_D - zero_shot_D)


def attention_similarity(first_T: Array, second_T: Array) -> Array:
    """SimAM: the cosine of what one head pays to the same positions in two settings, ().

    The source compares scores from *before* the softmax, of the query's last token to the query's
    own tokens: attention to the examples is left out, so both settings have the same T. Cosines
    of weights from after the softmax are larger, as those share a sign.

    Args:
      first_T: (T,), scores (or weights) in one setting, such as with the examples in the context.
      second_T: (T,), scores (or weights) for the same positions in the other.

    Returns:
      (); NaN when one of them is zero.

    Raises:
      ValueError: not vectors, or shapes that differ.
      TypeError: the dtypes differ.

    Examples:
      >>> round(float(attention_similarity(jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0]))), 4)
      0.7071

    Source: Dai et al. 2023 (arXiv 2212.10559), section 4, "similarity of attention map".
    """
    check_vectors("attention_similarity", "(T)", first_T=first_T, second_T=second_T)
    return _cosine(first_T, second_T)


def kendall_tau(first_T: Array, second_T: Array, *, present_T: Array | None = None) -> Array:
    """Kendall's tau-b of two scores of the same T tokens, (), in [-1, 1].

    ``(concordant - discordant) / sqrt(n_first n_second)`` over pairs of tokens, where ``n`` counts
    the pairs that a score does not tie. All pairs at once: memory T^2, and T up to 40,000.

    Args:
      first_T: (T,), how much in-context learning attends to each token of the examples.
      second_T: (T,), how much the descent does: the query's attention to what the examples wrote.
      present_T: (T,) booleans, the tokens that count (None: all).

    Returns:
      () in float32 or wider; NaN when a score ties all tokens or holds a NaN.

    Raises:
      ValueError: not vectors, or shapes that differ.
      TypeError: the dtypes differ, or ``present_T`` is not boolean.

    Examples:
      >>> tau = kendall_tau(jnp.array([1.0, 2.0, 3.0]), jnp.array([3.0, 2.0, 1.0]))
      >>> round(float(tau), 4)
      -1.0

    Source: Kendall 1945, "The treatment of ties in ranking problems"; its use here, Dai et al. 2023
      (arXiv 2212.10559), section 4.
    """
    check_vectors("kendall_tau", "(T)", first_T=first_T, second_T=second_T)
    first_TT, second_TT = _order(first_T), _order(second_T)
    if present_T is not None:
        checks.mask("kendall_tau", "present_T", present_T, first_T.shape[0], "one per token")
        together_TT = (present_T[:, None] & present_T[None, :]).astype(jnp.int32)
        first_TT, second_TT = first_TT * together_TT, second_TT * together_TT
    # Every pair is counted twice, above and below the diagonal, in all three sums.
    agreement = jnp.sum(first_TT * second_TT)
    untied = jnp.stack([jnp.sum(jnp.abs(first_TT)), jnp.sum(jnp.abs(second_TT))])

    dtype = accumulator(first_T.dtype)
    scale = jnp.sqrt(untied.astype(dtype))
    tau = agreement.astype(dtype) / scale[0] / scale[1]
    unordered = jnp.any(jnp.isnan(first_T) | jnp.isnan(second_T))
    return nan_unless(~unordered, tau)


def _order(score_T: Array) -> Array:
    """1 where the row's token scores higher than the column's, -1 where lower, 0 at a tie."""
    rows_T1, columns_1T = score_T[:, None], score_T[None, :]
    return (rows_T1 > columns_1T).astype(jnp.int32) - (rows_T1 < columns_1T).astype(jnp.int32)


def _cosine(first_D: Array, second_D: Array) -> Array:
    dtype = accumulator(first_D.dtype)
    first_D, second_D = first_D.astype(dtype), second_D.astype(dtype)
    return inner_product(first_D / vector_norm(first_D), second_D / vector_norm(second_D))
