"""Numbers and updates of an attribution: of one token and head, of all, and each one's share."""

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.dynamics.attribution import Attribution
from icl_jax.patches.low_rank import LowRank, outer
from icl_jax.patches.vectors import inner_product, vector_norm


def contribution_update(
    attribution: Attribution, head: int, token: int, kernel_DH: Array
) -> LowRank:
    """What one head reading one token adds to ``dW``, as factors.

    Raises:
      ValueError: no such head or token.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> block, block_params = functional(stack, params)[0]
      >>> found = attribute_block(block, block_params, stream, [5])
      >>> one = jax.tree.map(lambda leaf: leaf[0], found)
      >>> kernel = block_params["mlp"]["layer_0"]["kernel"]
      >>> update = contribution_update(one, 0, 2, kernel)  # head 0 reading token 2
      >>> update.left_RD.shape, update.right_RH.shape
      ((1, 8), (1, 16))
      >>> size = contribution_norms(one, kernel)[0, 2]
      >>> bool(jnp.allclose(frobenius_norm(update), size, rtol=1e-4))
      True
    """
    _check_one("contribution_update", attribution)
    names = ("head", "token")
    for name, index, count in zip(
        names, (head, token), attribution.contributions_ATD.shape[-3:-1], strict=True
    ):
        if checks.is_concrete(index) and not 0 <= int(index) < count:
            raise ValueError(
                f"contribution_update: {name} must be from 0 to {count - 1}, got {int(index)}. "
                "Negative indices do not wrap."
            )
    right_H = _mapped("contribution_update", attribution.contributions_ATD[head, token], kernel_DH)
    return outer(attribution.v_D, right_H.astype(kernel_DH.dtype))


def summed_update(attribution: Attribution, kernel_DH: Array) -> LowRank:
    """All contributions and the remainder together: the token update again.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> block, block_params = layers[0]
      >>> found = attribute_block(block, block_params, stream, [5])
      >>> kernel = block_params["mlp"]["layer_0"]["kernel"]
      >>> whole = summed_update(jax.tree.map(lambda leaf: leaf[0], found), kernel)
      >>> factor = position_patch(stack_patches(layers, stream, [5]).layer(0), 0).input
      >>> expected = as_matrix(kernel_update(factor, kernel))
      >>> bool(jnp.allclose(as_matrix(whole), expected, atol=1e-5))
      True
    """
    _check_one("summed_update", attribution)
    total_H = _mapped("summed_update", _total(attribution), kernel_DH)
    return outer(attribution.v_D, total_H.astype(kernel_DH.dtype))


def update_norm(attribution: Attribution, kernel_DH: Array | None = None) -> Array:
    """``|dW|_F`` of all contributions and the remainder together, (), in float32 or wider.

    Without a kernel, of the input factor that all kernels share (or of a residual stream).
    """
    _check_one("update_norm", attribution)
    total = _mapped("update_norm", _total(attribution), kernel_DH)
    return vector_norm(attribution.v_D) * vector_norm(total)


def contribution_norms(attribution: Attribution, kernel_DH: Array) -> Array:
    """``|dW|_F`` of every contribution, (A, T), in float32 or wider.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> block, block_params = functional(stack, params)[0]
      >>> found = attribute_block(block, block_params, stream, [5])
      >>> one = jax.tree.map(lambda leaf: leaf[0], found)
      >>> norms = contribution_norms(one, block_params["mlp"]["layer_0"]["kernel"])
      >>> norms.shape, (norms > 0).all(0).tolist()  # two heads; the last token is kept
      ((2, 6), [True, True, True, True, True, False])
    """
    _check_one("contribution_norms", attribution)
    mapped_ATH = _mapped("contribution_norms", attribution.contributions_ATD, kernel_DH)
    return vector_norm(attribution.v_D) * vector_norm(mapped_ATH)


def contribution_shares(attribution: Attribution, kernel_DH: Array | None = None) -> Array:
    """The signed share of every contribution in ``dW``, (A, T): ``<dW_aj, dW> / |dW|^2``.

    The shares and the remainder's add up to 1, so they can be read as parts of the whole. In
    float32 or wider. Without a kernel, of the input factor that all kernels share.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> found = attribute_block(*functional(stack, params)[0], stream, [5])
      >>> shares = contribution_shares(jax.tree.map(lambda leaf: leaf[0], found))
      >>> shares.shape, round(float(shares.sum()), 4)  # without a norm there is no remainder
      ((2, 6), 1.0)
    """
    where = "contribution_shares"
    _check_one(where, attribution)
    parts_ATH = _mapped(where, attribution.contributions_ATD, kernel_DH)
    return _shares(where, attribution, parts_ATH, kernel_DH)


def remainder_share(attribution: Attribution, kernel_DH: Array | None = None) -> Array:
    """The signed share of the remainder in ``dW``: what no token and no head accounts for.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, wiring="pre_norm"))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> found = attribute_block(*functional(stack, params)[0], stream, [5])
      >>> one = jax.tree.map(lambda leaf: leaf[0], found)
      >>> rest = remainder_share(one)  # of the norm's denominator
      >>> round(float(rest + contribution_shares(one).sum()), 4)
      1.0
    """
    where = "remainder_share"
    _check_one(where, attribution)
    part_H = _mapped(where, attribution.remainder_D, kernel_DH)
    return _shares(where, attribution, part_H, kernel_DH)


def _check_one(where: str, attribution: Attribution) -> None:
    """Raises ValueError for the attributions of several positions: sums would run across them."""
    checks.rank(where, "contributions_ATD", attribution.contributions_ATD, 3, "(A, T, D)")


def _mapped(where: str, changes: Array, kernel_DH: Array | None) -> Array:
    """What changes (..., D) of the kernel's input do to its output, (..., H), float32 or wider."""
    dtype = accumulator(changes.dtype)
    if kernel_DH is None:
        return changes.astype(dtype)
    checks.rank(where, "kernel_DH", kernel_DH, 2, "(D, H)")
    checks.axis_size(where, "kernel_DH", kernel_DH, 0, changes.shape[-1], "the input's width")
    return jnp.matmul(
        changes.astype(dtype), kernel_DH.astype(dtype), precision=jax.lax.Precision.HIGHEST
    )


def _shares(where: str, attribution: Attribution, parts: Array, kernel_DH: Array | None) -> Array:
    """``<part, total> / |total|^2``, (...) of parts (..., H) of the change of the output."""
    total_H = _mapped(where, _total(attribution), kernel_DH)
    products = jnp.matmul(parts, total_H, precision=jax.lax.Precision.HIGHEST)
    return products / inner_product(total_H, total_H)


def _total(attribution: Attribution) -> Array:
    """The change of the kernel's input (D,), summed in float32 or wider."""
    dtype = accumulator(attribution.v_D.dtype)
    summed_D = jnp.sum(attribution.contributions_ATD, axis=(0, 1), dtype=dtype)
    return summed_D + attribution.remainder_D.astype(dtype)
