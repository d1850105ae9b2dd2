"""Softmax attention and linear attention: one multi-head layer with two ways to weigh."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.blocks.affine import dense
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.dims import Array
from icl_jax.patches.low_rank import accumulator

_INTO_HEADS = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2)
)
_OUT_OF_HEADS = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=2
)


class _Kernels(NamedTuple):
    """Query, key and value kernels (D, A, F), output kernel (A, F, D), and biases or None."""

    query_DAF: Array
    key_DAF: Array
    value_DAF: Array
    out_AFD: Array
    query_bias_AF: Array | None
    key_bias_AF: Array | None
    value_bias_AF: Array | None
    out_bias_D: Array | None


class Attention(ContextualLayer):
    """``A(S)_t = sum_a sum_j weight_atj (value_aj W_out,a)``; a subclass says what weighs.

    Attributes:
      num_heads: A, the number of heads.
      head_width: F, features of one head; D / A when left out.
      use_bias: whether the query, key, value and output projections have biases.
      rotary_base: base of rotary position embeddings; None for none, which makes the layer blind to
        the order of what it sees.
      dtype: of the parameters; the arithmetic is in the dtype of the input.
    """

    num_heads: int = 1
    head_width: int | None = None
    use_bias: bool = False
    rotary_base: float | None = None
    dtype: jnp.dtype = jnp.float32

    def weigh(self, scores_AMT: Array, sees_MT: Array) -> Array:
        """Weights (A, M, T) from scores; row m may use only the positions that it sees."""
        raise TypeError(f"{type(self).__name__} must define weigh(scores_AMT, sees_MT).")

    def __call__(
        self,
        hidden_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """See ``ContextualLayer``."""
        weights_ATT, value_TAF, kernels = self._weights(hidden_TD, positions_T, present_T)
        return _out(_weighted_sum(weights_ATT, value_TAF), kernels)

    def prefixes(
        self, context_ND: Array, probes_MD: Array, *, positions_M: Array
    ) -> tuple[Array, Array]:
        """One pass: the probes share the context's keys and values, and each adds its own."""
        kernels = self._kernels(context_ND.shape[-1])
        query_NAF, key_NAF, value_NAF = self._project(context_ND, positions_M[:-1], kernels)
        own_query_MAF, own_key_MAF, own_value_MAF = self._project(probes_MD, positions_M, kernels)
        weights_ANN = self.weigh(_scores(query_NAF, key_NAF), self._sees(context_ND, None))

        num_context = context_ND.shape[0]
        before_MN = jnp.tri(num_context + 1, num_context, -1, dtype=bool)
        itself_M1 = jnp.ones((num_context + 1, 1), bool)
        own_scores_AM1 = _row_scores(own_query_MAF, own_key_MAF)[..., None]
        weights_AMT = self.weigh(
            jnp.concatenate([_scores(own_query_MAF, key_NAF), own_scores_AM1], axis=-1),
            jnp.concatenate([before_MN, itself_M1], axis=-1),
        )
        own_weight_MA1 = weights_AMT[..., -1].T[..., None].astype(own_value_MAF.dtype)
        mixed_MAF = _weighted_sum(weights_AMT[..., :-1], value_NAF) + own_weight_MA1 * own_value_MAF
        return _out(_weighted_sum(weights_ANN, value_NAF), kernels), _out(mixed_MAF, kernels)

    def suffixes(self, context_ND: Array, query_D: Array, *, positions_T: Array) -> Array:
        """One pass: the query's scores serve every suffix, only what it sees differs."""
        hidden_TD = jnp.concatenate([context_ND, query_D[None, :]])
        length = hidden_TD.shape[0]
        kernels = self._kernels(hidden_TD.shape[-1])
        query_TAF, key_TAF, value_TAF = self._project(hidden_TD, positions_T, kernels)
        scores_A1T = _scores(query_TAF[-1:], key_TAF)
        weights_AMT = self.weigh(
            jnp.broadcast_to(scores_A1T, (self.num_heads, length, length)),
            ~jnp.tri(length, length, -1, dtype=bool),
        )
        return _out(_weighted_sum(weights_AMT, value_TAF), kernels)

    def parts(
        self,
        hidden_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> tuple[Array, Array]:
        """The layer's sum, opened: who is read how much, and what each passes on.

        Returns:
          Weights (A, T, T), row t reading column j, and ``value_aj W_out,a`` (A, T, D):
          ``sum_aj weights[a, t, j] passed[a, j]``, plus the output bias, is the output at t.
        """
        weights_ATT, value_TAF, kernels = self._weights(hidden_TD, positions_T, present_T)
        passed_ATD = jnp.einsum(
            "taf,afd->atd",
            value_TAF,
            kernels.out_AFD.astype(value_TAF.dtype),
            precision=jax.lax.Precision.HIGHEST,
        )
        return weights_ATT, passed_ATD

    def _weights(
        self, hidden_TD: Array, positions_T: Array | None, present_T: Array | None
    ) -> tuple[Array, Array, _Kernels]:
        checks.rank(type(self).__name__, "hidden_TD", hidden_TD, 2, "(T, D)")
        kernels = self._kernels(hidden_TD.shape[-1])
        query_TAF, key_TAF, value_TAF = self._project(hidden_TD, positions_T, kernels)
        sees_TT = self._sees(hidden_TD, present_T)
        return self.weigh(_scores(query_TAF, key_TAF), sees_TT), value_TAF, kernels

    @nn.compact
    def _kernels(self, width: int) -> _Kernels:
        checks.positive_int(type(self).__name__, "num_heads", self.num_heads)
        if self.head_width is None and width % self.num_heads:
            raise ValueError(
                f"{type(self).__name__}: num_heads={self.num_heads} does not divide the width "
                f"{width}. Choose a divisor, or set head_width."
            )
        features = self.head_width or width // self.num_heads
        into, out = (width, self.num_heads, features), (self.num_heads, features, width)
        zeros = nn.initializers.zeros

        def bias(name: str, shape: tuple[int, ...]) -> Array | None:
            return self.param(f"{name}_bias", zeros, shape, self.dtype) if self.use_bias else None

        return _Kernels(
            self.param("query", _INTO_HEADS, into, self.dtype),
            self.param("key", _INTO_HEADS, into, self.dtype),
            self.param("value", _INTO_HEADS, into, self.dtype),
            self.param("out", _OUT_OF_HEADS, out, self.dtype),
            bias("query", into[1:]),
            bias("key", into[1:]),
            bias("value", into[1:]),
            bias("out", out[2:]),
        )

    def _project(
        self, hidden_TD: Array, positions_T: Array | None, kernels: _Kernels
    ) -> tuple[Array, Array, Array]:
        """Queries, keys and values (T, A, F); the queries carry the scale of the scores."""
        query_TAF = dense(hidden_TD, kernels.query_DAF, kernels.query_bias_AF)
        key_TAF = dense(hidden_TD, kernels.key_DAF, kernels.key_bias_AF)
        value_TAF = dense(hidden_TD, kernels.value_DAF, kernels.value_bias_AF)
        if self.rotary_base is not None:
            if positions_T is None:
                positions_T = jnp.arange(hidden_TD.shape[0], dtype=jnp.int32)
            query_TAF = rotate(query_TAF, positions_T, self.rotary_base)
            key_TAF = rotate(key_TAF, positions_T, self.rotary_base)
        scale = jnp.asarray(1 / math.sqrt(query_TAF.shape[-1]), query_TAF.dtype)
        return query_TAF * scale, key_TAF, value_TAF

    def _sees(self, hidden_TD: Array, present_T: Array | None) -> Array:
        length = hidden_TD.shape[0]
        sees_TT = jnp.tri(length, dtype=bool) if self.causal else jnp.ones((length, length), bool)
        if present_T is None:
            return sees_TT
        # An absent position still sees itself: its own output stays finite, and nobody reads it.
        return (sees_TT & present_T[None, :]) | jnp.eye(length, dtype=bool)


class SoftmaxAttention(Attention):
    """Multi-head softmax attention; the weights of each row sum to 1 (Vaswani et al. 2017)."""

    def weigh(self, scores_AMT: Array, sees_MT: Array) -> Array:
        """Softmax in float32 or wider over what each row sees."""
        lowest = jnp.finfo(scores_AMT.dtype).min
        return jax.nn.softmax(jnp.where(sees_MT[None], scores_AMT, lowest), axis=-1)


class LinearAttention(Attention):
    """Attention without the softmax: the weights are the scaled scores themselves.

    The scale is that of the queries, 1/sqrt(F), and does not depend on the length of the context,
    so the output is a plain sum over what a row sees (von Oswald et al., arXiv 2212.07677, without
    their 1/N).
    """

    def weigh(self, scores_AMT: Array, sees_MT: Array) -> Array:
        """The scores where a row sees, zero elsewhere."""
        return jnp.where(sees_MT[None], scores_AMT, jnp.zeros_like(scores_AMT))


def rotate(features_TAF: Array, positions_T: Array, base: float) -> Array:
    """Rotary position embedding: pairs (i, i + F/2) turned by ``position * base^(-2i/F)``.

    Raises:
      ValueError: an odd number of features.

    Source: Su et al. 2021 (arXiv 2104.09864), in the half-split layout of Llama.
    """
    features = features_TAF.shape[-1]
    if features % 2:
        raise ValueError(f"rotate: rotary embeddings need an even head width, got {features}.")
    dtype = accumulator(features_TAF.dtype)
    half = features // 2
    exponents = jnp.arange(half, dtype=dtype) / half
    rates = jnp.asarray(base, dtype) ** -exponents
    angles_TF = positions_T.astype(dtype)[:, None] * rates[None, :]
    cos_TAF, sin_TAF = jnp.cos(angles_TF)[:, None, :], jnp.sin(angles_TF)[:, None, :]
    first_TAF = features_TAF[..., :half].astype(dtype)
    second_TAF = features_TAF[..., half:].astype(dtype)
    turned_first_TAF = first_TAF * cos_TAF - second_TAF * sin_TAF
    turned_second_TAF = second_TAF * cos_TAF + first_TAF * sin_TAF
    turned_TAF = jnp.concatenate([turned_first_TAF, turned_second_TAF], axis=-1)
    return turned_TAF.astype(features_TAF.dtype)


def _scores(query_MAF: Array, key_TAF: Array) -> Array:
    """Scores (A, M, T), accumulated in float32 or wider."""
    return jnp.einsum(
        "maf,taf->amt",
        query_MAF,
        key_TAF,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=accumulator(query_MAF.dtype),
    )


def _row_scores(query_MAF: Array, key_MAF: Array) -> Array:
    """Scores (A, M) of each row with its own key."""
    return jnp.einsum(
        "maf,maf->am",
        query_MAF,
        key_MAF,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=accumulator(query_MAF.dtype),
    )


def _weighted_sum(weights_AMT: Array, value_TAF: Array) -> Array:
    """Values (M, A, F) summed with the weights, in the dtype of the values."""
    return jnp.einsum(
        "amt,taf->maf",
        weights_AMT.astype(value_TAF.dtype),
        value_TAF,
        precision=jax.lax.Precision.HIGHEST,
    )


def _out(mixed_MAF: Array, kernels: _Kernels) -> Array:
    """The output projection (M, D)."""
    return dense(mixed_MAF, kernels.out_AFD, kernels.out_bias_D, axes=2)
