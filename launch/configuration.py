"""One run of a sweep: an experiment by name, and the settings in which it differs from its default.

A sweep is a function without arguments that returns a list of these:

    def rates() -> list[Configuration]:
        return configurations("experiments.descent", grid({"explicit.num_steps": (10, 100)}))

The id of a run is a hash of the *resolved* configuration, every field of it, so it does not matter
how the settings were written, and a default that changes is another run.
"""

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.tools.flags import UsageError, arguments, configured
from icl_jax.records import plain
from launch.combinators import Settings

_DIGITS = 16  # Of the hash: two of a million runs share an id with probability 3e-8.


@dataclass(frozen=True)
class Configuration:
    """What one run is asked for.

    Attributes:
      experiment: the module, as after ``python -m``; it has a ``Config`` dataclass.
      settings: flag name -> value; ``quick`` too, where the experiment has it.
    """

    experiment: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def resolve(self) -> Any:
        """The complete configuration, an instance of the experiment's ``Config``.

        Raises:
          UsageError: there is no such experiment, or it refuses the settings.
        """
        try:
            config_type = experiment_module(self.experiment).Config
            return configured(config_type, self.settings)
        except UsageError as error:
            raise UsageError(f"{self.experiment}: {error}") from None

    def arguments(self) -> list[str]:
        """The settings as flags."""
        return arguments(self.settings)


@dataclass(frozen=True)
class Run:
    """A configuration with its id.

    Attributes:
      id: the experiment's short name and the hash, as in ``descent-0f3a...``; a name for files.
      configuration: what is run.
    """

    id: str
    configuration: Configuration


def configurations(
    experiment: str,
    settings: Iterable[Settings] = ({},),
    *,
    base: Mapping[str, Any] | None = None,
) -> list[Configuration]:
    """A configuration for each of the settings, all on top of ``base``."""
    return [Configuration(experiment, {**(base or {}), **changes}) for changes in settings]


def experiment_module(name: str) -> Any:
    """The module of an experiment.

    Raises:
      UsageError: there is none of that name, or it has no ``Config``.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # The experiment is there, and something that it imports is not.
        raise UsageError(
            f"there is no experiment {name!r}: no module of that name. Write it as after "
            "python -m, for example experiments.descent."
        ) from None
    if not hasattr(module, "Config"):
        raise UsageError(f"{name} is no experiment: it has no Config.")
    return module


def run_id(experiment: str, config: Any) -> str:
    """The id of a complete configuration."""
    short = experiment.rpartition(".")[2]  # Wherever the module lives.
    text = json.dumps({"experiment": short, "config": plain(config)}, sort_keys=True)
    return f"{short}-{hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}"


def identify(sweep: Iterable[Configuration]) -> list[Run]:
    """The runs of a sweep in their order, each configuration once.

    Raises:
      UsageError: as ``Configuration.resolve``.
    """
    runs: dict[str, Run] = {}
    for configuration in sweep:
        name = run_id(configuration.experiment, configuration.resolve())
        runs.setdefault(name, Run(name, configuration))
    return list(runs.values())


def load_sweep(name: str) -> list[Configuration]:
    """Calls ``MODULE:FUNCTION`` and checks what comes back.

    Raises:
      UsageError: there is no such function, or it returns no list of configurations.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UsageError(f"--sweep={name}: must be MODULE:FUNCTION.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UsageError(f"--sweep={name}: there is no module {module_name!r}.") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"--sweep={name}: {module_name} has no function {function_name!r}.")
    sweep = list(function())
    for entry in sweep:
        if not isinstance(entry, Configuration):
            raise UsageError(
                f"--sweep={name}: must return launch.configuration.Configuration objects, got "
                f"{type(entry).__name__}. launch.configuration.configurations makes them."
            )
    if not sweep:
        raise UsageError(f"--sweep={name}: returns no configurations.")
    return sweep


def shard_of(runs: list[Run], shard: str | None) -> list[Run]:
    """The share of one machine: ``"i/n"`` is every n-th run from the i-th on, i from 0.

    Raises:
      UsageError: another form, or i not below n.
    """
    if shard is None:
        return runs
    index, _, count = shard.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(f"--shard={shard}: must be i/n with i from 0 to n - 1, for example 0/4.")
    return runs[int(index) :: int(count)]
