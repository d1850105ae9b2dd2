"""One program of two real processes with four devices each: as one process, and when one is lost.

Run by its own command: ``pytest -m faults``.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from icl_jax.records import Run
from icl_jax.training.preemption import EXIT_CODE

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
#: On a busy machine one process compiles a minute longer than the other; CPUs wait half of that.
PATIENT = (
    "--xla_cpu_collective_timeout_seconds=600 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)
#: A short training of the learner, divided over prompts and heads.
FLAGS = (
    "--quick",
    "--mesh=data:4,model:2",
    "--num_prompts=64",
    "--learner.training.batch_size=16",
    "--learner.training.steps_per_call=10",
    "--learner.training.checkpoint_every=10",
)


def start(workdir, devices, *flags):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {PATIENT}",
    }
    command = [sys.executable, "-m", "experiments.training", f"--workdir={workdir}", *FLAGS, *flags]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE)


def start_two(workdir, *flags):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    which = ("--distributed", f"--coordinator=127.0.0.1:{port}", "--processes=2", "--heartbeat=60")
    return [start(workdir, 4, *which, f"--process={index}", *flags) for index in range(2)]


def finish(*processes):
    told = [process.communicate(timeout=900)[1] for process in processes]
    return [process.returncode for process in processes], told


def metrics(workdir):
    return [path.read_bytes() for path in workdir.glob("learners/*/metrics.jsonl")]


def wait_for_rows(workdir, count, processes):
    while not any(text.count(b"\n") >= count for text in metrics(workdir)):
        assert all(process.poll() is None for process in processes), finish(*processes)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two") / "run"
    codes, told = finish(*start_two(workdir, "--learner.training.num_steps=200"))
    assert codes == [0, 0], told
    return workdir


def test_two_processes_are_one_with_all_devices(undisturbed, tmp_path):
    codes, told = finish(start(tmp_path / "one", 8, "--learner.training.num_steps=200"))
    assert codes == [0], told
    want, got = (Run(path).load_arrays("arrays.npz") for path in (tmp_path / "one", undisturbed))
    # The same programs on as many devices; messages between processes add up in another order,
    # and two hundred steps of Adam make more of it than a rounding.
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected, rtol=2e-2, err_msg=name)
    np.testing.assert_allclose(got["history.loss"][:10], want["history.loss"][:10], rtol=1e-5)


def test_the_first_one_reports_and_each_has_its_log(undisturbed):
    assert (undisturbed / "report.html").is_file() and (undisturbed / "summary.json").is_file()
    for index in range(2):
        log = (undisturbed / f"process-{index}.log").read_text()
        assert log.startswith(f"process {index} of 2, 4 devices")
    assert "Report:" not in (undisturbed / "process-1.log").read_text()


def assert_as_undisturbed(workdir, undisturbed):
    assert metrics(workdir) == metrics(undisturbed)
    want, got = (Run(path).load_arrays("arrays.npz") for path in (undisturbed, workdir))
    for name, expected in want.items():
        np.testing.assert_array_equal(got[name], expected, err_msg=name)


def test_the_loss_of_one_ends_the_other_and_both_started_again_give_the_same(undisturbed, tmp_path):
    workdir = tmp_path / "lost"
    first, second = start_two(workdir, "--learner.training.num_steps=200")
    wait_for_rows(workdir, 50, (first, second))
    second.kill()
    codes, told = finish(first, second)
    assert codes == [-signal.SIGABRT, -signal.SIGKILL], told
    codes, told = finish(*start_two(workdir, "--learner.training.num_steps=200"))
    assert codes == [0, 0], told
    assert_as_undisturbed(workdir, undisturbed)


def test_sigterm_to_one_saves_and_ends_both(undisturbed, tmp_path):
    workdir = tmp_path / "asked"
    both = start_two(workdir, "--learner.training.num_steps=200")
    wait_for_rows(workdir, 30, both)
    both[1].send_signal(signal.SIGTERM)
    codes, told = finish(*both)
    assert codes == [EXIT_CODE, EXIT_CODE], told
    codes, told = finish(*start_two(workdir, "--learner.training.num_steps=200"))
    assert codes == [0, 0], told
    assert_as_undisturbed(workdir, undisturbed)
