"""How a run begins and ends: what it is given, its exit code, its last line."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

import experiments
import icl_jax
from experiments.tools.flags import UsageError
from icl_jax.records import WorkdirError, open_run
from icl_jax.training.loop import TrainingDivergedError
from tests.experiments.launching import Config, outcome, raising


def test_run_gets_the_configuration_and_float64(capsys):
    seen = []

    def run(config, workdir):
        seen.append((config, workdir, jax.config.jax_enable_x64))

    jax.config.update("jax_enable_x64", False)
    try:
        code, _, err = outcome(capsys, "--workdir=x", "--rate=2", run=run)
    finally:
        jax.config.update("jax_enable_x64", True)
    assert (code, err) == (None, "")
    assert seen == [(Config(rate=2.0), Path("x"), True)]


def test_a_workdir_in_a_bucket_is_refused_before_anything_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options in ({}, {"needs_workdir": False}):
        run = raising(AssertionError("it was run"))
        code, _, err = outcome(capsys, "--workdir=gs://bucket/x", run=run, **options)
        assert code == 2 and err.count("\n") == 1
        assert err.startswith("descent: error: --workdir=gs://bucket/x: ")
        assert "local folder" in err and "python -m launch.sweep" in err
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_of_another_configuration_is_refused_in_one_line(capsys, tmp_path):
    def run(config, workdir):
        open_run(workdir, config, experiment="descent")

    where = f"--workdir={tmp_path}"
    assert outcome(capsys, where, run=run)[0] is None
    assert outcome(capsys, where, run=run)[0] is None
    code, _, err = outcome(capsys, where, "--quick", run=run)
    assert code == 2 and err.count("\n") == 1
    assert "num_prompts: 100 -> 8; learner.training.num_steps: 5000 -> 50" in err
    with pytest.raises(WorkdirError):
        run(Config.quick(), tmp_path)


def test_how_a_run_ends_is_told_by_its_exit_code(capsys):
    diverged = TrainingDivergedError("training diverged at step 3.", step=3, checkpoint=None)
    faster = "--learner.training.learning_rate=0.01"
    code, _, err = outcome(capsys, "--workdir=x", faster, run=raising(diverged))
    assert code == 1
    assert err == (
        "descent: error: training diverged at step 3. This run had "
        "--learner.training.learning_rate=0.01.\n"
    )
    code, _, err = outcome(capsys, "--workdir=x", run=raising(UsageError("too late for that.")))
    assert (code, err) == (2, "descent: error: too late for that.\n")
    code, _, err = outcome(capsys, "--workdir=x", run=raising(KeyboardInterrupt()))
    assert code == 130 and "the same command goes on" in err


def test_too_little_memory_is_one_line(capsys):
    exhausted = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 8e12 bytes")
    for error in (exhausted, MemoryError("Unable to allocate 7 TiB")):
        code, _, err = outcome(capsys, "--workdir=x", run=raising(error))
        assert code == 1 and err.count("\n") == 1
        assert "not enough memory (" in err and "Ask for fewer or smaller prompts." in err
    with pytest.raises(jax.errors.JaxRuntimeError):
        outcome(capsys, "--workdir=x", run=raising(jax.errors.JaxRuntimeError("INTERNAL: bug")))


SLOW = """
import time
def wait(what):
    print(what, flush=True)
    time.sleep(60)
if {imports}: wait("imports")
from dataclasses import dataclass
from experiments.tools.flags import launch
@dataclass(frozen=True)
class Config:
    "Nothing."
launch(Config, lambda config, workdir: wait("runs"), "", needs_workdir=False)
"""


@pytest.mark.parametrize("imports", [True, False])
def test_ctrl_c_is_one_line_and_exit_code_130(tmp_path, imports):
    # A folder of experiments with one that tells how far it is.
    folder = tmp_path / "experiments"
    folder.mkdir()
    here = Path(experiments.__file__).parent
    shutil.copy(here / "__init__.py", folder / "__init__.py")
    shutil.copytree(here / "tools", folder / "tools")
    (folder / "slow.py").write_text(SLOW.format(imports=imports))
    path = os.pathsep.join([str(tmp_path), str(Path(icl_jax.__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.slow"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().strip() == ("imports" if imports else "runs")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.count("\n") == 1 and "interrupted" in errors and "the same command" in errors


@pytest.mark.parametrize("bug", [ZeroDivisionError, ValueError])
def test_a_bug_keeps_its_traceback(capsys, bug):
    with pytest.raises(bug):
        outcome(capsys, "--workdir=x", run=raising(bug()))


def test_asked_to_end_a_run_says_that_it_can_go_on_with_exit_code_42(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def run(config, workdir):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        raise AssertionError("The signal should have ended this.")

    code, _, err = outcome(capsys, "--workdir=x", run=run)
    assert code == 42
    assert err == "descent: error: asked to end (SIGTERM); the same command goes on from here.\n"
    assert signal.getsignal(signal.SIGTERM) is before
