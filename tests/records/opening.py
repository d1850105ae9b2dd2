"""A small configuration, and a run of it opened in a folder."""

from dataclasses import dataclass, field

from icl_jax.records import open_run


@dataclass(frozen=True)
class Inner:
    widths: tuple[int, ...] = (128,)
    rate: float | None = 0.1


@dataclass(frozen=True)
class Config:
    num_steps: int = 10
    inner: Inner = field(default_factory=Inner)


def open_here(folder, config=None, experiment="descent", **kwargs):
    return open_run(folder, config or Config(), experiment=experiment, **kwargs)
