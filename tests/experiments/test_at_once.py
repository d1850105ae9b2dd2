"""Cases that are computed several at a time."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tools import at_once as tool
from experiments.tools.at_once import at_once, computed_in


def test_results_come_in_the_order_of_the_items_and_from_several_threads(monkeypatch):
    monkeypatch.setattr(tool.os, "cpu_count", lambda: 3)
    together = threading.Barrier(3, timeout=60)  # Nobody passes alone.

    def work(item):
        together.wait()
        return 10 * item, threading.current_thread()

    found = list(at_once(work, [3, 1, 2], "numbers"))
    assert [(item, result[0]) for item, result in found] == [(3, 30), (1, 10), (2, 20)]
    assert len({result[1] for _, result in found}) == 3


def test_an_error_is_raised_and_what_has_not_begun_does_not_begin(monkeypatch):
    monkeypatch.setattr(tool.os, "cpu_count", lambda: 1)
    begun, failed = [], threading.Event()

    def work(item):
        begun.append(item)
        if item == 1:
            failed.set()
            raise ValueError("one is wrong")
        failed.wait(timeout=60)
        time.sleep(0.1)  # What has begun is waited for: a thread cannot be ended.

    with pytest.raises(ValueError, match="one is wrong"):
        for _ in at_once(work, [1, 2, 3, 4], "numbers"):
            pass
    assert set(begun) <= {1, 2}


def test_on_a_mesh_they_come_one_after_another_in_its_thread():
    mesh = jax.make_mesh((1,), ("data",))
    with jax.set_mesh(mesh):
        found = dict(at_once(lambda _: threading.current_thread(), [1, 2], "numbers"))
    assert set(found.values()) == {threading.current_thread()}


def test_float64_is_computed_on_the_host():
    with computed_in("float64"):
        assert jnp.ones(3).devices() == {jax.local_devices(backend="cpu")[0]}
    before = jax.config.jax_default_device
    with computed_in(jnp.float32):
        assert jax.config.jax_default_device == before
    with jax.enable_x64(True), computed_in(np.float64):
        assert float(jnp.sum(jnp.ones(3, jnp.float64))) == 3
