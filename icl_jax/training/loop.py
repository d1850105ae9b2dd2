"""The training loop: several steps per dispatch, fresh data every step, exact after any kill.

The data of step ``s`` is drawn from ``fold_in(key, s)`` and the state of step ``s`` is all that a
checkpoint holds, so a run is a function of its key: stopped anywhere and started again it gives
the same parameters and the same metrics, bit for bit, on the same machine. (XLA must be
deterministic: it is on CPU and TPU, and on GPU with ``--xla_gpu_deterministic_ops=true``.)
"""

import contextlib
import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from icl_jax import checks
from icl_jax.compilations import run_once
from icl_jax.dims import Array, Params
from icl_jax.records import WorkdirError, lock_folder
from icl_jax.sharding import any_process, on_host
from icl_jax.training.checkpoints import Checkpoints
from icl_jax.training.metrics import Row, append_rows, columns, keep_rows
from icl_jax.training.preemption import Preempted, postponed
from icl_jax.training.progress import progress, silence
from icl_jax.training.step import Init, Loss, TrainState, advance, initial_state

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


class TrainingDivergedError(RuntimeError):
    """The loss, its gradient or the parameters stopped being finite.

    Attributes:
      step: the first step where that shows, counted from 1.
      checkpoint: the step of the last checkpoint, which is finite; None where there is none.

    Examples:
      >>> import optax
      >>> def init(key):
      ...     return jnp.ones(())
      >>> def loss(weight, key):
      ...     return jnp.exp(10 * weight), {}
      >>> key, optimizer = jax.random.key(0), optax.sgd(-10.0)  # uphill
      >>> try:
      ...     train(init, loss, optimizer, key, num_steps=5, show_progress=False)
      ... except TrainingDivergedError as error:
      ...     print(error.step, error.checkpoint)
      2 None
    """

    def __init__(self, message: str, *, step: int, checkpoint: int | None) -> None:
        super().__init__(message)
        self.step = step
        self.checkpoint = checkpoint


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
      params: the parameters after the last step.
      metrics: name -> (num_steps,), a value per step: ``step`` (from 1), ``loss`` and
        ``gradient_norm`` (before the step's update), and what the loss adds.

    Examples:
      >>> import optax
      >>> def init(key):
      ...     return jnp.zeros(())
      >>> def loss(weight, key):
      ...     return (weight - 1.0) ** 2, {"weight": weight}
      >>> key, optimizer = jax.random.key(0), optax.sgd(0.25)
      >>> found = train(init, loss, optimizer, key, num_steps=3, show_progress=False)
      >>> float(found.params), found.metrics["weight"].tolist()
      (0.875, [0.0, 0.5, 0.75])
    """

    params: Params
    metrics: dict[str, np.ndarray]


def train(
    init: Init,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    num_steps: int,
    steps_per_call: int = 50,
    workdir: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 500,
    show_progress: bool = True,
) -> Trained:
    """Trains from fresh data, resuming what ``workdir`` holds.

    Args:
      init: ``init(key) -> params``, pure; run as one program.
      loss: ``loss(params, key) -> (loss, metrics)``; ``loss`` is a scalar and ``metrics`` a dict of
        scalars. It draws its batch from ``key``. Compiled once per function object: pass the same
        object, not a fresh lambda, to train twice without compiling twice.
      optimizer: any optax transformation.
      key: a typed PRNG key, the seed of everything.
      num_steps: steps in all, the ones before a kill included.
      steps_per_call: steps per dispatch; the host looks at the metrics in between.
      workdir: where ``metrics.jsonl`` and ``checkpoints/`` go; None keeps nothing on disk.
      checkpoint_every: steps between checkpoints, taken at the end of a dispatch. The last step
        always has one.
      show_progress: whether to show a progress bar (or, off a terminal, a line now and then).

    Returns:
      The parameters and the metrics of all steps.

    Raises:
      Preempted (a SystemExit, code 42): SIGTERM came, within ``exit_on_sigterm``; the state is
        saved, and the same call goes on from it.
      TrainingDivergedError: something is not finite. No such state is ever checkpointed.
      ValueError: a count below 1; a metric that is no scalar or has a taken name.
      WorkdirError (a ValueError): ``workdir`` holds a training of another state, key or set of
        metrics, one of more steps, one whose metrics are gone or whose checkpoints are all
        damaged; another process is training there; or it cannot be written, as on a full disk.
      TypeError: ``key`` is no typed PRNG key, or the loss no scalar.

    Examples:
      >>> import optax
      >>> def init(key):
      ...     return jnp.zeros(2)
      >>> def loss(weights, key):
      ...     inputs = jax.random.normal(key, (8, 2))
      ...     return jnp.mean((inputs @ (weights - 1.0)) ** 2), {}
      >>> key, optimizer = jax.random.key(0), optax.sgd(0.1)
      >>> found = train(init, loss, optimizer, key, num_steps=100, show_progress=False)
      >>> print(found.params.round(2), len(found.metrics["loss"]))
      [1. 1.] 100
    """
    for name, value in [
        ("num_steps", num_steps),
        ("steps_per_call", steps_per_call),
        ("checkpoint_every", checkpoint_every),
    ]:
        checks.positive_int("train", name, value)
    checks.prng_key("train", "key", key)
    if not jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key):
        raise TypeError("train: key must be a typed PRNG key; make it with jax.random.key(seed).")

    state: TrainState = run_once(functools.partial(initial_state, init, optimizer), key)
    step = 0
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if workdir is not None:
            log = Path(workdir) / METRICS
            # Held until the training has ended.
            stack.enter_context(contextlib.nullcontext(lock_folder(Path(workdir))))
            checkpoints = stack.enter_context(Checkpoints(Path(workdir) / CHECKPOINTS))
            state, step = _resume(checkpoints, state, key, num_steps)
            rows = keep_rows(log, step)
        report = stack.enter_context((progress if show_progress else silence)(step, num_steps))
        asked_to_stop = stack.enter_context(postponed())

        while step < num_steps:
            count = min(steps_per_call, num_steps - step)
            state, table, is_finite = advance(
                state, key, count, loss=loss, optimizer=optimizer, capacity=steps_per_call
            )
            new_rows = _to_rows(on_host(table), step, count)
            _check_names(rows, new_rows)
            bad = _first_bad(new_rows, bool(is_finite))
            rows += new_rows[:bad]
            if checkpoints is not None:
                append_rows(log, new_rows[:bad])
            if bad is not None:
                raise _diverged(new_rows[bad], rows, checkpoints)
            step += count
            # The metrics are on disk by now: a checkpoint never runs ahead of them.
            stop = any_process(asked_to_stop())  # Processes of one program end together.
            is_due = step // checkpoint_every > (step - count) // checkpoint_every
            if checkpoints is not None and (stop or is_due or step == num_steps):
                checkpoints.save(step, _saved_tree(state, key))
            report(step, new_rows[-1]["loss"])
            if stop:
                raise Preempted
    return Trained(state.params, columns(rows))


def _saved_tree(state: TrainState, key: Array) -> dict[str, Any]:
    return {"state": state, "key": jax.random.key_data(key)}


def _resume(
    checkpoints: Checkpoints, state: TrainState, key: Array, num_steps: int
) -> tuple[TrainState, int]:
    """The newest saved state and its step; ``state`` and 0 where nothing is saved."""
    latest = checkpoints.latest_step()
    if latest is not None and latest > num_steps:
        raise WorkdirError(
            f"train: {checkpoints.folder} is at step {latest} already, beyond num_steps="
            f"{num_steps}. Train in another folder."
        )
    step = checkpoints.newest_intact_step()
    if step is None:
        return state, 0
    expected = _saved_tree(state, key)
    restored = checkpoints.restore(step, expected)
    if not np.array_equal(restored["key"], expected["key"]):
        raise WorkdirError(
            f"train: {checkpoints.folder} was trained from another key. Train in another folder, "
            "or with the seed that it began with."
        )
    return restored["state"], step


def _check_names(rows: list[Row], new_rows: list[Row]) -> None:
    if rows and rows[-1].keys() != new_rows[0].keys():
        raise WorkdirError(
            f"train: the loss gives the metrics {sorted(new_rows[0])}, but the run has "
            f"{sorted(rows[-1])}. Resume with the loss that it began with, or train in another "
            "folder."
        )


def _to_rows(table: dict[str, np.ndarray], step: int, count: int) -> list[Row]:
    names = ["loss", "gradient_norm", *sorted(table.keys() - {"loss", "gradient_norm"})]
    values = {"step": list(range(step + 1, step + count + 1))}
    values |= {name: table[name][:count].tolist() for name in names}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def _first_bad(rows: list[Row], is_finite: bool) -> int | None:
    """The first row that is not finite; the last one where only the parameters are not."""
    for index, row in enumerate(rows):
        if not (math.isfinite(row["loss"]) and math.isfinite(row["gradient_norm"])):
            return index
    return None if is_finite else len(rows) - 1


def _diverged(bad: Row, rows: list[Row], checkpoints: Checkpoints | None) -> TrainingDivergedError:
    saved = checkpoints.latest_step() if checkpoints else None
    before = (
        f"{rows[-1]['loss']:.4g} at step {rows[-1]['step']}" if rows else "none, it is the first"
    )
    kept = f"step {saved} in {checkpoints.folder}" if checkpoints and saved else "none"
    return TrainingDivergedError(
        f"training diverged at step {bad['step']}: loss {bad['loss']:.4g}, gradient norm "
        f"{bad['gradient_norm']:.4g}; the loss before: {before}; last good checkpoint: {kept}. "
        "Lower learning_rate, raise optimizer.warmup_steps or set optimizer.gradient_clip, and "
        "train in another folder.",
        step=int(bad["step"]),
        checkpoint=saved,
    )
