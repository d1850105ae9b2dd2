"""What prints ends well when nobody reads on, and says so when nothing can be written."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.tools.output import told

SHELL = "set -o pipefail; python() { '" + sys.executable + '\' "$@"; }; '


def shell(command):
    return subprocess.run(
        ["bash", "-c", SHELL + command],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )


#: What prints: a command, and its name in an error.
PRINTING = {
    "experiments.training --help": "training",
    "experiments": "experiments",
    "launch.sweep --help": "sweep",
    "launch.collect --help": "collect",
    "benchmarks.prefixes --help": "prefixes",
}


@pytest.mark.parametrize("printing", PRINTING)
def test_a_reader_that_has_seen_enough_is_no_error(printing):
    done = shell(f"python -m {printing} | head -1")
    assert done.stdout.count("\n") == 1 and done.stderr == ""
    done = shell(f"python -m {printing} | true")
    assert done.stderr == "" and done.returncode == 141


@pytest.mark.parametrize("printing", PRINTING)
def test_a_full_disk_is_told_in_one_line(printing):
    done = shell(f"python -m {printing} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == (
        f"{PRINTING[printing]}: error: standard output cannot be written: No space left on "
        "device.\n"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The command of an experiment that has run: what it measured is read, and shown again."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    command = f"PYTHONPATH=. python tests/house/dummies/regression/dummy.py --workdir={workdir}"
    done = shell(command)
    assert done.returncode == 0 and done.stdout.count("\n") > 5, done.stderr
    return command


def test_nor_is_one_of_the_tables_of_a_finished_run(finished):
    done = shell(f"{finished} | head -1")
    assert done.stdout.count("\n") == 1 and done.stderr == ""


def test_tables_on_a_full_disk_are_told_in_one_line(finished):
    done = shell(f"{finished} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == (
        "dummy: error: standard output cannot be written: No space left on device.\n"
    )


@pytest.mark.parametrize(
    "error", [OSError("no file named model.safetensors"), ConnectionRefusedError(111, "refused")]
)
def test_what_a_library_says_of_something_else_is_handed_on(error):
    with pytest.raises(OSError) as raised, told("real_models"):
        raise error
    assert raised.value is error
