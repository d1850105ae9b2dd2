"""Benchmarks run and write the rows that they promise. No times are tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
SMALL = {
    "accelerator": ["--small", "--sections=card,forward,patches,mlp,generation,prefixes,lengths"],
    "token_patches": ["--batch=2", "--positions=3", "--width=16"],
    "prefixes": ["--length=70", "--longer=90", "--layers=2", "--width=16", "--reruns=1"],
    "descent": ["--tasks=16", "--steps=3", "--rates=2", "--looped=2", "--devices=1,2"],
    "compilation": ["--layers=2", "--length=32", "--width=8"],
    "sweeps": ["--rates=2", "--seeds=1", "--processes=1", "--steps=4"],
    "reusable": [
        "--width=16",
        "--layers=2",
        "--vocab=32",
        "--context=8",
        "--tokens=160,480",
        "--in_order=160",
        "--rank=2",
        "--steps=10",
    ],
    "checkpoint": [
        "--width=32",
        "--layers=2",
        "--vocab=64",
        "--length=40",
        "--kept=8",
        "--experts=8",
        "--megabytes=0",
    ],
}


def _run(name, *flags):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--repeats=1", *SMALL[name], *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=CHECKOUT)


@pytest.mark.parametrize("name", SMALL)
def test_rows_hold_both_sides_and_their_ratio(name, tmp_path):
    done = _run(name, f"--json={tmp_path / 'rows.json'}")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows and "failed:" not in done.stdout
    for row in rows:
        first, second = row["sides"].values()
        assert row["ratio"] == pytest.approx(second["seconds"] / first["seconds"])
        assert first["bytes"] > 0 and second["bytes"] > 0
        assert row["sizes"] and row["device"] and row["versions"]["jax"]


def test_factors_take_the_memory_of_two_vectors(tmp_path):
    _run("token_patches", f"--json={tmp_path / 'rows.json'}")
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["sides"]["factors"]["bytes"] == 2 * 3 * 2 * 16 * 4
    assert row["sides"]["matrices"]["bytes"] == 2 * 3 * 16 * 64 * 4


def test_descents_on_more_devices_say_nothing_to_one_another(tmp_path):
    done = _run("descent", f"--json={tmp_path / 'rows.json'}")
    one, two = json.loads((tmp_path / "rows.json").read_text())[0]["scaling"]
    assert (one["tasks"], two["tasks"]) == (2, 4)
    assert two["every descent"]["collectives"] == []
    assert two["mean over tasks"]["collectives"] == ["all-reduce"]
    same = [each["every descent"]["bytes_per_device"] for each in (one, two)]
    assert same[0] == same[1] > 0
    assert "all-reduce" in done.stdout


def test_a_bank_of_twenty_six_layers_fits_into_the_memory_that_is_promised(tmp_path):
    _run("checkpoint", f"--json={tmp_path / 'rows.json'}")
    row = json.loads((tmp_path / "rows.json").read_text())[0]
    # Four vectors of the model's width, and two numbers, per layer and kept token; plus lengths.
    assert row["sides"]["compact"]["bytes"] == 26 * 64 * (4 * 1152 + 2) * 4
    assert row["sides"]["compact"]["bytes"] < 64e6 < row["sides"]["whole"]["bytes"]


def test_a_folder_that_is_not_there_is_said_before_any_timing():
    done = _run("token_patches", "--json=/nowhere/rows.json")
    assert done.returncode == 2
    assert done.stderr == (
        "token_patches: error: --json=/nowhere/rows.json: the folder /nowhere does not exist.\n"
    )


def test_a_stream_of_three_times_the_tokens_holds_no_more(tmp_path):
    _run("reusable", f"--json={tmp_path / 'rows.json'}")
    few, many, descent = json.loads((tmp_path / "rows.json").read_text())
    label = "streaming, at once"
    assert many["sides"][label]["bytes"] == few["sides"][label]["bytes"]
    assert descent["held_out"].keys() == {"closed", "lora", "no context"}
