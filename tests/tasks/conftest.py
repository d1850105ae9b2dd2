"""How the tests of the tasks draw: compiled once per size, and looked at as NumPy arrays."""

import jax
import jax.numpy as jnp
import pytest

from icl_jax.tasks.prompt import sample_prompts

# Compiling a random number generator takes a second, running it a millisecond: don't optimise.
_compiled = jax.jit(
    sample_prompts,
    static_argnames=("task", "num_prompts", "num_examples", "dtype"),
    compiler_options={"xla_backend_optimization_level": 0},
)


@pytest.fixture(scope="session")
def draw():
    """``draw(task, seed=0, num_prompts=..., num_examples=...)``: a float64 batch on the host."""

    def draw(task, *, seed=0, num_prompts, num_examples):
        key = jax.random.key(seed)
        sizes = {"num_prompts": num_prompts, "num_examples": num_examples}
        return jax.device_get(_compiled(task, key, dtype=jnp.float64, **sizes))

    return draw
