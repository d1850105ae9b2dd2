"""The compiled programs of ``programs.py`` on a mesh, and what their devices say to each other.

python -m tests.sharding.compiled --write      # writes the golden file again
"""

import functools
import json
import sys
from pathlib import Path

import tests.conftest  # noqa: F401 (eight devices, and the settings of the tests, when run alone)

import jax  # isort: skip
import jax.numpy as jnp

from icl_jax.blocks.functional import functional
from icl_jax.dynamics import prefixes
from icl_jax.language import attribution, prompt, writing
from icl_jax.language.batch import pad_prompts
from icl_jax.language.ends import embed
from icl_jax.language.sampling import GREEDY
from icl_jax.sharding import make_mesh
from icl_jax.stack.sites import watch
from icl_jax.training.step import advance
from launch import costs
from launch.hlo import Program
from tests.sharding.programs import KEPT, LOSSES, OPTIMIZER, TOKENS, setting, training_state

GOLDEN = Path(__file__).parent / "golden" / "collectives.json"
MESH = {"data": 4, "model": 2}
STOP_S = jnp.full(8, -1, jnp.int32)


def _prompts(on):
    return pad_prompts("test", on.model, TOKENS, KEPT)


def _bank(on):
    banks, _ = prompt._patches(on.model, on.params, _prompts(on), loop="closed", output="auto")
    return banks.patches


def _watching(on):
    return watch("test", functional(on.model, on.params), (), None, writing.ENDS)


def _keys():
    return jax.random.split(jax.random.key(0), len(TOKENS))


def _text(on):
    return writing.begin(
        on.model, on.params, _prompts(on), None, _keys(), STOP_S, _watching(on),
        room=8, sampling=GREEDY,
    )  # fmt: skip


def _patched_text(on):
    return writing.begin_patched(
        on.model, on.params, _prompts(on), _keys(), STOP_S,
        room=8, sampling=GREEDY, output="auto",
    )  # fmt: skip


def _prefixes(on):
    stream_TD = embed(on.model, on.params, jnp.asarray(TOKENS[0]))
    layers = functional(on.model, on.params)
    return prefixes._probe_pass.lower(layers, stream_TD[:-1], stream_TD)


#: By name: the program, lowered.
LOWERED = {
    "full": lambda on: prompt._full.lower(on.model, on.params, _prompts(on)),
    "patches": lambda on: prompt._patches.lower(
        on.model, on.params, _prompts(on), loop="closed", output="auto"
    ),
    "patched": lambda on: prompt._alone.lower(on.model, on.params, _prompts(on), _bank(on)),
    "generate": lambda on: writing.go_on.lower(
        on.model, on.params, _text(on), 8, STOP_S, _watching(on), sampling=GREEDY
    ),
    "patched_generate": lambda on: writing.go_on_patched.lower(
        on.model, on.params, _patched_text(on), 8, STOP_S, sampling=GREEDY, output="auto"
    ),
    "attribute": lambda on: attribution._attribute.lower(
        on.model, on.params, _prompts(on), jnp.ones(len(TOKENS), jnp.int32), "input"
    ),
    "prefixes": _prefixes,
    "training": lambda on: advance.lower(
        training_state(on), jax.random.key(0), 3,
        loss=LOSSES["gated"], optimizer=OPTIMIZER, capacity=3,
    ),
}  # fmt: skip


@functools.cache
def program(name, **options):
    """A compiled program, read."""
    with jax.set_mesh(make_mesh(MESH)):
        on = setting(jnp.float32, **options)
        return Program(LOWERED[name](on).compile().as_text())


def collectives(name, **options):
    """What its devices say to each other."""
    return [str(one) for one in costs.collectives(program(name, **options))]


if __name__ == "__main__" and "--write" in sys.argv:
    GOLDEN.parent.mkdir(exist_ok=True)
    found = {name: collectives(name) for name in LOWERED}
    GOLDEN.write_text(
        json.dumps({"jaxlib": jax.lib.__version__, "programs": found}, indent=1) + "\n"
    )
    print(GOLDEN.read_text())
