"""A frozen dataclass as a command line: every field a flag, nested dataclasses dotted.

    @dataclass(frozen=True)
    class Config:
        num_prompts: int = option(100, "prompts per case")
        training: TrainingConfig = field(default_factory=TrainingConfig)

    if __name__ == "__main__":
        launch(Config, run, __doc__)

gives ``--num_prompts``, ``--training.num_steps`` and so on, beside ``--workdir`` and, where there
is a ``Config.quick()``, ``--quick``. Which types a field may have: ``fields.py``.
"""

import functools
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags
from etils import epath

from experiments.tools.fields import (
    UsageError,
    check_size,
    converted,
    items,
    option,
    overridden,
    shown,
    unknown_flag,
)
from experiments.tools.machine import PLATFORMS, Machine, default_cache, prepared
from experiments.tools.manual import describe
from experiments.tools.output import told
from experiments.tools.processes import Distributed, LostPeerError, MachineError
from icl_jax.checks import NumericalError
from icl_jax.records import WorkdirError
from icl_jax.training.loop import TrainingDivergedError
from icl_jax.training.preemption import EXIT_CODE, Preempted, exit_on_sigterm

#: Why an experiment with intervals or nulls asks for two prompts.
LONE = "one prompt has no interval, and no other prompt for a null"

__all__ = [
    "LONE",
    "Parsed",
    "UsageError",
    "arguments",
    "command",
    "configured",
    "describe",
    "launch",
    "option",
    "parse",
    "settings",
    "typed",
]


def launch(
    config_type: type[Any],
    run: Callable[[Any, Any], Any],
    doc: str | None,
    *,
    argv: Sequence[str] | None = None,
    needs_workdir: bool = True,
) -> None:
    """Runs an experiment from the command line.

    Args:
      config_type: a frozen dataclass whose fields all have defaults; ``quick()``, where it has
        one, is the small configuration behind ``--quick``.
      run: ``run(config, workdir)``, with ``workdir`` a Path (None where none is needed or given).
        A configuration refuses its own values in ``__post_init__``; what ``run`` alone can refuse
        is a ``WorkdirError`` or a ``UsageError``. Any other error is a bug and keeps its traceback.
      doc: the module's docstring, which opens ``--help``.
      argv: the command line, the program's name first; ``sys.argv`` unless given.
      needs_workdir: whether ``--workdir`` must be given.

    Raises:
      SystemExit: 0 after ``--help``; and after one line on standard error, 2 for a bad command
        line or a workdir that cannot be used, 1 for a training that diverged, a model that
        computes NaN or has no patches, or too little memory, 42 for SIGTERM (what there is, is
        saved: run it again), 130 for Ctrl-C.
    """
    argv = list(sys.argv if argv is None else argv)
    name = _program(argv[0])
    try:
        if threading.current_thread() is threading.main_thread():
            # While modules were imported, Ctrl-C was the business of ``experiments/__init__.py``.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _launch(config_type, run, doc, argv, name, needs_workdir)
    except KeyboardInterrupt:
        _fail(name, "interrupted; the same command goes on from the last checkpoint.", 130)


