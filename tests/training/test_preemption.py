"""SIGTERM ends a process where it stands, or where a loop has saved what it has."""

import os
import signal

import pytest

from icl_jax.training.preemption import EXIT_CODE, Preempted, exit_on_sigterm, postponed


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_raises_an_exit_with_the_code_that_engines_restart():
    with pytest.raises(SystemExit) as stop, exit_on_sigterm():
        terminate()
    assert stop.value.code == EXIT_CODE == 42


def test_a_loop_that_asks_is_told_and_raises_when_it_is_ready():
    done = []
    with pytest.raises(Preempted), exit_on_sigterm(), postponed() as asked:
        assert not asked()
        terminate()
        done.append("after the signal")
        assert asked()
        raise Preempted
    assert done == ["after the signal"]


def test_a_loop_that_does_not_ask_is_ended_after_its_block():
    done = []
    with pytest.raises(Preempted), exit_on_sigterm():
        with postponed():
            with postponed():
                terminate()
            done.append("inner")
        done.append("outer")
    assert done == ["inner"]


def test_an_error_of_the_loop_is_not_hidden():
    with pytest.raises(ZeroDivisionError), exit_on_sigterm(), postponed():
        terminate()
        raise ZeroDivisionError


def test_afterwards_signals_mean_what_they_meant_and_an_old_one_is_forgotten():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with pytest.raises(Preempted), exit_on_sigterm():
            terminate()
        terminate()
        assert heard == [1]
        with exit_on_sigterm(), postponed() as asked:
            assert not asked()
    finally:
        signal.signal(signal.SIGTERM, before)
    with postponed() as asked:
        assert not asked()
