"""A bar on a terminal, a few plain lines elsewhere."""

import io

import rich.console

from icl_jax.training.progress import progress


def shown(start, steps, num_steps, *, terminal):
    console = rich.console.Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with progress(start, num_steps, console=console) as report:
        for step in steps:
            report(step, 1 / step)
    return console.file.getvalue()


def test_a_terminal_gets_a_bar_with_step_loss_and_speed():
    text = shown(0, range(10, 101, 10), 100, terminal=True)
    assert "100/100" in text
    assert "loss 0.01" in text
    assert "steps/s" in text


def test_elsewhere_one_plain_line_per_tenth_is_shown():
    text = shown(0, range(1, 101), 100, terminal=False)
    assert text.splitlines()[0] == "step 10/100  loss 0.1"
    assert len(text.splitlines()) == 10
    assert "\x1b" not in text


def test_what_was_done_before_is_not_shown_again():
    assert shown(50, [55, 60], 100, terminal=False) == "step 60/100  loss 0.01667\n"
