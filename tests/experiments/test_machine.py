"""Which devices an experiment is run on."""

import gzip
import json
import os
import re

import jax
import jax.numpy as jnp
import pytest

from experiments.regression import equivalence
from experiments.tools.flags import parse
from experiments.tools.machine import Machine, MachineError, default_cache, prepared


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


def test_a_trace_can_be_opened_and_the_last_line_counts_programs(tmp_path, capsys, unnamed):
    with prepared(Machine(profile=tmp_path / "trace", platform="cpu")):
        jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((7, 7))))
    (trace,) = tmp_path.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("sin" in str(event.get("name", "")) for event in events)
    assert list(tmp_path.rglob("*.xplane.pb"))  # What TensorBoard opens.
    *_, counted, told = capsys.readouterr().err.strip().splitlines()
    assert re.fullmatch(r"\d+ programs? compiled in .*", counted), counted
    assert told.startswith(f"Trace: {tmp_path / 'trace'}")


def test_compiled_programs_are_kept_unless_somebody_says_not_to():
    assert asked().cache == default_cache()
    assert asked("--compiled=none").cache is None
