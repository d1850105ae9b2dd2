"""A configuration with a flag of every kind, and what launching it prints."""

from dataclasses import dataclass, field
from typing import Literal

from experiments.tools.flags import launch, option
from icl_jax.training.config import TrainingConfig

Task = Literal["linear", "sparse"]


@dataclass(frozen=True)
class Learner:
    """A learner and its training."""

    task: Task = option("linear", "what the prompts teach")
    widths: tuple[int, ...] = option((128,), "hidden widths")
    causal: bool = option(True, "reads backwards only")
    clip: float | None = option(1.0, "largest norm")
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class Config:
    """What is compared.

    And a second paragraph.
    """

    num_prompts: int = option(100, "test prompts")
    rate: float = option(0.1, "of the descent")
    label: str = option("paper", "of the figure")
    learner: Learner = field(default_factory=Learner)

    def __post_init__(self):
        if self.num_prompts < 2:
            raise ValueError(f"Config: num_prompts must be at least 2, got {self.num_prompts}.")

    @classmethod
    def quick(cls):
        return cls(num_prompts=8, learner=Learner(training=TrainingConfig(num_steps=50)))


def outcome(capsys, *flags, run=lambda config, workdir: None, **options):
    """The exit code (None without one), and both outputs."""
    code = None
    try:
        launch(Config, run, "The question?", argv=["experiments/descent.py", *flags], **options)
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def raising(error):
    def run(config, workdir):
        raise error

    return run
