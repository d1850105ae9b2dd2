"""A patch written into the parameters of a block: the one place where matrices are built.

Everything else in this library applies factors. A checkpoint, an adapter or another framework needs
the weights themselves, those of a token patch for one position, and asks for them here by name.
"""

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.blocks.experts import Experts
from icl_jax.blocks.feedforward import Dense, Gated
from icl_jax.blocks.flax_block import FlaxBlock
from icl_jax.dims import Array, Params, accumulator
from icl_jax.patches.block import TokenPatch
from icl_jax.patches.low_rank import LowRank, as_matrix, outer
from icl_jax.patches.normed import BalancedPatch, ScalePatch
from icl_jax.patches.output import BiasPatch, DownPatch, down_update
from icl_jax.patches.static_patch import StaticPatch
from icl_jax.patches.token import InputFactor, kernel_update
from icl_jax.patches.vectors import inner_product


def position_patch(patch: TokenPatch, position: int) -> TokenPatch:
    """The patch of one kept position (by its place among the kept ones), out of a bank's layer.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> bank = stack_patches(functional(stack, params), stream, [0, 5])
      >>> patch = bank.layer(0)
      >>> patch.input.v_D.shape, position_patch(patch, 1).input.v_D.shape  # of the position 5
      ((2, 8), (8,))
    """
    return jax.tree.map(lambda rows_K: rows_K[position], patch)


def materialise(block: FlaxBlock, params: Params, patch: TokenPatch) -> Params:
    """The parameters of one block with one position's patch added in.

    Args:
      block: a block whose MLP is ``Dense``, ``Gated`` or ``Experts``.
      params: its parameters.
      patch: of one position (no leading axis; see ``position_patch``), not a compact one.

    Returns:
      A new tree of the same shapes and dtypes. Run on the patch's own token, without the context,
      it gives the output that the old parameters give with it.

    Raises:
      ValueError: a patch with a leading axis, or a compact one.
      TypeError: an MLP of another kind.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> bank = stack_patches(layers, stream, [5])  # keep the last token only
      >>> block, block_params = layers[0]
      >>> patched = materialise(block, block_params, position_patch(bank.layer(0), 0))
      >>> alone = apply_block(block, patched, block.contextual(patched, stream[5:]))
      >>> bool(jnp.allclose(alone, forward(layers, stream)[5:], atol=1e-5))
      True
    """
    if patch.input is not None:
        checks.rank("materialise", "patch.input.v_D", patch.input.v_D, 1, "(D)")
    if isinstance(patch.output, BiasPatch):
        checks.rank("materialise", "patch.output.delta_D", patch.output.delta_D, 1, "(D)")
    mlp = jax.tree.map(lambda leaf: leaf, params["mlp"])
    module = block.module.mlp
    if isinstance(module, Experts):
        mlp = _patched_experts(block, params, mlp, patch)
    elif isinstance(module, (Dense, Gated)):
        if patch.input is not None:
            for name in block.input_kernels:
                mlp[name]["kernel"] = _input_patched(mlp[name]["kernel"], patch.input)
        down = _down(patch)
        if down is not None:
            mlp["down"]["kernel"] = _add(mlp["down"]["kernel"], as_matrix(down_update(down)))
    else:
        raise TypeError(
            f"materialise: the kernels of a {type(module).__name__} are not known here; Dense, "
            "Gated and Experts are. Add the matrices of kernel_update and down_update yourself."
        )
    if isinstance(patch.output, BiasPatch) and not block.norms_output:
        mlp["down"]["bias"] = _add(mlp["down"]["bias"], patch.output.delta_D)
    patched = {**params, "mlp": mlp}
    if block.norms_output and patch.output is not None:
        patched["norm_2_out"] = _patched_norm(params["norm_2_out"], patch)
    return patched


