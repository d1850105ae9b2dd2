"""A trace names the steps of a run as the library does (``--profile``)."""

import re

import jax
import jax.numpy as jnp

from icl_jax.blocks.block import Block
from icl_jax.patches.extraction import extract
from icl_jax.tasks.catalogue import make_task
from icl_jax.tasks.prompt import sample_prompts
from tests.helpers import LAYERS, MLPS, make_model


def scopes(function, *args):
    """The parts of all operations' names in a program, and not of the files they come from."""
    text = jax.jit(function).lower(*args).as_text(debug_info=True)
    names = re.findall(r'loc\("([^"/][^"]*/[^"]*)"', text)
    return {part for name in names if not name.endswith(".py") for part in name.split("/")}


def test_the_steps_of_a_layer_have_names():
    model = make_model(Block(LAYERS["attention"], MLPS["gated"], "pre_norm", "rms"), 3)
    stream_TD = model.embed(jnp.ones((5, 3), jnp.float32))

    def patched(stream_TD):
        return extract(model.layers, stream_TD, jnp.array([0, 4]), loop="closed", output="auto")

    assert {"contextual", "mlp", "patches"} <= scopes(patched, stream_TD)


def test_drawing_tasks_has_a_name():
    task = make_task("linear", 3)

    def drawn(key):
        return sample_prompts(task, key, num_prompts=2, num_examples=4)

    assert "tasks" in scopes(drawn, jax.random.key(0))
