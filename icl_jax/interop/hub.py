"""Where a checkpoint is: a folder, or a name on the Hugging Face hub and so a folder of its cache.

Only the files that are read here are fetched: configurations, safetensors, tokenizers. No pickle,
no Python file.
"""

import os
import re
from pathlib import Path

from icl_jax.interop.safetensors import CONVERT, listed, missing_package

CONFIG, ADAPTER = "config.json", "adapter_config.json"

#: What is fetched of a repository.
PATTERNS = (
    CONFIG,
    ADAPTER,
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def checkpoint_folder(
    path_or_name: str | Path, *, revision: str | None = None, offline: bool = False
) -> Path:
    """The folder of a checkpoint, fetched from the hub where it is a name and not yet cached.

    Args:
      path_or_name: a local folder, or a name such as ``"EleutherAI/pythia-70m"``. A folder wins.
      revision: a branch, tag or commit of a name; the main branch by default.
      offline: look into the cache only.

    Returns:
      The folder.

    Raises:
      FileNotFoundError: it is neither a folder nor a name that the hub or its cache has.
      ImportError: it is a name, and huggingface_hub is not installed.
      ValueError: a revision of a local folder.
      TypeError: neither a path nor a text.
    """
    if not isinstance(path_or_name, str | os.PathLike):
        raise TypeError(
            f"checkpoint_folder: path_or_name must be the folder of a checkpoint or its name on "
            f"the Hugging Face hub, got {path_or_name!r}."
        )
    folder = Path(path_or_name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"checkpoint_folder: {folder} is a local folder, which has no revision, got "
                f"{revision!r}. Leave the revision out."
            )
        return folder
    name = str(path_or_name)
    if isinstance(path_or_name, Path) or not _NAME.fullmatch(name) or name.startswith("."):
        raise FileNotFoundError(
            f"{path_or_name}: no such folder. Give the folder of a checkpoint, or its name on the "
            'Hugging Face hub, such as "EleutherAI/pythia-70m".'
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise missing_package("huggingface_hub") from error
    try:
        found = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(PATTERNS), local_files_only=offline
        )
    except Exception as error:
        # Whatever the connection raises: the names of these errors changed from version to version.
        raise FileNotFoundError(_unreachable(name, revision, offline, error)) from error
    if not any(Path(found).glob("*.safetensors")):
        raise FileNotFoundError(
            f"{name}: {found} has {listed(sorted(p.name for p in Path(found).iterdir()))}, but no "
            f"weights (*.safetensors). Fetch them once where there is a connection (hf download "
            f"{name}), and if the repository has them in another format only, convert them: "
            f"{CONVERT}"
        )
    return Path(found)


def _unreachable(name: str, revision: str | None, offline: bool, error: Exception) -> str:
    """What to do when a repository cannot be had."""
    what = name if revision is None else f"{name} at revision {revision}"
    reason = str(error).strip().splitlines() or [type(error).__name__]
    where = (
        "is not in the cache of the hub, and only the cache was asked for (offline)"
        if offline
        else "is neither a local folder nor in the cache of the hub, and could not be fetched"
    )
    return (
        f"{what} {where}: {reason[0]} ({type(error).__name__}). Fetch it once where there is a "
        f"connection (hf download {name}) and take the cache along, or give a local folder."
    )
