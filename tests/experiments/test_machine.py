"""Which devices an experiment is run on."""

import os

import jax
import pytest

from experiments.regression import equivalence
from experiments.tools.flags import parse
from experiments.tools.machine import Machine, MachineError, prepared


@pytest.fixture
def unnamed(monkeypatch):
    """Nobody has named a platform yet, nor how to compile."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    yield
    jax.config.update("jax_platforms", before)


def asked(*flags):
    return parse(equivalence.Config, ["equivalence", "--workdir=x", *flags]).machine


def looked_for(machine):
    with prepared(machine):
        return jax.config.jax_platforms


def test_a_small_job_runs_on_the_host_unless_devices_are_named(unnamed):
    assert looked_for(Machine()) is None
    assert looked_for(Machine(small=True, mesh="data:1")) is None
    assert looked_for(Machine(small=True)) == "cpu"
    jax.config.update("jax_platforms", "cuda,cpu")  # As JAX_PLATFORMS does.
    assert looked_for(Machine(small=True)) == "cuda,cpu"
    assert looked_for(Machine(platform="cpu")) == "cpu"


def test_a_small_job_on_the_host_is_compiled_in_a_hurry_unless_told_how(unnamed, monkeypatch):
    given = os.environ["XLA_FLAGS"]
    looked_for(Machine())
    assert os.environ["XLA_FLAGS"] == given
    jax.config.update("jax_platforms", None)
    looked_for(Machine(small=True))
    hurried = f"{given} --xla_backend_optimization_level=1"
    assert os.environ["XLA_FLAGS"] == hurried
    jax.config.update("jax_platforms", None)
    looked_for(Machine(small=True))
    assert os.environ["XLA_FLAGS"] == hurried
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=2")
    jax.config.update("jax_platforms", None)
    looked_for(Machine(small=True))
    assert os.environ["XLA_FLAGS"] == "--xla_backend_optimization_level=2"


def test_the_command_line_says_so():
    assert asked("--quick", "--compiled=none") == Machine(small=True)
    assert asked("--platform=cpu", "--compiled=none") == Machine(platform="cpu")


def test_a_platform_that_is_not_there_is_refused(unnamed):
    with pytest.raises(MachineError, match="--platform=tpu: JAX finds no such device here"):
        looked_for(Machine(platform="tpu"))
    assert jax.config.jax_platforms is None
