"""How many programs JAX compiled, and how long it took: the hidden cost of a run.

    with count_compilations() as compilations:
        ...
    print(compilations)  # 12 programs compiled in 3.4 s

Counted is what the whole process compiles while the block is open, operations outside of any
``jit`` included, because each of those is a program of its own, too.
"""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
from jax import monitoring

# Names that JAX gives to its own events; they are no public interface, so a test asks for them.
_COMPILE = "/jax/core/compile/backend_compile_duration"
_TRACE = "/jax/core/compile/jaxpr_trace_duration"
_LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


#: For a program that runs once: most of the time of such a one is LLVM's, so ask for less of that.
#: (Not for none, which is slower to run than it is quicker to compile.)
ONCE: Mapping[str, Any] = MappingProxyType({"xla_backend_optimization_level": 1})


def run_once(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` as one program that is compiled in a hurry, because it runs once.

    What an initialisation does is a hundred small programs otherwise, each compiled for its shape.

    Args:
      function: pure; what it closes over is a part of the program.
      *args: its arguments, none of them traced.

    Examples:
      >>> from icl_jax.compilations import run_once
      >>> float(run_once(jnp.sum, jnp.ones(3)))
      3.0
    """
    return jax.jit(function, compiler_options=dict(ONCE))(*args)


class Compilations:
    """What was compiled so far; it goes on counting while its block is open.

    Attributes:
      number: programs that the backend was asked for.
      loaded: how many of them came from the compilation cache on disk.
      seconds: time in which something was traced, lowered or compiled. What overlaps (a function
        traced within another, two threads at once) counts once.
      programs: the name of each program -> how often it was compiled. A name with a large number is
        a function that is compiled anew for every call or shape.
    """

    def __init__(self) -> None:
        self.number = 0
        self.loaded = 0
        self.programs: collections.Counter[str] = collections.Counter()
        self._spans: list[tuple[float, float]] = []  # Disjoint, in the order of their ends.
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """Time in which something was traced, lowered or compiled."""
        with self._lock:
            return sum(end - start for start, end in self._spans)

    def __str__(self) -> str:
        programs = "program" if self.number == 1 else "programs"
        cache = f", {self.loaded} of them from the cache" if self.loaded else ""
        return f"{self.number} {programs} compiled in {self.seconds:.1f} s{cache}"

    def _on_span(self, event: str, start_time: float, end_time: float, **about: str | int) -> None:
        if event not in (_COMPILE, _TRACE, _LOWER):
            return
        start, end = start_time, end_time
        with self._lock:
            if event == _COMPILE:
                self.number += 1
                self.programs[str(about.get("fun_name", "unknown"))] += 1
            # Spans are reported at their ends, so those inside or overlapping are the last ones.
            while self._spans and self._spans[-1][1] > start:
                earlier_start, earlier_end = self._spans.pop()
                start, end = min(start, earlier_start), max(end, earlier_end)
            self._spans.append((start, end))

    def _on_event(self, event: str, **about: str | int) -> None:
        if event == _CACHE_HIT:
            with self._lock:
                self.loaded += 1


@contextlib.contextmanager
def count_compilations() -> Iterator[Compilations]:
    """Counts what is compiled in the block; blocks may be nested, and each counts for itself.

    Yields:
      The count, which stands still when the block ends.
    """
    compilations = Compilations()
    monitoring.register_event_time_span_listener(compilations._on_span)
    monitoring.register_event_listener(compilations._on_event)
    try:
        yield compilations
    finally:
        monitoring.unregister_event_time_span_listener(compilations._on_span)
        monitoring.unregister_event_listener(compilations._on_event)
