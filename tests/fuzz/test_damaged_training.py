"""Trainings with damaged files go on as if nothing had happened, or name what is damaged."""

import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icl_jax.records import WorkdirError
from icl_jax.training.loop import train
from tests.fuzz import damage

pytestmark = [
    pytest.mark.fuzz,
    # It says so where it goes on from the checkpoint before.
    pytest.mark.filterwarnings("ignore:damaged checkpoints in:UserWarning"),
]

OPTIMIZER = optax.adam(1e-2)
WAYS = (damage.truncate, damage.flip, lambda random, file: damage.empty(random, file, ("empty",)))


def init(key):
    return {"weights_DH": jax.random.normal(key, (8, 16)), "bias_H": jnp.zeros(16)}


def loss(params, key):
    inputs_BD = jax.random.normal(key, (32, 8))
    outputs_BH = inputs_BD @ params["weights_DH"] + params["bias_H"][None]
    return jnp.mean((outputs_BH - 1) ** 2), {}


def trained(folder, num_steps):
    return train(
        init,
        loss,
        OPTIMIZER,
        jax.random.key(0),
        num_steps=num_steps,
        steps_per_call=2,
        checkpoint_every=2,
        workdir=folder,
        show_progress=False,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that was stopped after four steps of six."""
    folder = tmp_path_factory.mktemp("training") / "whole"
    folder.mkdir()
    trained(folder, 4)
    return folder


@pytest.fixture(scope="module")
def undisturbed(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(whole, folder)
    return trained(folder, 6)


@pytest.mark.parametrize("seed", range(45))
def test_a_damaged_training_ends_as_the_undisturbed_one_or_names_its_folder(
    whole, undisturbed, tmp_path, seed
):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    random = np.random.default_rng(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    WAYS[seed % len(WAYS)](random, files[random.integers(len(files))])
    start = time.process_time()
    try:
        found = trained(folder, 6)
    except WorkdirError as error:
        assert str(folder) in str(error)
    else:
        for name, array in undisturbed.params.items():
            np.testing.assert_array_equal(found.params[name], array)
        for name, column in undisturbed.metrics.items():
            np.testing.assert_array_equal(found.metrics[name], column)
    assert time.process_time() - start < 10