def _launch(
    config_type: type[Any],
    run: Callable[[Any, Any], Any],
    doc: str | None,
    argv: list[str],
    name: str,
    needs_workdir: bool,
) -> None:
    try:
        parsed = parse(config_type, argv)
        if parsed.help:
            with told(name):
                print(describe(config_type, doc, name, needs_workdir=needs_workdir))
            sys.exit(0)
        if needs_workdir and parsed.workdir is None:
            raise UsageError(
                "--workdir=DIR is missing: the folder for records and figures, for example "
                f"--workdir=runs/{name}."
            )
        # Before anything is loaded or computed: records are files, and so is a process's log.
        if "://" in str(parsed.workdir):
            raise UsageError(
                f"--workdir={parsed.workdir}: an experiment writes to a local folder. Give one, or "
                "run it as a sweep, whose results are copied to a bucket: python -m launch.sweep "
                "--sweep=MODULE:FUNCTION --workdir=gs://BUCKET/FOLDER."
            )
    except UsageError as error:
        _fail(name, error, 2)

    # Experiments compare float32 with float64; what they compute names its dtype.
    jax.config.update("jax_enable_x64", True)
    try:
        with told(name), exit_on_sigterm(), prepared(parsed.machine, parsed.workdir):
            run(parsed.config, parsed.workdir)
    except Preempted:
        _fail(name, "asked to end (SIGTERM); the same command goes on from here.", EXIT_CODE)
    except (UsageError, MachineError, WorkdirError) as error:
        _fail(name, error, 2)
    except LostPeerError as error:
        # As the process ends where JAX itself sees the loss: who started it starts it again.
        print(f"{name}: error: {error}", file=sys.stderr, flush=True)
        os.abort()
    except NumericalError as error:
        _fail(name, error, 1)
    except TrainingDivergedError as error:
        _fail(name, f"{error}{_learning_rates(parsed.config)}", 1)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _fail(name, f"not enough memory ({str(error)[:200]}). Ask for fewer or smaller prompts.", 1)


@dataclass(frozen=True)
class Parsed:
    """What a command line asks for.

    Attributes:
      config: the configuration; the plain default with ``help``.
      workdir: the folder, or None.
      help: whether help was asked for.
      machine: what is asked of the machine.
    """

    config: Any
    workdir: Path | None
    help: bool
    machine: Machine = Machine()


