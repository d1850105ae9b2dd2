"""What can be said of a bank before it is used: is it finite, and what does a rounding grow to?

Both run on the host, on computed numbers (batched or not); inside jit the numbers are returned.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.dims import Array
from icl_jax.patches.block import TokenPatch
from icl_jax.patches.low_rank import accumulator
from icl_jax.patches.token import Conditioning


def open_loop_growth(conditioning: Sequence[Conditioning]) -> Array | None:
    """How much one rounding grows from the first layer to the last in open loop, (K,).

    ``prod_l (1 + A_l)``: the stream carries an error on, and layer ``l``'s norm adds ``A_l`` of it
    (``Conditioning.amplification``). An estimate from above, as roundings partly cancel. None where
    no norm stands on the MLP's output: there the patches add what they add, whatever comes.

    Source: worked out for this library; docs/theory.md has it beside measured errors.
    """
    numbers = [one.amplification for one in conditioning if one.amplification is not None]
    if not numbers:
        return None
    growth_K = jnp.ones_like(numbers[0])
    for amplification_K in numbers:
        growth_K = growth_K * (1 + amplification_K)
    return growth_K


def check_open_loop(conditioning: Sequence[Conditioning], dtype: jnp.dtype) -> None:
    """Refuses patches that an open loop would turn into noise.

    Args:
      conditioning: of each layer, computed.
      dtype: of the residual stream.

    Raises:
      ValueError: a rounding of float32 (or of a wider ``dtype``) grows to the size of the output
        itself, at the position and by the factor that are named.
    """
    growth = open_loop_growth(conditioning)
    if growth is None:
        return
    growth_K = np.asarray(growth, np.float64)
    error_K = float(jnp.finfo(accumulator(dtype)).eps) * growth_K
    if np.all(error_K < 1):
        return
    index = tuple(int(i) for i in np.unravel_index(np.argmax(error_K), error_K.shape))
    raise ValueError(
        f"check_open_loop: at index {index} (prompt axes first, then the kept position) a relative "
        f"error grows {growth_K[index]:.1e} times through the layers, because the changed gains "
        "multiply outputs near zero: in open loop, where these are not repeated bit for bit, "
        "nothing of the context would be left. Use loop='closed', or output='auto'."
    )


def check_finite_patches(patches: Sequence[TokenPatch]) -> None:
    """Refuses a bank with a number that is none, by the name of layer and part.

    Raises:
      ValueError: NaN or infinity in a patch.
    """
    for layer, patch in enumerate(patches):
        for path, leaf in jax.tree_util.tree_leaves_with_path(patch):
            values = np.asarray(leaf, np.float64)
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                index = tuple(int(i) for i in bad[0])
                name = jax.tree_util.keystr(path).lstrip(".")
                raise ValueError(
                    f"check_finite_patches: {name} of layer {layer} holds {values[index]} at index "
                    f"{index}. Look for NaN or infinity in the weights, or for activations that "
                    "leave the range of the dtype; bfloat16 and float32 have a wider one than "
                    "float16."
                )


def check_finite_logits(where: str, logits: Array) -> None:
    """Refuses logits (..., V) with a NaN, or with no finite value in a row; -inf is a mask.

    Raises:
      ValueError: naming ``where`` and the first row.
    """
    values = np.asarray(logits, np.float64)
    bad = np.argwhere(
        np.any(np.isnan(values) | (values == np.inf), axis=-1)
        | ~np.any(np.isfinite(values), axis=-1)
    )
    if len(bad):
        index = tuple(int(i) for i in bad[0])
        raise ValueError(
            f"{where}: the logits of row {index} are not finite. Look for NaN or infinity in the "
            "weights, or for activations that leave the range of the dtype."
        )
