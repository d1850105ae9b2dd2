"""One program of two real processes with four devices each: as one process, and when one is lost.

Run by its own command: ``pytest -m faults``.
"""

import contextlib
import signal
import subprocess
import time

import numpy as np
import pytest

from icl_jax.records import Run
from icl_jax.training.preemption import EXIT_CODE
from tests.pair import free_port, start

pytestmark = pytest.mark.faults

#: A short training of the learner, divided over prompts and heads.
FLAGS = (
    "--quick",
    "--num_prompts=64",
    "--learner.training.batch_size=16",
    "--learner.training.steps_per_call=10",
    "--learner.training.checkpoint_every=10",
)
MESH = "--mesh=data:4,model:2"


def command(workdir, *flags):
    return ("experiments.training", f"--workdir={workdir}", *FLAGS, *flags)


def few_steps(number):
    return (f"--learner.training.num_steps={number}", "--learner.training.optimizer.warmup_steps=0")


def start_two(workdir, *flags):
    which = ("--distributed", f"--coordinator=127.0.0.1:{free_port()}", "--processes=2")
    return [
        start(
            4, *command(workdir, MESH, *which, "--heartbeat=60", f"--process={index}", *flags),
            stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]  # fmt: skip


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
    whole = command(tmp_path / "one", MESH, "--learner.training.num_steps=200")
    codes, told = finish(start(8, *whole, stderr=subprocess.PIPE))
    assert codes == [0], told
    want, got = (Run(path).load_arrays("arrays.npz") for path in (tmp_path / "one", undisturbed))
    # The same programs on as many devices; messages between processes add up in another order,
    # and two hundred steps of Adam make more of it than a rounding.
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected, rtol=2e-2, err_msg=name)
    np.testing.assert_allclose(got["history.loss"][:10], want["history.loss"][:10], rtol=1e-5)


def test_the_first_steps_on_two_processes_are_those_of_one_device(tmp_path):
    # Only the first: with every step of Adam more is made of the order in which sums are rounded.
    both = start_two(tmp_path / "two", *few_steps(5))
    one = start(1, *command(tmp_path / "one", *few_steps(5)), stderr=subprocess.PIPE)
    codes, told = finish(*both, one)
    assert codes == [0, 0, 0], told
    want, got = (Run(tmp_path / name).load_arrays("arrays.npz") for name in ("one", "two"))
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, err_msg=name)


def a_job():
    """The number of a job whose port is free; JAX takes that from the number."""
    for number in range(2**12):
        with contextlib.suppress(OSError):
            free_port(2**16 - 2**12 + number)
            return number
    raise OSError("all ports are taken")


def test_processes_of_a_slurm_job_find_each_other_without_further_flags(tmp_path):
    # Asked for a platform, they look for its devices behind that, and not before.
    job = {"SLURM_JOB_ID": str(a_job()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    both = [
        start(
            4, *command(tmp_path, MESH, "--distributed", "--platform=cpu", *few_steps(1)),
            variables={**job, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)},
            stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]  # fmt: skip
    codes, told = finish(*both)
    assert codes == [0, 0], told
    for index in range(2):
        log = (tmp_path / f"process-{index}.log").read_text()
        assert log.startswith(f"process {index} of 2, 4 devices")


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
