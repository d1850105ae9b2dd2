"""What runs on the device: the initial state, and several steps in one dispatch."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from icl_jax.dims import Array, Params
from icl_jax.sharding import constrain

#: ``init(key) -> params``.
Init = Callable[[Array], Params]
#: ``loss(params, key) -> (loss, metrics)``: draws its own prompts; metrics are named scalars.
Loss = Callable[[Params, Array], tuple[Array, dict[str, Array]]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
      step: (), int32, steps done.
      params: the parameters.
      opt_state: the optimizer's state.
    """

    step: Array
    params: Params
    opt_state: Any


def initial_params(init: Init, key: Array) -> Params:
    """The parameters that ``train`` starts from, given the same ``init`` and ``key``."""
    return init(jax.random.split(key)[0])


def initial_state(init: Init, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """The state before the first step."""
    params = initial_params(init, key)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    # Without weak types, which the first dispatch would lose and the second recompile for; and
    # copied, because the first dispatch consumes the state: an optimizer may own a part of it.
    state = jax.tree.map(lambda leaf: jnp.array(leaf, leaf.dtype, copy=True), state)
    return constrain(state)


@functools.partial(
    jax.jit, static_argnames=("loss", "optimizer", "capacity"), donate_argnames="state"
)
def advance(
    state: TrainState,
    key: Array,
    count: int,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    capacity: int,
) -> tuple[TrainState, dict[str, Array], Array]:
    """``count`` steps, at most ``capacity``: state, metrics (capacity,), are all params finite.

    ``count`` is traced: one compiled program serves every dispatch, the shorter last one too.
    Compiled apart, the same step could round differently.
    """
    data_key = jax.random.split(key)[1]
    optimizer = optax.with_extra_args_support(optimizer)

    def one_step(state: TrainState) -> tuple[TrainState, dict[str, Array]]:
        step_key = jax.random.fold_in(data_key, state.step)
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, step_key)
        # Optax multiplies floats by integer counts, and sums norms over leaves of any dtype.
        with jax.numpy_dtype_promotion("standard"):
            row = {"loss": value, "gradient_norm": optax.tree.norm(gradient)}
            change, opt_state = optimizer.update(
                gradient,
                state.opt_state,
                state.params,
                value=value,
                grad=gradient,
                value_fn=lambda params: loss(params, step_key)[0],
            )
        params = optax.apply_updates(state.params, change)
        _check_metrics(metrics, row)
        # On the mesh that is set the state stays where it is, and is divided as parameters are.
        return constrain(TrainState(state.step + 1, params, opt_state)), {**row, **metrics}

    def record(index: Array, carry: tuple[TrainState, dict[str, Array]]) -> Any:
        state, table = carry
        state, row = one_step(state)
        return state, {name: table[name].at[index].set(row[name]) for name in table}

    _, row = jax.eval_shape(one_step, state)
    table = {name: jnp.zeros((capacity,), entry.dtype) for name, entry in row.items()}
    state, table = jax.lax.fori_loop(0, count, record, (state, table))
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.params)]
    return state, table, jnp.all(jnp.stack(finite))


def _check_metrics(metrics: dict[str, Array], ours: dict[str, Array]) -> None:
    for name, metric in metrics.items():
        if name in ours or name == "step":
            raise ValueError(f"train: the metric name {name!r} is taken; choose another one.")
        if jnp.shape(metric) != ():
            raise ValueError(
                f"train: the metric {name!r} must be a scalar, got shape {jnp.shape(metric)}; "
                "average it inside the loss."
            )
