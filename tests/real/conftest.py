"""Where the real models of these tests are: made once, by the command that anybody would use."""

import os
from pathlib import Path

import pytest

from experiments.language.real_models import real_model


@pytest.fixture(scope="session")
def models(request):
    """``models(name)`` is a checkpoint folder, under ICL_JAX_REAL_MODELS or pytest's cache."""
    given = os.environ.get("ICL_JAX_REAL_MODELS")
    workdir = Path(given) if given else request.config.cache.mkdir("real_models")
    return lambda name: real_model(name, workdir)
