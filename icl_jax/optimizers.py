"""Any optimiser of optax, by its name and arguments: what goes on a command line."""

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import optax

from icl_jax import checks
from icl_jax.dims import Array

ScheduleName = Literal["constant", "cosine", "linear"]
SCHEDULES = ("constant", "cosine", "linear")

#: How optax begins the names of what an optimiser is made of.
_PART = "scale_by_"
#: What is meant by a name that optax does not have.
_SHORTHANDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gd": ("sgd", {}),
    "momentum": ("sgd", {"momentum": 0.9}),
    "nesterov": ("sgd", {"momentum": 0.9, "nesterov": True}),
}
#: What optax calls the learning rate; a largest one is a bound, not a path.
_RATES = ("learning_rate", "max_learning_rate")
_USUAL = ("sgd", "momentum", "nesterov", "adam", "adamw", "lion", "muon", "rmsprop", "adagrad")


@dataclass(frozen=True)
class OptimizerConfig:
    """An optax optimiser but for its learning rate, which a search finds.

    Attributes:
      name: of a function of ``optax`` or ``optax.contrib`` that takes a learning rate, or
        ``momentum`` and ``nesterov`` (``sgd`` at 0.9).
      arguments: of that function, each as ``name=value``.
      schedule: how the learning rate goes on from its peak: ``cosine`` and ``linear`` end at 0.
      warmup_steps: steps of linear rise from 0.
      gradient_clip: the largest global norm of a gradient, or None.

    Raises:
      ValueError: an unknown name, argument or schedule, or a value that cannot be read.

    Examples:
      >>> adam = OptimizerConfig("adam", ("b1=0.95",), schedule="cosine", warmup_steps=5)
      >>> optimizer = adam.make(1e-3, num_steps=100)  # any optax transformation
      >>> optimizer.init(jnp.zeros(2)) is not None
      True
    """

    name: str = field(default="sgd", metadata={"help": "an optimiser of optax, or momentum"})
    arguments: tuple[str, ...] = field(
        default=(), metadata={"help": "of the optimiser, such as b1=0.95,weight_decay=0.1"}
    )
    schedule: ScheduleName = field(default="constant", metadata={"help": "of the learning rate"})
    warmup_steps: int = field(default=0, metadata={"help": "steps of linear rise from 0"})
    gradient_clip: float | None = field(
        default=None, metadata={"help": "largest global gradient norm; none: no clipping"}
    )

    def __post_init__(self) -> None:
        where = "OptimizerConfig"
        checks.one_of(where, "schedule", self.schedule, SCHEDULES)
        checks.non_negative(where, "warmup_steps", self.warmup_steps)
        if self.gradient_clip is not None:
            checks.positive(where, "gradient_clip", self.gradient_clip)
        make, given = _factory(self.name)
        parameters = inspect.signature(make).parameters
        known = [name for name in parameters if name not in _RATES]
        for argument in self.arguments:
            name, value = _split(argument)
            if name not in known:
                raise ValueError(
                    f"{where}: arguments: {self.name} has no argument {name!r}; it has "
                    f"{', '.join(known)}."
                )
            given = {**given, name: value}
        needed = [name for name in known if parameters[name].default is inspect.Parameter.empty]
        missing = [name for name in needed if name not in given]
        if missing:
            raise ValueError(
                f"{where}: arguments: {self.name} needs {' and '.join(missing)} as well, each as "
                "name=value."
            )
        if _rate_name(make) != "learning_rate" and not self._is_constant:
            raise ValueError(
                f"{where}: {self.name} finds its own rate below a largest one, which cannot follow "
                f"schedule={self.schedule!r} or warmup_steps={self.warmup_steps}. Leave them out."
            )

    def make(self, rate: float | Array, num_steps: int) -> optax.GradientTransformation:
        """The optimiser at a learning rate, which may be traced, for so many steps."""
        if self.warmup_steps >= num_steps:
            raise ValueError(
                f"OptimizerConfig: warmup_steps={self.warmup_steps} must be below the number of "
                f"steps, {num_steps}. Warm up for fewer steps, or take more."
            )
        make, arguments = _factory(self.name)
        given = dict(_split(argument) for argument in self.arguments)
        path = {str(_rate_name(make)): self._schedule(rate, num_steps)}
        made: optax.GradientTransformation = make(**path, **{**arguments, **given})
        if self.gradient_clip is None:
            return made
        return optax.chain(optax.clip_by_global_norm(self.gradient_clip), made)

    @property
    def _is_constant(self) -> bool:
        return self.schedule == "constant" and self.warmup_steps == 0

    def _schedule(self, rate: float | Array, num_steps: int) -> Any:
        if self._is_constant:
            return rate
        rest = num_steps - self.warmup_steps
        after = {
            "constant": lambda: optax.constant_schedule(1.0),
            "cosine": lambda: optax.cosine_decay_schedule(1.0, rest),
            "linear": lambda: optax.linear_schedule(1.0, 0.0, rest),
        }[self.schedule]()
        shape = after
        if self.warmup_steps:
            rise = optax.linear_schedule(0.0, 1.0, self.warmup_steps)
            shape = optax.join_schedules([rise, after], [self.warmup_steps])
        return lambda step: rate * shape(step)


def _factory(name: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function of optax behind a name, and the arguments that the name stands for."""
    name, arguments = _SHORTHANDS.get(name, (name, {}))
    for module in (optax.contrib, optax):  # Optax warns of what has moved to contrib.
        found = getattr(module, name, None)
        # A class of optax has a signature, too; an optimiser is a function of a learning rate.
        if inspect.isfunction(found) and _rate_name(found) and not name.startswith(_PART):
            return found, arguments
    whole = name.removeprefix(_PART)
    near = difflib.get_close_matches(whole, (*_USUAL, *dir(optax), *dir(optax.contrib)), n=1)
    hint = f" Did you mean {near[0]!r}?" if near and near[0] != name else ""
    if name.startswith(_PART):
        hint = f" Names in {_PART} are parts of one, which may even ascend.{hint}"
    raise ValueError(
        f"OptimizerConfig: name={name!r} is no optimiser of optax.{hint} Take one of "
        f"{', '.join(_USUAL)}, or any other."
    )


def _rate_name(make: Callable[..., Any]) -> str | None:
    """The parameter of an optimiser that is its learning rate; None where there is none."""
    return next((name for name in _RATES if name in inspect.signature(make).parameters), None)


def _split(argument: str) -> tuple[str, Any]:
    name, equals, text = argument.partition("=")
    if not equals or not name:
        raise ValueError(f"OptimizerConfig: arguments are written name=value, got {argument!r}.")
    literal = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
    try:
        return name, ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        raise ValueError(
            f"OptimizerConfig: arguments: the value of {argument!r} is no number, true, false or "
            "none."
        ) from None
