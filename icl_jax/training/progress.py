"""A progress bar where somebody watches, one line now and then where nobody does."""

import contextlib
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

#: ``report(step, loss)``, called after each dispatch.
Report = Callable[[int, float], None]


@contextlib.contextmanager
def progress(
    start: int, num_steps: int, *, console: rich.console.Console | None = None
) -> Iterator[Report]:
    """Shows how far a training is.

    Args:
      start: steps that are done already.
      num_steps: steps in all.
      console: where to show it; standard error unless given. On a terminal a bar with the step,
        the loss and the steps per second; elsewhere one plain line per tenth of the steps.

    Yields:
      The function to call with the step and its loss.
    """
    console = console or rich.console.Console(stderr=True)
    shown = _bar if console.is_terminal else _lines
    with shown(start, num_steps, console) as report:
        yield report


@contextlib.contextmanager
def _bar(start: int, num_steps: int, console: rich.console.Console) -> Iterator[Report]:
    bar = rich.progress.Progress(
        rich.progress.TextColumn("training"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("loss {task.fields[loss]}"),
        _StepsPerSecond(),
        rich.progress.TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("training", total=num_steps, completed=start, loss="-")
        yield lambda step, loss: bar.update(task, completed=step, loss=f"{loss:.4g}")


class _StepsPerSecond(rich.progress.ProgressColumn):
    def render(self, task: rich.progress.Task) -> str:
        return f"{task.speed:.0f} steps/s" if task.speed else ""


@contextlib.contextmanager
def _lines(start: int, num_steps: int, console: rich.console.Console) -> Iterator[Report]:
    reached = 10 * start // num_steps

    def report(step: int, loss: float) -> None:
        nonlocal reached
        if 10 * step // num_steps > reached:
            reached = 10 * step // num_steps
            console.print(f"step {step}/{num_steps}  loss {loss:.4g}", highlight=False)

    yield report


@contextlib.contextmanager
def silence(start: int, num_steps: int) -> Iterator[Report]:
    """Shows nothing."""
    yield lambda step, loss: None
