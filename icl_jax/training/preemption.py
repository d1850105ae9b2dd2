"""SIGTERM means: save what there is, and end with a code that says "start me again".

    with exit_on_sigterm():
        ...                       # SIGTERM raises Preempted (a SystemExit, code 42) here,
        with postponed() as asked:
            while ...:            # but not here: the loop asks, saves, and raises it itself.
                if asked():
                    save()
                    raise Preempted

Machines that are rented by the minute are taken back with SIGTERM and some seconds of grace; 42 is
the code that xpk and GKE's job descriptions restart.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_CODE = 42


class Preempted(SystemExit):  # noqa: N818 (an exit, no error)
    """The process was asked to end, and everything that it can go on from is saved."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class _State:
    """Of this process; signals have no other scope."""

    asked = False
    postponements = 0


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """In the block SIGTERM raises ``Preempted`` in the main thread, which must be the caller's."""
    before = signal.signal(signal.SIGTERM, _handle)
    _State.asked = False
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _State.asked = False


@contextlib.contextmanager
def postponed() -> Iterator[Callable[[], bool]]:
    """In the block SIGTERM raises nothing; the yielded function says whether it came.

    If it came, and the block ends as if it had not, ``Preempted`` is raised at its end.
    """
    _State.postponements += 1
    try:
        yield lambda: _State.asked
    finally:
        _State.postponements -= 1
    if _State.asked and not _State.postponements:
        raise Preempted


def _handle(number: int, frame: FrameType | None) -> None:
    _State.asked = True
    if not _State.postponements:
        raise Preempted