def materialise_static(block: FlaxBlock, params: Params, patch: StaticPatch) -> Params:
    """The parameters of one block with a static patch in them: ``static_block`` as plain weights.

    Args:
      block: a block whose MLP is ``Dense``, ``Gated`` or ``Experts`` (its input side).
      params: its parameters.
      patch: of one block.

    Returns:
      A new tree of the same shapes and dtypes.

    Raises:
      ValueError: a bias for a block that ends in none, or a down kernel of experts.
      TypeError: an MLP of another kind.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> block, block_params = layers[0]
      >>> first = jnp.eye(8)[0]
      >>> patch = StaticPatch(input=outer(first, first))  # (I + M) W: the first row counts twice
      >>> patched = materialise_static(block, block_params, patch)
      >>> ratio = patched["mlp"]["layer_0"]["kernel"] / block_params["mlp"]["layer_0"]["kernel"]
      >>> ratio.mean(1).tolist()
      [2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    module = block.module.mlp
    if not isinstance(module, (Dense, Gated, Experts)):
        raise TypeError(
            f"materialise_static: the kernels of a {type(module).__name__} are not known here; "
            "Dense, Gated and Experts are. Run the patches with static_forward."
        )
    mlp = jax.tree.map(lambda leaf: leaf, params["mlp"])
    if patch.down is not None:
        if isinstance(module, Experts):
            raise ValueError(
                "materialise_static: experts have no down kernel that every token goes through. "
                "Fit the patches with side='input'."
            )
        mlp["down"]["kernel"] = _add(mlp["down"]["kernel"], as_matrix(patch.down))
    if patch.input is not None:
        # After the down kernel, which is itself the input kernel where there is no other.
        for name in block.input_kernels:
            if isinstance(module, Experts):
                lifted = _moved if mlp[name].ndim == 2 else jax.vmap(_moved, (0, None))
                mlp[name] = lifted(mlp[name], patch.input)
            else:
                mlp[name]["kernel"] = _moved(mlp[name]["kernel"], patch.input)
    patched = {**params, "mlp": mlp}
    if patch.bias_D is not None:
        if not block.has_output_bias:
            raise ValueError(
                "materialise_static: a thought vector is a bias, and this block ends in none. Run "
                "it with static_forward, or fit another rung."
            )
        if block.norms_output:
            norm = params["norm_2_out"]
            patched["norm_2_out"] = {**norm, "bias": _add(norm["bias"], patch.bias_D)}
        else:
            mlp["down"]["bias"] = _add(mlp["down"]["bias"], patch.bias_D)
    return patched


def moved_kernel(kernel_DH: Array, change: LowRank) -> LowRank:
    """``M W`` (D, H) as factors: what ``W -> (I + M) W`` adds to a kernel."""
    dtype = accumulator(change.left_RD.dtype)
    right_RH = jnp.matmul(
        change.right_RH.astype(dtype), kernel_DH.astype(dtype), precision=jax.lax.Precision.HIGHEST
    )
    return LowRank(change.left_RD.astype(dtype), right_RH)


def _moved(kernel_DH: Array, change: LowRank) -> Array:
    return _add(kernel_DH, as_matrix(moved_kernel(kernel_DH, change)))


def _patched_experts(block: FlaxBlock, params: Params, mlp: Params, patch: TokenPatch) -> Params:
    """Router and experts read through ``E``; the chosen ones' down kernels share the rest."""
    if patch.input is not None:
        for name in block.input_kernels:
            lifted = _input_patched if mlp[name].ndim == 2 else _each_input_patched
            mlp[name] = lifted(mlp[name], patch.input)
    down = _down(patch)
    if down is None:
        return mlp
    if patch.input is None or down.v_H is None:
        raise ValueError(
            "materialise: an experts' down patch needs the token's own MLP input, which a parallel "
            "block's patch and a compact one do not hold."
        )
    module = block.module.mlp
    assert isinstance(module, Experts)
    # v = z / |z|^2 is its own inverse map, so the patch knows the token that it is for.
    token_D = patch.input.v_D / inner_product(patch.input.v_D, patch.input.v_D).astype(
        patch.input.v_D.dtype
    )
    full_1D = (token_D + patch.input.delta_D)[None]
    chosen_1k, _ = module.apply({"params": params["mlp"]}, full_1D, method="route")
    routed = module.experts_per_token * module.hidden_width
    shares_kF = down.v_H[:routed].reshape(module.experts_per_token, -1)
    for share_F, expert in zip(shares_kF, chosen_1k[0], strict=True):
        update_FD = as_matrix(outer(share_F, down.delta_D))
        mlp["down"] = mlp["down"].at[expert].add(update_FD.astype(mlp["down"].dtype))
    if module.shared_width is not None:
        update_SD = as_matrix(outer(down.v_H[routed:], down.delta_D))
        mlp["shared_down"] = _add(mlp["shared_down"], update_SD)
    return mlp


def patched_gain(gain_D: Array, patch: ScalePatch | BalancedPatch) -> Array:
    """The gain (D,) of a norm on the output with the patch in it, in its own dtype."""
    patched_D = gain_D.astype(patch.gain_delta_D.dtype)
    if isinstance(patch, BalancedPatch):
        patched_D = patched_D * patch.gain_ratio
    return (patched_D + patch.gain_delta_D).astype(gain_D.dtype)


def _patched_norm(norm: Params, patch: TokenPatch) -> Params:
    output = patch.output
    if isinstance(output, BiasPatch):
        return {**norm, "bias": _add(norm["bias"], output.delta_D)}
    assert isinstance(output, (ScalePatch, BalancedPatch))  # block_patches refuses the others
    return {**norm, "scale": patched_gain(norm["scale"], output)}


def _down(patch: TokenPatch) -> DownPatch | None:
    output = patch.output.down if isinstance(patch.output, BalancedPatch) else patch.output
    return output if isinstance(output, DownPatch) else None


def _input_patched(kernel_DH: Array, factor: InputFactor) -> Array:
    update = kernel_update(factor, kernel_DH.astype(factor.v_D.dtype))
    return _add(kernel_DH, as_matrix(update))


def _each_input_patched(kernels_EDF: Array, factor: InputFactor) -> Array:
    return jax.vmap(_input_patched, in_axes=(0, None))(kernels_EDF, factor)


def _add(weights: Array, change: Array) -> Array:
    """The sum in the wider dtype of both, in the dtype of the weights."""
    # NumPy's promotion, which the strict mode of JAX leaves alone; it sees float32 and float64.
    dtype = np.promote_types(accumulator(weights.dtype), accumulator(change.dtype))
    return (weights.astype(dtype) + change.astype(dtype)).astype(weights.dtype)
