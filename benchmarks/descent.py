"""How much does it save to run thousands of descents as one program?

    python -m benchmarks.descent --json=FILE

Linear regression by full-batch gradient descent, every task at every learning rate: one compiled
program for all of them, against a Python loop over tasks and rates with a jitted step; against a
loop over tasks alone whose jitted step takes all rates at once, which is the best that such a loop
can do; and against PyTorch's loop, with ``loss.backward()`` and ``torch.optim.SGD``. The loops run
``--looped`` of the tasks, and their times are scaled to all: every task takes the same work. All
sides compute in float32 and have to end at the same weights.

Then the same program on 1, 2, 4 and 8 devices, with as many tasks on each: how many collectives
were compiled into it, and the memory of each device. The devices are forced ones of one CPU, so
nothing is timed there: two cores prove nothing about the speed of eight devices.
"""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Side, as_row, compare, launch, nbytes
from icl_jax.descent.finetune import descend
from icl_jax.descent.fleet import fleet
from icl_jax.descent.line_search import rate_grid
from icl_jax.dims import Array

_TASKS = flags.DEFINE_integer("tasks", 1000, "tasks", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 100, "steps of every descent", lower_bound=1)
_RATES = flags.DEFINE_integer("rates", 8, "learning rates", lower_bound=2)
_WIDTH = flags.DEFINE_integer("width", 10, "inputs d", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer("examples", 10, "examples N per task", lower_bound=1)
_LOOPED = flags.DEFINE_integer("looped", 10, "tasks that the loops run", lower_bound=1)
_DEVICES = flags.DEFINE_list("devices", ["1", "2", "4", "8"], "counts of forced devices")

#: ``(inputs, targets)``, with a leading axis B where there are many.
Regression = tuple[Array, Array]


def loss(weights_D: Array, task: Regression) -> Array:
    """The mean squared error of a linear function, ()."""
    inputs_ND, targets_N = task
    return jnp.mean((inputs_ND @ weights_D - targets_N) ** 2)


def run(task: Regression, rate: Array, num_steps: int) -> Array:
    """The weights (D,) after gradient descent from zero."""
    start_D = jnp.zeros(task[0].shape[-1], jnp.float32)
    found = descend(
        functools.partial(loss, task=task),
        start_D,
        optax.sgd(rate),
        num_steps=num_steps,
        record=lambda weights_D: (),
    )
    final: Array = found.final
    return final


@functools.partial(jax.jit, static_argnames="num_steps")
def one_program(tasks: Regression, rates_X: Array, num_steps: int) -> Array:
    """All final weights, (B, X, D)."""
    return fleet(functools.partial(run, num_steps=num_steps), tasks, rates_X)


@jax.jit
def step(weights_D: Array, task: Regression, rate: Array) -> Array:
    """One step of one descent."""
    return weights_D - rate * jax.grad(loss)(weights_D, task)


@jax.jit
def step_of_all_rates(weights_XD: Array, task: Regression, rates_X: Array) -> Array:
    """One step of a task's descents at all rates."""
    return jax.vmap(step, in_axes=(0, None, 0))(weights_XD, task, rates_X)


def loop(tasks: list[Regression], rates: list[Array], num_steps: int) -> Array:
    """Tasks and rates one after the other, (B, X, D)."""
    ends = []
    for task in tasks:
        for rate in rates:
            weights_D = jnp.zeros(task[0].shape[-1], jnp.float32)
            for _ in range(num_steps):
                weights_D = step(weights_D, task, rate)
            ends.append(weights_D)
    return jnp.stack(ends).reshape(len(tasks), len(rates), -1)


def loop_over_tasks(tasks: list[Regression], rates_X: Array, num_steps: int) -> Array:
    """Tasks one after the other, all rates at once, (B, X, D)."""
    ends = []
    for task in tasks:
        weights_XD = jnp.zeros((rates_X.shape[0], task[0].shape[-1]), jnp.float32)
        for _ in range(num_steps):
            weights_XD = step_of_all_rates(weights_XD, task, rates_X)
        ends.append(weights_XD)
    return jnp.stack(ends)


def torch_loop(tasks: list[Regression], rates: list[Array], num_steps: int) -> np.ndarray:
    """As ``loop``, as one writes it in PyTorch."""
    import torch

    ends = []
    for task in tasks:
        inputs, targets = (torch.tensor(np.asarray(part)) for part in task)
        for rate in rates:
            weights = torch.zeros(inputs.shape[-1], requires_grad=True)
            optimizer = torch.optim.SGD([weights], lr=float(rate))
            for _ in range(num_steps):
                optimizer.zero_grad()
                torch.mean((inputs @ weights - targets) ** 2).backward()
                optimizer.step()
            ends.append(weights.detach().numpy())
    return np.stack(ends).reshape(len(tasks), len(rates), -1)


def draw(count: int) -> Regression:
    """Tasks with a leading axis B."""
    keys = jax.random.split(jax.random.key(0), 2)
    inputs_BND = jax.random.normal(keys[0], (count, _EXAMPLES.value, _WIDTH.value))
    weights_BD = jax.random.normal(keys[1], (count, _WIDTH.value))
    return inputs_BND, jnp.einsum("bnd,bd->bn", inputs_BND, weights_BD)


def loop_rows() -> list[dict[str, Any]]:
    """One program against the loops."""
    count, num_steps = _TASKS.value, _STEPS.value
    looped = min(_LOOPED.value, count)
    tasks = draw(count)
    rates_X = rate_grid(1e-3, 0.1, _RATES.value, jnp.float32)
    few, rates = [jax.tree.map(lambda leaf: leaf[i], tasks) for i in range(looped)], list(rates_X)  # noqa: B023
    loops = {
        "loop over tasks and rates, jitted step": lambda: loop(few, rates, num_steps),
        "loop over tasks, jitted step of all rates": lambda: loop_over_tasks(
            few, rates_X, num_steps
        ),
    }
    try:
        import torch  # noqa: F401

        loops["PyTorch, loop over tasks and rates"] = lambda: torch_loop(few, rates, num_steps)
    except ImportError:
        Console(stderr=True).print(
            'Without PyTorch its loop is left out: pip install "icl_jax[parity]".'
        )
    together = one_program(tasks, rates_X, num_steps)
    sizes = {
        "tasks": count,
        "steps": num_steps,
        "rates": _RATES.value,
        "width": _WIDTH.value,
        "examples": _EXAMPLES.value,
        "looped": looped,
    }
    rows = []
    for name, other in loops.items():
        np.testing.assert_allclose(together[:looped], np.asarray(other()), rtol=1e-3, atol=1e-4)
        # Interleaved, a loop's time scaled to all tasks.
        row = compare(
            name,
            {
                "one program": Side(lambda: one_program(tasks, rates_X, num_steps)),
                name: Side(other),
            },
            sizes=sizes,
        )
        times = row["sides"]
        scale = count / looped
        rows.append(
            as_row(
                f"{count} tasks x {num_steps} steps x {_RATES.value} rates (loop: {looped} tasks, "
                "scaled)",
                {
                    "one program": [times["one program"]["seconds"]],
                    name: [times[name]["seconds"] * scale],
                },
                {"one program": nbytes(together), name: nbytes(together)},
                sizes=sizes,
            )
        )
    return rows


#: Run in a process of its own, which is told of its devices before JAX starts.
_SCALED = """
import functools, json, re, sys
import jax, jax.numpy as jnp
from benchmarks.descent import run
from icl_jax.descent.fleet import fleet
from icl_jax.sharding import shard_tasks, task_mesh

tasks_per_device, steps, rates, examples, width = map(int, sys.argv[1:])
devices = jax.device_count()
count = tasks_per_device * devices
tasks = shard_tasks((jnp.ones((count, examples, width)), jnp.ones((count, examples))), task_mesh())
rates_X = jnp.geomspace(1e-3, 0.1, rates)

def final(tasks, rates_X):
    return fleet(functools.partial(run, num_steps=steps), tasks, rates_X)

def mean(tasks, rates_X):
    return jnp.mean(jnp.abs(final(tasks, rates_X)), axis=(0, 2))

found = {"devices": devices, "tasks": count}
for name, function in (("every descent", final), ("mean over tasks", mean)):
    compiled = jax.jit(function).lower(tasks, rates_X).compile()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    memory = compiled.memory_analysis()
    parts = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
    found[name] = {
        "collectives": re.findall(rf"\\b({kinds})(?:-start)?\\(", compiled.as_text()),
        "bytes_per_device": sum(parts),
    }
print(json.dumps(found))
"""


def scaling() -> list[dict[str, Any]]:
    """For every count of devices: tasks, collectives, memory per device."""
    per_device = -(-_TASKS.value // 8)
    numbers = (per_device, _STEPS.value, _RATES.value, _EXAMPLES.value, _WIDTH.value)
    found = []
    for devices in _DEVICES.value:
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        done = subprocess.run(
            [sys.executable, "-c", _SCALED, *map(str, numbers)],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def benchmark() -> list[dict[str, Any]]:
    """The rows of the loops, the first of them with the scaling."""
    start = time.perf_counter()
    rows = loop_rows()
    scaled = scaling()
    table = Table(title="weak scaling on forced devices of one CPU: compiled, not timed")
    for column in ("devices", "tasks", "program", "collectives", "bytes per device"):
        table.add_column(column, justify="right")
    for each in scaled:
        for name in ("every descent", "mean over tasks"):
            table.add_row(
                str(each["devices"]),
                str(each["tasks"]),
                name,
                ", ".join(each[name]["collectives"]) or "none",
                f"{each[name]['bytes_per_device']:,}",
            )
    Console().print(table, f"{time.perf_counter() - start:.0f} s in all")
    rows[0]["scaling"] = scaled
    return rows


if __name__ == "__main__":
    launch(benchmark)
