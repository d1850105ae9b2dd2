"""cuDNN's fused attention, through ``jax.nn.dot_product_attention``, where it can say the case.

It knows rows and columns in the same order (causal, or a window to the left), or everything; and
probes of prefixes are such rows behind one that sees nothing. Derivatives are those of the row
blocks: cuDNN's own ignore the cotangent of the log-sum-exp, and have no second order.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.dims import Array
from icl_jax.kernels.attention.shapes import Sees


@dataclass(frozen=True)
class Pattern:
    """What cuDNN is told.

    Attributes:
      empty: rows in front that see nothing, and are not given to it.
      causal: row i of the others sees columns 0..i.
      window: of them the last so many; None for all.
    """

    empty: int = 0
    causal: bool = False
    window: int | None = None


def why_not(
    query_MAF: Array,
    value_TGF: Array,
    sees: Sees,
    *,
    cap: float | None = None,
    sinks_A: Array | None = None,
    slopes_A: Array | None = None,
) -> str | None:
    """What cuDNN cannot compute; None if it can. ``sees`` is filled.

    (Where it can is asked in ``api``; heads wider than 128 need a Hopper GPU, and are asked there.)
    """
    features, width = query_MAF.shape[2], value_TGF.shape[2]
    if query_MAF.dtype not in (jnp.bfloat16, jnp.float16):
        return f"computes in bfloat16 and float16, got {query_MAF.dtype}"
    if cap is not None:
        return "has no soft cap"
    if sinks_A is not None:
        return "has no sinks"
    if slopes_A is not None:
        return "has no scores that fall with the distance (ALiBi) in linear memory"
    if features != width or features % 8 or features > 256:
        return (
            "wants heads of one width for keys and values, a multiple of 8 up to 256, got "
            f"{features} and {width}"
        )
    pattern = expressed(sees)
    return pattern if isinstance(pattern, str) else None


def expressed(sees: Sees) -> Pattern | str:
    """What a ``filled`` record says in cuDNN's words, or why it cannot be said."""
    if sees.present_T is not None:
        return (
            "has no mask in linear memory: leave out present_T where padding is on the right of "
            "causal rows, which cannot see it"
        )
    if sees.reach is not None:
        return "has no windows that are data"
    if not sees.causal:
        return Pattern() if sees.window is None else "has windows for causal rows only"
    rows_M, columns_T = sees.row_slots_M, sees.column_slots_T
    if not isinstance(rows_M, np.ndarray) or not isinstance(columns_T, np.ndarray):
        return "must know the slots while tracing: leave them out, or give NumPy arrays"
    length = len(columns_T)
    empty = len(rows_M) - length
    if (
        empty < 0
        or not np.array_equal(columns_T, np.arange(length))
        or not np.array_equal(rows_M, np.arange(len(rows_M)) - empty)
    ):
        return "wants columns 0..T-1, and as rows the same, behind rows that see nothing"
    if sees.window is None:
        return Pattern(empty, True)
    places_M, places_T = sees.row_positions_M, sees.column_positions_T
    if not isinstance(places_M, np.ndarray) or not isinstance(places_T, np.ndarray):
        return "must know the positions of a window while tracing, as NumPy arrays"
    ahead_M, ahead_T = places_M - rows_M, places_T - columns_T
    ahead = int(ahead_M[0] - ahead_T[0])
    window = sees.window - ahead
    if np.ptp(ahead_M) or np.ptp(ahead_T) or ahead < 0 or window < 1:
        return "counts windows in slots, and these positions do not run along with them"
    return Pattern(empty, True, window)


def attend(
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
    *,
    cap: float | None = None,
    sinks_A: Array | None = None,
) -> tuple[Array, Array]:
    """Softmax attention, see ``api.attend``; ``sees`` is filled. Not to be differentiated."""
    assert cap is None and sinks_A is None
    pattern = expressed(sees)
    assert isinstance(pattern, Pattern), pattern

    def fused(*arrays: Any) -> Array:
        return jax.nn.dot_product_attention(
            *arrays,
            scale=1.0,
            is_causal=pattern.causal,
            local_window_size=None if pattern.window is None else (pattern.window - 1, 0),
            implementation="cudnn",
        )

    query_RAF = query_MAF[pattern.empty :]
    # ``return_residual`` rounds the log-sum-exp to the dtype of the values: 0.03 at 8 in bfloat16,
    # 3% of a weight. What cuDNN keeps for its own derivative is the same in float32.
    mixed_RAF, pullback = jax.vjp(fused, query_RAF, key_TGF, value_TGF)
    shape = (query_RAF.shape[1], query_RAF.shape[0])
    kept = [
        leaf
        for leaf in jax.tree.leaves(pullback)
        if leaf.dtype == jnp.float32 and leaf.shape in (shape, (1, *shape))
    ]
    if len(kept) != 1:
        raise NotImplementedError(
            f"attend: {len(kept)} of the arrays that jax {jax.__version__} keeps for cuDNN's "
            "derivative look like a log-sum-exp, not one. implementation='rows' needs none."
        )
    log_sum_exp_AR = kept[0].reshape(shape)
    front = (pattern.empty, 0)
    return (
        jnp.pad(mixed_RAF, (front, (0, 0), (0, 0))),
        jnp.pad(
            log_sum_exp_AR, ((0, 0), front), constant_values=jnp.asarray(-jnp.inf, jnp.float32)
        ),
    )
