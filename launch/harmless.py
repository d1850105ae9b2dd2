"""What is worth a try and must not end a run: copies, trackers, notes of what it does."""

import contextlib
import sys
from collections.abc import Iterator


class Harmless:
    """Blocks whose errors are printed, each once, and go no further.

    Errors of every kind: buckets and trackers raise their own.
    """

    def __init__(self, who: str) -> None:
        """Of ``who``, a module, whose name the lines begin with."""
        self._who = who
        self._said: set[str] = set()

    @contextlib.contextmanager
    def __call__(self, what: str, so: str) -> Iterator[None]:
        """A block.

        Args:
          what: did not happen where it raises, in words.
          so: what that means.
        """
        try:
            yield
        except Exception as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            line = f"{self._who}: {what} ({why}); {so}."
            if line not in self._said:  # The same is often tried every few seconds.
                self._said.add(line)
                print(line, file=sys.stderr, flush=True)
