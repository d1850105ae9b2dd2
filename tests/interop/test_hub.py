"""The hub: its cache answers without a connection, folders need none, and no code is fetched."""

import shutil
import socket
import sys

import jax
import numpy as np
import pytest

from icl_jax.interop.hub import checkpoint_folder
from icl_jax.interop.huggingface import load
from tests.interop.test_parity import GOLDEN

hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")

NAME = "somebody/tiny-llama"
COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def no_network(monkeypatch):
    """Counts what is tried, and refuses it."""
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


@pytest.fixture
def cache(tmp_path, monkeypatch, no_network):
    """A cache with two commits of a checkpoint: main is llama, the older one gpt2."""
    # Where HF_HUB_CACHE ends up when the library is imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    repository = tmp_path / "cache" / "models--somebody--tiny-llama"
    for commit, family in ((COMMIT, "llama"), (OLDER, "gpt2")):
        shutil.copytree(GOLDEN / family, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "v1").write_text(OLDER)
    return repository


def test_a_name_is_loaded_from_the_cache_and_the_network_is_not_asked(cache, no_network):
    checkpoint = load(NAME, offline=True)
    assert checkpoint.folder == cache.resolve() / "snapshots" / COMMIT
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, load(GOLDEN / "llama").params)
    assert no_network == []


@pytest.mark.parametrize("revision", ("v1", OLDER), ids=("tag", "commit"))
def test_a_revision_of_the_cache(cache, revision):
    assert load(NAME, revision=revision, offline=True).family == "gpt2"


def test_without_a_connection_the_cache_is_enough(cache, no_network):
    assert load(NAME).folder == cache.resolve() / "snapshots" / COMMIT
    assert no_network != []


@pytest.mark.parametrize(
    ("name", "revision", "what"),
    (
        ("somebody/else", None, "somebody/else"),
        (NAME, "v2", f"{NAME} at revision v2"),
        ("gpt2", None, "gpt2"),
    ),
)
def test_what_is_not_cached_is_named_and_what_to_do(cache, no_network, name, revision, what):
    with pytest.raises(FileNotFoundError) as error:
        load(name, revision=revision, offline=True)
    message = str(error.value)
    assert message.startswith(
        f"{what} is not in the cache of the hub, and only the cache was asked"
    )
    assert f"Fetch it once where there is a connection (hf download {name})" in message
    assert no_network == []
    with pytest.raises(FileNotFoundError, match=f"^{what} is neither a local folder nor in the ca"):
        load(name, revision=revision)


def test_a_snapshot_without_weights_is_refused(cache):
    (cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    for offline in (True, False):
        with pytest.raises(FileNotFoundError) as error:
            load(NAME, offline=offline)
        for part in (NAME, "has config.json", "but no weights", f"hf download {NAME}"):
            assert part in str(error.value)


def test_a_folder_never_asks_the_hub(tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hub, "snapshot_download", never)
    shutil.copytree(GOLDEN / "llama", tmp_path / "somebody" / "tiny-llama")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    # A folder wins over a name that is spelt the same.
    for folder in (tmp_path / NAME, NAME, f"~/{NAME}"):
        assert load(folder).family == "llama"
    with pytest.raises(ValueError, match="tiny-llama is a local folder.*got 'v1'. Leave the rev"):
        load(NAME, revision="v1")


@pytest.mark.parametrize("path", ("./nowhere", "/no/where", "a/b/c", "~/nowhere", "a b"))
def test_what_cannot_be_a_name_is_a_missing_folder(path, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", None)
    with pytest.raises(FileNotFoundError, match="no such folder. Give the folder of a checkpoint"):
        checkpoint_folder(path)


@pytest.mark.parametrize("path", (None, 5, b"tiny"))
def test_what_is_no_text_is_no_name(path):
    with pytest.raises(TypeError, match="checkpoint_folder: path_or_name must be the folder of a"):
        load(path)


def test_only_configurations_tensors_and_tokenizers_are_fetched(tmp_path, monkeypatch):
    asked = {}

    (tmp_path / "model.safetensors").touch()

    def download(name, **kwargs):
        asked.update(kwargs, name=name)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert checkpoint_folder(NAME, revision="v1") == tmp_path
    assert (asked["name"], asked["revision"], asked["local_files_only"]) == (NAME, "v1", False)
    wanted = {
        "config.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "vocab.txt",
    }
    unwanted = {
        "pytorch_model.bin",
        "model.bin",
        "modeling_tiny.py",
        "tf_model.h5",
        "flax_model.msgpack",
        "original/consolidated.00.pth",
        "adapter_model.safetensors",
        "README.md",
    }
    fetched = hub.utils.filter_repo_objects(
        sorted(wanted | unwanted), allow_patterns=asked["allow_patterns"]
    )
    assert set(fetched) == wanted


def test_a_name_without_the_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'huggingface_hub is not.*pip install "icl_jax\[hugging'):
        checkpoint_folder(NAME)
