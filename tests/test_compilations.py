"""Compilations are counted: each once, with its name, whoever asked for it."""

import secrets
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.compilations import (
    _COMPILE,
    _LOWER,
    _TRACE,
    Compilations,
    count_compilations,
    run_once,
)


def fresh(name="doubled"):
    """A function that was never compiled, on this machine either, under a name."""
    number = float(secrets.randbits(50))

    def function(x):
        return x + number

    function.__name__ = name
    return jax.jit(function)


@pytest.fixture
def x():
    return jax.block_until_ready(jax.device_put(np.arange(3.0)))


def test_what_runs_once_is_one_program(x):
    number = float(secrets.randbits(50))
    with count_compilations() as compilations:
        found = run_once(lambda x: {"sum": jnp.sum(x + number), "twice": 2 * x}, x)
    assert compilations.number == 1
    np.testing.assert_array_equal(found["twice"], 2 * np.asarray(x))


def test_a_program_counts_once_however_often_it_runs(x):
    function = fresh()
    with count_compilations() as compilations:
        for _ in range(3):
            function(x)
    assert compilations.number == 1
    assert compilations.loaded == 0
    assert sum(compilations.programs.values()) == 1
    assert "doubled" in next(iter(compilations.programs))


def test_a_function_compiled_for_every_shape_is_seen_by_its_name():
    function = fresh("shapeshifter")
    inputs = [np.arange(float(n)) for n in range(1, 5)]
    with count_compilations() as compilations:
        for value in inputs:
            function(value)
    ((name, count),) = compilations.programs.most_common(1)
    assert "shapeshifter" in name and count == 4


def test_operations_outside_of_jit_are_programs_too(x):
    jax.clear_caches()
    with count_compilations() as compilations:
        jnp.sinh(x)
    assert compilations.number >= 1


def test_nothing_is_counted_after_the_block_and_other_blocks_count_for_themselves(x):
    with count_compilations() as outer:
        fresh()(x)
        with count_compilations() as inner:
            fresh()(x)
        assert (outer.number, inner.number) == (2, 1)
        fresh()(x)
    fresh()(x)
    assert (outer.number, inner.number) == (3, 1)


def test_an_error_in_the_block_ends_the_count(x):
    with pytest.raises(ZeroDivisionError), count_compilations() as compilations:
        raise ZeroDivisionError
    fresh()(x)
    assert compilations.number == 0


def test_the_seconds_are_within_those_of_the_clock(x):
    start = time.perf_counter()
    with count_compilations() as compilations:
        fresh()(x)
    assert 0 < compilations.seconds <= 1.1 * (time.perf_counter() - start)


def test_other_threads_count(x):
    with count_compilations() as compilations:
        threads = [threading.Thread(target=fresh(), args=(x,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert compilations.number == 4


def test_what_overlaps_counts_once():
    compilations = Compilations()
    compilations._on_span(_TRACE, 0.0, 1.0)
    compilations._on_span(_TRACE, 2.5, 3.0)  # Inside the next one, as a jit within a jit is.
    compilations._on_span(_TRACE, 2.0, 4.0)
    compilations._on_span(_LOWER, 3.5, 4.5)  # Another thread.
    compilations._on_span(_COMPILE, 4.5, 6.0, fun_name="f")
    compilations._on_span("/jax/another/event", 0.0, 100.0)
    assert compilations.seconds == 1.0 + 4.0
    assert compilations.number == 1


def test_a_program_from_the_cache_on_disk_is_told_apart(tmp_path, x):
    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_enable_compilation_cache": True,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    from jax.experimental.compilation_cache import compilation_cache

    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        function = fresh("kept")
        with count_compilations() as first:
            function(x)
        jax.clear_caches()  # In memory; on disk it stays.
        with count_compilations() as second:
            function(x)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert (first.number, first.loaded) == (1, 0)
    assert (second.number, second.loaded) == (1, 1)
    assert str(second).endswith(" s, 1 of them from the cache")


def test_it_says_what_it_counted():
    compilations = Compilations()
    compilations._on_span(_COMPILE, 0.0, 3.44, fun_name="f")
    assert str(compilations) == "1 program compiled in 3.4 s"
    compilations._on_span(_COMPILE, 4.0, 4.0, fun_name="g")
    assert str(compilations) == "2 programs compiled in 3.4 s"
