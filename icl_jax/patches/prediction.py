"""What can be said of a bank before it is used in open loop: what does a rounding grow to?"""

import itertools

import jax.numpy as jnp
import numpy as np

from icl_jax.dims import Array, accumulator
from icl_jax.patches.block import SplitBlock
from icl_jax.patches.token import Conditioning
from icl_jax.stack.layers import Layers, PerLayer

#: How many times too large the growth of down patches is, about: 9 to 430 on real models.
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


def open_loop_rounding(layers: Layers, dtype: jnp.dtype) -> jnp.dtype:
    """The dtype whose roundings an open loop of these blocks is left with.

    Output patches are made and added in float32 or wider and aim at the state that the run with
    everything has stored: rounded once more, they reach it, and no rounding of ``dtype`` is left.
    But where a norm stands behind the sum, and in blocks of one's own that are not opened
    (``SplitBlock``), it is ``dtype`` itself. All this is of runs that round as the extraction did:
    another device need not, and then closed loops are left with roundings of ``dtype``, too.

    Args:
      layers: what ``functional`` gives.
      dtype: of the stream.

    Examples:
      >>> def layers(wiring):
      ...     stack = build_stack(StackConfig(width=8, num_heads=2, wiring=wiring))
      ...     return functional(stack, stack.init(jax.random.key(1), jnp.zeros((6, 3)))["params"])
      >>> wirings = "pre_norm", "post_norm"
      >>> [str(open_loop_rounding(layers(wiring), jnp.bfloat16)) for wiring in wirings]
      ['float32', 'bfloat16']

    Source: worked out for this library; docs/theory.md has it beside measured errors.
    """
    for block in itertools.chain(*layers.designs):
        opened = isinstance(block, SplitBlock) and (block.norms_output or block.ends_in_sum)
        if getattr(block, "has_skip", True) and not opened:
            return jnp.dtype(dtype)
    return accumulator(dtype)


def open_loop_error(
    conditioning: PerLayer[Conditioning], rounded: jnp.dtype, *, axis: int = 0
) -> Array | None:
    """What a rounding has grown to behind the last layer in open loop, (K,), of the stream's size.

    A rounding of ``rounded`` and ``open_loop_growth``, of down patches a tenth of it. From 1 on,
    noise. None as ``open_loop_growth``.

    Args:
      conditioning: of a bank.
      rounded: see ``open_loop_rounding``.
      axis: how many axes of prompts stand in front.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, wiring="pre_norm", depth=3))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> bank = stack_patches(layers, stream, [0, 5], output="down")
      >>> error = open_loop_error(bank.conditioning, open_loop_rounding(layers, stream.dtype))
      >>> error.shape, bool((error < 1).all())  # an open loop can be used
      ((2,), True)

    Source: worked out for this library; docs/theory.md has it beside measured errors.
    """
    growth_K = open_loop_growth(conditioning, axis=axis)
    if growth_K is None:
        return None
    share = 1 / _FROM_ABOVE if _adds_down(conditioning) else 1.0
    return growth_K * (share * float(jnp.finfo(rounded).eps))


def _adds_down(conditioning: PerLayer[Conditioning]) -> bool:
    """Whether down patches without a norm carry the change of the stream in a layer."""
    layers = itertools.chain(*conditioning.segments)
    return any(n.amplification is not None and n.max_gain_change is None for n in layers)


def check_open_loop(
    conditioning: PerLayer[Conditioning], rounded: jnp.dtype, *, axis: int = 0
) -> None:
    """Refuses patches that an open loop would turn into noise; runs on the host, after ``jit``.

    Args:
      conditioning: of a computed bank.
      rounded: the dtype whose roundings are left; see ``open_loop_rounding``.
      axis: how many axes of prompts stand in front.

    Raises:
      ValueError: a rounding grows to the size of the output itself (``open_loop_error``), at the
        position and by the factor that are named.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> bank = stack_patches(functional(stack, params), stream, [5])
      >>> check_open_loop(bank.conditioning, stream.dtype)  # silent: nothing grows to the output
    """
    error = open_loop_error(conditioning, rounded, axis=axis)
    if error is None or np.all(np.asarray(error) < 1):
        return
    error_K, growth_K = np.asarray(error), np.asarray(open_loop_growth(conditioning, axis=axis))
    down = _adds_down(conditioning)
    index = tuple(int(i) for i in np.unravel_index(np.argmax(error_K), error_K.shape))
    reason = (
        "what the patches add to the stream is as large as the stream, and is added in proportion "
        "to activations that have errors"
        if down
        else "the changed gains multiply outputs near zero"
    )
    raise ValueError(
        f"check_open_loop: at index {index} (prompt axes first, then the kept position) a relative "
        f"error grows {growth_K[index]:.1e} times through the layers, because {reason}: in open "
        f"loop, with roundings of {jnp.dtype(rounded)}, nothing of the context might be left. Use "
        "loop='closed'" + (", or a wider dtype." if down else ", or output='auto'.")
    )
