"""What can be said of a bank before it is used in open loop: what does a rounding grow to?"""

import jax.numpy as jnp
import numpy as np

from icl_jax.dims import Array
from icl_jax.patches.low_rank import accumulator
from icl_jax.patches.token import Conditioning
from icl_jax.stack.layers import PerLayer

#: How much the growth of down patches says too much, at least: measured on real models, 11 to 350.
_FROM_ABOVE = 10


def open_loop_growth(conditioning: PerLayer[Conditioning], *, axis: int = 0) -> Array | None:
    """How much one rounding grows from the first layer to the last in open loop, (K,).

    ``prod_l (1 + A_l)``: the stream carries an error on, and layer ``l`` adds ``A_l`` of it
    (``Conditioning.amplification``). An estimate from above, as roundings partly cancel. None where
    biases carry the changes of the stream: they add what they add, whatever comes.

    Args:
      conditioning: of a bank.
      axis: how many axes of prompts stand in front.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, wiring="pre_norm", depth=3))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> bank = stack_patches(functional(stack, params), stream, [0, 5], output="down")
      >>> open_loop_growth(bank.conditioning).shape
      (2,)

    Source: worked out for this library; docs/theory.md has it beside measured errors.
    """
    growth_K = None
    for period in conditioning.segments:
        for numbers in period:
            if numbers.amplification is not None:
                found_K = jnp.prod(1 + numbers.amplification, axis=axis)
                growth_K = found_K if growth_K is None else growth_K * found_K
    return growth_K


def check_open_loop(
    conditioning: PerLayer[Conditioning], dtype: jnp.dtype, *, axis: int = 0
) -> None:
    """Refuses patches that an open loop would turn into noise; runs on the host, after ``jit``.

    Args:
      conditioning: of a computed bank.
      dtype: of the residual stream.
      axis: how many axes of prompts stand in front.

    Raises:
      ValueError: a rounding grows to the size of the output itself, at the position and by the
        factor that are named. A rounding of ``dtype``, and a tenth of the factor; but one of
        float32, or wider, and the whole factor where every block has a norm on its MLP's output:
        those patches reach the very states that were stored.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> bank = stack_patches(functional(stack, params), stream, [5])
      >>> check_open_loop(bank.conditioning, stream.dtype)  # silent: nothing grows to the output
    """
    growth = open_loop_growth(conditioning, axis=axis)
    if growth is None:
        return
    layers = [numbers for period in conditioning.segments for numbers in period]
    stored = any(n.amplification is not None and n.max_gain_change is None for n in layers)
    rounded = jnp.dtype(dtype) if stored else accumulator(dtype)
    growth_K = np.asarray(growth, np.float64)
    error_K = float(jnp.finfo(rounded).eps) * growth_K / (_FROM_ABOVE if stored else 1)
    if np.all(error_K < 1):
        return
    index = tuple(int(i) for i in np.unravel_index(np.argmax(error_K), error_K.shape))
    reason = (
        "what the patches add to the stream is as large as the stream, and is added in proportion "
        "to activations that have errors"
        if stored
        else "the changed gains multiply outputs near zero"
    )
    raise ValueError(
        f"check_open_loop: at index {index} (prompt axes first, then the kept position) a relative "
        f"error grows {growth_K[index]:.1e} times through the layers, because {reason}: in open "
        f"loop, with roundings of {rounded}, nothing of the context might be left. Use "
        "loop='closed'" + (", or a wider dtype." if stored else ", or output='auto'.")
    )
