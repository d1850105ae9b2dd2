"""Questions, each a module: ``python -m experiments`` lists them, ``experiments.NAME`` runs one.

They live in rooms: ``regression`` (learners of functions), ``linear_attention``, ``language`` (real
models and small ones), over ``tools``, which is all that two rooms share. ``launch`` knows the
tools, and a room by one door, ``launch/programs.py``. An experiment is a file of its room, or a
folder with ``run.py`` and what it needs. Whatever the room, its short name works:
``python -m experiments.descent`` and ``from experiments import descent`` are
``experiments.regression.descent.run``.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

#: Name of an experiment -> the module that has its Config and run.
EXPERIMENTS: Mapping[str, str] = {
    "paper": "experiments.regression.paper",
    "equivalence": "experiments.regression.equivalence",
    "training": "experiments.regression.training",
    "convergence": "experiments.regression.convergence",
    "descent": "experiments.regression.descent.run",
    "alignment": "experiments.regression.alignment",
    "attribution": "experiments.regression.attribution",
    "reusable": "experiments.regression.reusable.run",
    "composition": "experiments.regression.composition.run",
    "demonstrations": "experiments.regression.demonstrations.run",
    "garg": "experiments.regression.garg.run",
    "von_oswald": "experiments.linear_attention.von_oswald.run",
    "depth": "experiments.linear_attention.depth.run",
    "checkpoint": "experiments.language.checkpoint.run",
    "compile": "experiments.language.compile.run",
    "classification": "experiments.language.classification.run",
    "language_model": "experiments.language.language_model",
    "real": "experiments.language.real.run",
    "kept": "experiments.language.kept.run",
    "real_composition": "experiments.language.composition.run",
    "real_demonstrations": "experiments.language.demonstrations.run",
    "prompt_page": "experiments.language.prompt_page.run",
    "sorting": "experiments.language.sorting.run",
    "real_models": "experiments.language.real_models",
}


def source(name: str) -> Path:
    """The file of an experiment, which is not imported."""
    return Path(__file__).parent.parent.joinpath(*EXPERIMENTS[name].split(".")).with_suffix(".py")


class _ShortName(importlib.machinery.SourceFileLoader):
    """Runs an experiment's file under its short name; imported, that is the module itself."""

    def exec_module(self, module: ModuleType) -> None:
        target = EXPERIMENTS[module.__name__.removeprefix("experiments.")]
        sys.modules[module.__name__] = importlib.import_module(target)


class _ShortNames(importlib.abc.MetaPathFinder):
    """Finds ``experiments.NAME`` in its room."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != "experiments" or name not in EXPERIMENTS:
            return None
        file = str(source(name))
        return importlib.util.spec_from_file_location(
            fullname, file, loader=_ShortName(fullname, file)
        )


sys.meta_path.append(_ShortNames())


def _stop(*_: Any) -> None:
    """Ends a program that has done nothing yet, without the traceback of half an import."""
    os.write(2, b"interrupted before anything began; the same command begins again.\n")
    os._exit(130)


# This package is imported before any other module of ``python -m experiments.NAME``, and JAX takes
# seconds. (sys.argv[0] is "-m" while Python looks for the module: never in a library.) From
# ``flags.launch`` on, Ctrl-C is an exception again.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)