def parse(config_type: type[Any], argv: Sequence[str]) -> Parsed:
    """Reads a command line, the program's name first.

    Raises:
      UsageError: an unknown flag (with the nearest ones), a value that its flag cannot take, or a
        configuration that refuses its values.
      TypeError: a field of the configuration is of a type that cannot be a flag.
    """
    values = flags.FlagValues()
    flags.DEFINE_boolean("help", False, "", flag_values=values, short_name="h")
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("compiled", str(default_cache()), "", flag_values=values)
    flags.DEFINE_string("profile", None, "", flag_values=values)
    flags.DEFINE_string("mesh", None, "", flag_values=values)
    flags.DEFINE_enum("platform", "auto", PLATFORMS, "", flag_values=values)
    flags.DEFINE_boolean("distributed", False, "", flag_values=values)
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    for flag_name in ("process", "processes", "heartbeat"):
        flags.DEFINE_integer(flag_name, None, "", flag_values=values)
    if hasattr(config_type, "quick"):
        flags.DEFINE_boolean("quick", False, "", flag_values=values)
    names = {item.name: item for item in items(config_type())}
    for item in names.values():
        flag = flags.Flag(_Parser(item.hint), None, item.name, None, "")
        flag.boolean = item.hint is bool  # Then --name and --noname need no value.
        flags.DEFINE_flag(flag, values)
    try:
        rest = values(list(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        raise UsageError(unknown_flag(error.flagname, list(values))) from None
    except flags.Error as error:
        raise UsageError(str(error).removeprefix("flag ")) from None
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}; flags are written --name=value.")
    if values.help:
        return Parsed(config_type(), None, help=True)
    quick = "quick" in values and values.quick
    given = {name: values[name].value for name in names if values[name].present}
    for flag_name, value in given.items():
        check_size(flag_name, value)
    config = overridden(config_type.quick() if quick else config_type(), given)
    machine = Machine(
        cache=None if values.compiled in ("", "none") else Path(values.compiled),
        profile=Path(values.profile) if values.profile else None,
        mesh=values.mesh or None,
        distributed=_distributed(values),
        platform=values.platform,
        small=quick,
    )
    return Parsed(config, _folder(values.workdir), help=False, machine=machine)


def _distributed(values: flags.FlagValues) -> Distributed | None:
    """Which process of how many this is; None for the only one."""
    names = ("coordinator", "process", "processes")
    given: dict[str, Any] = {
        name: values[name].value for name in names if values[name].value is not None
    }
    if not values.distributed:
        if given:
            raise UsageError(f"--{next(iter(given))} is for one of several: add --distributed.")
        return None
    if given and len(given) != len(names):
        missing = " and ".join(f"--{name}" for name in names if name not in given)
        raise UsageError(f"{missing}: missing beside --{' and --'.join(given)}.")
    if values.heartbeat is not None:
        given["heartbeat"] = values.heartbeat
    return Distributed(**given)


def _folder(text: str | None) -> Any:
    """A path, or the address of a bucket's folder, whose double slash a ``Path`` would lose."""
    if not text:
        return None
    return epath.Path(text) if "://" in text else Path(text)


def arguments(settings: Mapping[str, Any]) -> list[str]:
    """Settings by flag name as a command line: ``{"rate": 0.1}`` -> ``["--rate=0.1"]``."""
    return [f"--{name}={shown(value)}" for name, value in settings.items()]


def configured(config_type: type[Any], settings: Mapping[str, Any]) -> Any:
    """The configuration that a program started with ``arguments(settings)`` has, ``quick`` too.

    Much quicker than ``parse``, for thousands of them.

    Raises:
      UsageError: as ``parse`` raises it.
    """
    kind: Any = config_type  # For mypy, to whom type[Any] is not hashable.
    hints = _hints(kind)
    given = {}
    for name, value in settings.items():
        if name == "quick" and hasattr(config_type, "quick"):
            continue
        if name not in hints:
            raise UsageError(unknown_flag(name, list(hints)))
        try:
            # Through its text, as the program will read it.
            given[name] = converted(hints[name], shown(value))
        except ValueError as error:
            raise UsageError(f"--{name}={shown(value)}: {error}") from None
        check_size(name, given[name])
    return overridden(_base(kind, bool(settings.get("quick", False))), given)


@functools.lru_cache(maxsize=64)
def _base(config_type: type[Any], quick: bool) -> Any:
    return config_type.quick() if quick else config_type()


@functools.lru_cache(maxsize=64)
def _hints(config_type: type[Any]) -> dict[str, Any]:
    """Name -> type of every leaf of a configuration."""
    return {item.name: item.hint for item in items(config_type())}


def command(name: str, config: Any, workdir: Path) -> str:
    """The shortest command line that runs an experiment with a configuration."""
    bases = {"": type(config)()}
    if hasattr(config, "quick"):
        bases[" --quick"] = type(config).quick()
    told = {flag: typed(config, base) for flag, base in bases.items()}
    flag = min(told, key=lambda flag: len(told[flag]))
    where = shlex.quote(str(workdir))
    return f"python -m experiments.{name} --workdir={where}{flag}{''.join(told[flag])}"


def typed(config: Any, base: Any) -> list[str]:
    """The flags in which a configuration differs from another, each behind a space."""
    usual = {item.name: item.default for item in items(base)}
    return [
        f" --{item.name}={shlex.quote(shown(item.default))}"
        for item in items(config)
        if item.default != usual[item.name]
    ]


def settings(recorded: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Every flag and its value, as one types it, from a configuration as records keep it."""
    found: dict[str, str] = {}
    for name, value in recorded.items():
        if isinstance(value, dict):
            found |= settings(value, f"{prefix}{name}.")
        else:
            found[f"--{prefix}{name}"] = shown(tuple(value) if isinstance(value, list) else value)
    return found


class _Parser(flags.ArgumentParser):
    """Reads the text of a flag as the type of its field."""

    def __init__(self, hint: Any) -> None:
        super().__init__()
        self.hint = hint

    def parse(self, argument: str) -> Any:
        return converted(self.hint, argument)


def _learning_rates(config: Any) -> str:
    """The flags of the trainings' learning rates, as they are set."""
    rates = [item for item in items(config) if item.name.endswith("training.learning_rate")]
    listed = " ".join(f"--{item.name}={shown(item.default)}" for item in rates)
    return f" This run had {listed}." if rates else ""


def _program(path: str) -> str:
    """What was started: the NAME of ``python -m experiments.NAME``, else a file's name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("experiments.") and path == spec.origin:
        return spec.name.removeprefix("experiments.")
    return Path(path).stem


def _fail(name: str, error: Exception | str, code: int) -> NoReturn:
    print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)
