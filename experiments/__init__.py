"""One file per question: ``python -m experiments.NAME --help`` says what it asks and expects."""

import os
import signal
import sys
from typing import Any


def _stop(*_: Any) -> None:
    """Ends a program that has done nothing yet, without the traceback of half an import."""
    os.write(2, b"interrupted before anything began; the same command begins again.\n")
    os._exit(130)


# This package is imported before any other module of ``python -m experiments.NAME``, and JAX takes
# seconds. (sys.argv[0] is "-m" while Python looks for the module: never in a library.) From
# ``flags.launch`` on, Ctrl-C is an exception again.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)
