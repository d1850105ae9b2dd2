"""A small training in a process of its own, for the tests that kill it.

    python trainee.py WORKDIR OUTPUT.npz [KILL [SIGNAL]]

With KILL the process kills itself when a temporary folder of a checkpoint is about to get its name
for the KILL-th time. A checkpoint has two: the state's (odd), in the one of the step (even). SIGNAL
is KILL unless given; INT is a Ctrl-C at that moment.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from icl_jax.records import Run
from icl_jax.training.config import TrainingConfig, make_optimizer, usual_optimizer
from icl_jax.training.loop import train
from icl_jax.training.preemption import exit_on_sigterm

CONFIG = TrainingConfig(
    num_steps=403,
    steps_per_call=5,
    checkpoint_every=20,
    learning_rate=0.01,
    optimizer=usual_optimizer("adamw"),
)


def init(key):
    first, second = jax.random.split(key)
    return {
        "in": jax.random.normal(first, (8, 16), jnp.float32),
        "out": jax.random.normal(second, (16,), jnp.float32),
    }


def loss(params, key):
    inputs_BD = jax.random.normal(key, (32, 8), jnp.float32)
    errors_B = jnp.tanh(inputs_BD @ params["in"]) @ params["out"] - jnp.sum(inputs_BD, axis=1)
    return jnp.mean(errors_B**2), {"worst": jnp.max(jnp.abs(errors_B))}


def kill_at_rename(number, name):
    """Makes the ``number``-th rename of a temporary folder kill the process."""
    seen = set()
    rename = os.rename

    def deadly(source, *args, **kwargs):
        if Path(source).name.endswith("checkpoint-tmp"):
            seen.add(os.fspath(source))
        if len(seen) == number:
            seen.add("done")
            os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
        return rename(source, *args, **kwargs)

    os.rename = deadly


def main(workdir, output, kill=None, name="KILL"):
    if kill is not None:
        kill_at_rename(int(kill), name)
    trained = train(
        init,
        loss,
        make_optimizer(CONFIG),
        jax.random.key(CONFIG.seed),
        num_steps=CONFIG.num_steps,
        steps_per_call=CONFIG.steps_per_call,
        checkpoint_every=CONFIG.checkpoint_every,
        workdir=workdir,
    )
    Run(Path(output).parent).save_arrays(Path(output).name, trained.params)


if __name__ == "__main__":
    try:
        with exit_on_sigterm():
            main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
