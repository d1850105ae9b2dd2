"""A run folder says what was run and where; any other run, and any other folder, is refused."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath

from icl_jax.records import Run, WorkdirError
from tests.records.opening import Config, Inner, open_here

#: Python's reader takes the last of two.
TWICE = (
    b'{"experiment": "descent", "config": '
    b'{"num_steps": 7, "num_steps": 10, "inner": {"widths": [128], "rate": 0.1}}}'
)


def test_a_new_run_records_its_complete_configuration_and_versions(tmp_path):
    run = open_here(tmp_path / "new" / "run", provenance={"commit": "1a2b"})
    assert run.load_json("config.json") == {
        "experiment": "descent",
        "config": {"num_steps": 10, "inner": {"widths": [128], "rate": 0.1}},
    }
    provenance = run.load_json("provenance.json")
    assert provenance["versions"]["jax"] == jax.__version__
    assert provenance["versions"]["numpy"] == np.__version__
    assert provenance["device"]["count"] == jax.device_count()
    assert provenance["commit"] == "1a2b"
    assert provenance["earlier"] == []


def test_the_same_configuration_reopens_its_run_and_finds_what_it_wrote(tmp_path):
    run = open_here(tmp_path)
    assert not run.has("convergence.npz")
    run.save_arrays("convergence.npz", {"losses_N": np.arange(3.0)})
    again = open_here(tmp_path)
    assert again.has("convergence.npz")
    assert again.load_json("provenance.json")["earlier"] == []


def test_another_environment_is_added_to_the_provenance(tmp_path):
    open_here(tmp_path, provenance={"commit": "old"})
    run = open_here(tmp_path, provenance={"commit": "new"})
    provenance = run.load_json("provenance.json")
    assert provenance["commit"] == "new"
    assert [entry["commit"] for entry in provenance["earlier"]] == ["old"]


def test_another_configuration_is_refused_and_its_differences_are_named(tmp_path):
    open_here(tmp_path)
    other = Config(num_steps=20, inner=Inner(widths=(64, 64)))
    with pytest.raises(WorkdirError) as caught:
        open_here(tmp_path, other)
    message = str(caught.value)
    assert "num_steps: 10 -> 20" in message
    assert "inner.widths: [128] -> [64, 64]" in message
    assert "rate" not in message
    assert "another --workdir, or delete" in message
    assert Run(tmp_path).load_json("config.json")["config"]["num_steps"] == 10


def test_of_many_differences_three_are_listed(tmp_path):
    open_here(tmp_path, {f"n{i}": i for i in range(9)})
    with pytest.raises(WorkdirError, match=r"\(n0: 0 -> 1; n1: 1 -> 2; n2: 2 -> 3; and 6 more\)"):
        open_here(tmp_path, {f"n{i}": i + 1 for i in range(9)})


def test_what_is_free_may_change_and_is_recorded(tmp_path):
    open_here(tmp_path, {"a": 1, "export": "none"}, free=("export",))
    run = open_here(tmp_path, {"a": 1, "export": "peft"}, free=("export",))
    assert run.load_json("config.json")["config"] == {"a": 1, "export": "peft"}
    with pytest.raises(WorkdirError, match=r"\(a: 1 -> 2\)"):
        open_here(tmp_path, {"a": 2, "export": "none"}, free=("export",))


def test_another_experiment_is_refused(tmp_path):
    open_here(tmp_path)
    with pytest.raises(ValueError, match="belongs to experiment 'descent'. Choose another"):
        open_here(tmp_path, experiment="alignment")


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(WorkdirError, match="notes is a file. Choose another --workdir"):
        open_here(tmp_path / "notes")
    with pytest.raises(WorkdirError, match="cannot be written .*Choose another --workdir"):
        open_here(tmp_path / "notes" / "below")
    assert (tmp_path / "notes").read_text() == "mine"


def test_what_is_no_path_is_no_workdir(tmp_path):
    for bad in (None, 5, b"folder"):
        with pytest.raises(TypeError, match="open_run: workdir must be the path of a folder, got"):
            open_here(bad)
    with pytest.raises(WorkdirError, match=r"workdir '.*a\\x00b' has a NUL in it. Choose another"):
        open_here(f"{tmp_path}/a\0b")


def test_a_bucket_is_no_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for bad in ("gs://bucket/run", epath.Path("gs://bucket/run")):
        with pytest.raises(WorkdirError, match="'gs://bucket/run' is a bucket's.* launch.sweep"):
            open_here(bad)
    assert os.listdir(tmp_path) == []


def test_somebody_elses_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(WorkdirError, match="no run folder .it holds 'thesis.tex'"):
        open_here(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    "content", [b'{"model_type": "bert"}', b"[1]", b"{half", b"\xff\xfe", TWICE]
)
def test_somebody_elses_config_json_is_left_alone(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(WorkdirError, match="a config.json that no run wrote"):
        open_here(tmp_path)
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_folder_without_write_permission_is_refused(tmp_path):
    # In a process of its own, which gives up being root, who may write everywhere.
    script = (
        "import jax, os, sys; from icl_jax.records import *\n"
        "from dataclasses import make_dataclass\n"
        "os.chmod(sys.argv[1], 0o555)\n"
        "os.chdir(sys.argv[1])\n"
        "jax.devices()\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: open_run('.', make_dataclass('C', [])(), experiment='e')\n"
        "except WorkdirError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "cannot be written (Permission denied). Choose another --workdir." in done.stdout


def test_a_run_killed_while_it_opened_opens_again(tmp_path):
    (tmp_path / ".config.json.partial").write_text('{"experi')
    (tmp_path / "provenance.json").write_text('{"versions": {}, "earlier": []}')
    run = open_here(tmp_path)
    assert run.load_json("config.json")["experiment"] == "descent"
