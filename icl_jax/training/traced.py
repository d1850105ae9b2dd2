"""A whole training as one pure function: what ``vmap`` over seeds and learning rates needs."""

import jax
import optax

from icl_jax import checks
from icl_jax.dims import Array, Params
from icl_jax.training.step import Init, Loss, advance, initial_state


def train_traced(
    init: Init,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    num_steps: int,
) -> tuple[Params, dict[str, Array]]:
    """The steps of ``train``, from the same key, with nothing on disk and no look from the host.

    Everything may be traced: a learning rate inside ``optimizer``, the key. Nothing stops a
    training that diverges; its metrics are not finite from there on.

    Args:
      init: as ``train`` takes it.
      loss: likewise.
      optimizer: likewise; its hyperparameters may be traced.
      key: a typed PRNG key.
      num_steps: steps in all.

    Returns:
      The parameters after the last step, and name -> (num_steps,), the metrics of every step.

    Raises:
      ValueError: ``num_steps`` below 1.
    """
    checks.positive_int("train_traced", "num_steps", num_steps)
    state = initial_state(init, optimizer, key)
    state, metrics, _ = advance(
        state, key, num_steps, loss=loss, optimizer=optimizer, capacity=num_steps
    )
    return state.params, {"step": jax.numpy.arange(1, num_steps + 1), **metrics}
