"""Independent cases of an experiment, several at a time: XLA compiles without Python's lock."""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from experiments.tools.conduct import each

Item = TypeVar("Item")
Result = TypeVar("Result")


def at_once(
    work: Callable[[Item], Result], items: Collection[Item], what: str
) -> Iterator[tuple[Item, Result]]:
    """Every item with what ``work`` says of it, in order, behind a progress bar.

    In threads, as many as the machine has cores. One after another where a mesh is set: a thread
    does not see it, and programs that talk to each other have to run in one order everywhere.
    """
    if not jax.sharding.get_mesh().empty or jax.process_count() > 1:
        for item in each(items, what):
            yield item, work(item)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pending = {item: pool.submit(work, item) for item in items}
        try:
            for item in each(items, what):
                yield item, pending[item].result()
        finally:  # After an error or Ctrl-C, what has not begun does not begin.
            pool.shutdown(wait=False, cancel_futures=True)


def computed_in(dtype: Any) -> contextlib.AbstractContextManager[Any]:
    """Where to compute in a dtype: float64 on the host, whatever accelerator there is.

    TPUs have no float64, and for a GPU a program of it takes XLA some ten times as long to compile.
    """
    if jax.numpy.dtype(dtype) != "float64" or not jax.sharding.get_mesh().empty:
        return contextlib.nullcontext()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS names the accelerator alone.
        return contextlib.nullcontext()
