"""Every way in which a process can end has one meaning."""

import signal

import pytest

from launch.outcomes import (
    DISK_FULL,
    ELSEWHERE,
    MOST_LOSSES,
    MOST_RESTARTS,
    NODE_LOST,
    PREEMPTED,
    TIMED_OUT,
    History,
    Verdict,
)


def judge(code, has_result=False, retries=2, history=None):
    return (history or History()).judge(code, has_result=has_result, retries=retries)


@pytest.mark.parametrize("code", [0, 1, 42, -9, TIMED_OUT, NODE_LOST])
def test_a_run_with_a_result_is_done_however_its_process_ended(code):
    assert judge(code, has_result=True) == (Verdict.DONE, "done")


@pytest.mark.parametrize(
    ("code", "verdict", "why"),
    [
        (0, Verdict.FAILED, "ended well and left no result"),
        (1, Verdict.FAILED, "ended with exit code 1"),
        (2, Verdict.FAILED, "cannot be run as it is configured (exit code 2)"),
        (DISK_FULL, Verdict.FAILED, "the disk is full"),
        (TIMED_OUT, Verdict.FAILED, "stopped by its time limit"),
        (PREEMPTED, Verdict.AGAIN, "preempted"),
        (ELSEWHERE, Verdict.AGAIN, "run by another process"),
        (NODE_LOST, Verdict.AGAIN, "its machine was lost"),
        (-signal.SIGKILL, Verdict.AGAIN, "killed by SIGKILL"),
        (128 + signal.SIGKILL, Verdict.AGAIN, "killed by SIGKILL"),
        (-signal.SIGABRT, Verdict.AGAIN, "killed by SIGABRT"),
        (250, Verdict.AGAIN, "killed by signal 122"),
    ],
)
def test_without_a_result_the_exit_code_decides(code, verdict, why):
    assert judge(code) == (verdict, why)


def test_a_run_that_is_killed_again_and_again_fails():
    history = History()
    verdicts = [judge(-9, history=history)[0] for _ in range(3)]
    assert verdicts == [Verdict.AGAIN, Verdict.AGAIN, Verdict.FAILED]
    assert judge(-9, retries=0) == (Verdict.FAILED, "killed by SIGKILL, 1 times")


def test_a_lost_machine_does_not_count_as_a_kill_but_is_not_lost_for_ever():
    history = History()
    verdicts = [judge(NODE_LOST, history=history, retries=0)[0] for _ in range(MOST_LOSSES + 1)]
    assert verdicts == [Verdict.AGAIN] * MOST_LOSSES + [Verdict.FAILED]
    assert history.kills == 0


def test_preemptions_do_not_count_as_kills_but_do_not_go_on_for_ever():
    history = History()
    for _ in range(MOST_RESTARTS):
        assert judge(PREEMPTED, history=history)[0] is Verdict.AGAIN
    assert judge(PREEMPTED, history=history)[0] is Verdict.FAILED
    assert history.kills == 0
