"""The losses of the oracles, and of anything else that predicts the query after every prefix."""

import functools

import jax
import jax.numpy as jnp

from icl_jax.dims import Array
from icl_jax.measures.function_space import squared_error
from icl_jax.oracles.closed_form import ORACLES, Oracle, prefix_predictions
from icl_jax.tasks.prompt import Prompt


def query_losses(predictions_M: Array, prompt: Prompt) -> Array:
    """The squared error (M,) of each prediction of the query's label."""
    return squared_error(predictions_M, jnp.broadcast_to(prompt.query_target, predictions_M.shape))


@functools.partial(jax.jit, static_argnames="oracle")
def _losses(oracle: Oracle, prompts: Prompt) -> Array:
    def losses(prompt: Prompt) -> Array:
        predictions_M = prefix_predictions(
            oracle, prompt.inputs_ND, prompt.targets_N, prompt.query_D
        )
        return query_losses(predictions_M, prompt)

    return jax.vmap(losses)(prompts)


def oracle_losses(oracle: str | Oracle, prompts: Prompt) -> Array:
    """Query losses (B, M) of a closed-form predictor after every prefix."""
    found = _losses(ORACLES[oracle] if isinstance(oracle, str) else oracle, prompts)
    # One at a time: see vectors.row_triangle for what batched LAPACK calls do side by side.
    return jax.block_until_ready(found)
