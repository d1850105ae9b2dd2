"""How much do factors save? Token patches as two vectors against `d x d_ff` matrices.

    python -m benchmarks.token_patches --json=FILE

Both sides compute the patch of every position of a batch of prompts from the same activations,
keep it, and run the MLP's first kernel with it. The materialised side is what a straightforward
implementation does: one matrix per position.
"""

import functools

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.harness import Side, compare, launch, nbytes
from icl_jax.dims import Array
from icl_jax.patches.low_rank import as_matrix
from icl_jax.patches.token import InputFactor, apply_factor, input_factor, token_update

_BATCH = flags.DEFINE_integer("batch", 8, "prompts", lower_bound=1)
_POSITIONS = flags.DEFINE_integer("positions", 50, "patched positions of a prompt", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 256, "model width d; the kernel is d x 4d", lower_bound=1)


@jax.jit
def factor_patches(full_BTD: Array, kept_BTD: Array) -> InputFactor:
    """The patches as pairs of vectors."""
    return jax.vmap(jax.vmap(input_factor))(full_BTD, kept_BTD)


@jax.jit
def factor_outputs(kept_BTD: Array, factors: InputFactor, kernel_DH: Array) -> Array:
    """The patched layer: (z E) W."""
    patched_BTD = jax.vmap(jax.vmap(apply_factor))(kept_BTD, factors)
    return jnp.einsum("btd,dh->bth", patched_BTD, kernel_DH)


@jax.jit
def matrix_patches(full_BTD: Array, kept_BTD: Array, kernel_DH: Array) -> Array:
    """The patches as matrices (B, T, D, H)."""
    update = functools.partial(token_update, kernel_DH=kernel_DH)
    return jax.vmap(jax.vmap(lambda full_D, kept_D: as_matrix(update(full_D, kept_D))))(
        full_BTD, kept_BTD
    )


@jax.jit
def matrix_outputs(kept_BTD: Array, updates_BTDH: Array, kernel_DH: Array) -> Array:
    """The patched layer: z (W + dW)."""
    return jnp.einsum("btd,btdh->bth", kept_BTD, kernel_DH[None, None] + updates_BTDH)


def benchmark() -> list[dict]:
    """One row: factors against matrices."""
    batch, positions, width = _BATCH.value, _POSITIONS.value, _WIDTH.value
    keys = jax.random.split(jax.random.key(0), 3)
    full_BTD = jax.random.normal(keys[0], (batch, positions, width))
    kept_BTD = jax.random.normal(keys[1], (batch, positions, width))
    kernel_DH = jax.random.normal(keys[2], (width, 4 * width)) / width**0.5

    def factors() -> tuple[InputFactor, Array]:
        patches = factor_patches(full_BTD, kept_BTD)
        return patches, factor_outputs(kept_BTD, patches, kernel_DH)

    def matrices() -> tuple[Array, Array]:
        patches = matrix_patches(full_BTD, kept_BTD, kernel_DH)
        return patches, matrix_outputs(kept_BTD, patches, kernel_DH)

    difference = jnp.max(jnp.abs(factors()[1] - matrices()[1]))
    if not difference < 1e-2:
        raise AssertionError(f"the two sides disagree by {difference}")
    return [
        compare(
            "token patches: factors against matrices",
            {
                "factors": Side(factors, size_of=lambda result: nbytes(result[0])),
                "matrices": Side(matrices, size_of=lambda result: nbytes(result[0])),
            },
            sizes={"batch": batch, "positions": positions, "width": width, "hidden": 4 * width},
        )
    ]


if __name__ == "__main__":
    launch(benchmark)
