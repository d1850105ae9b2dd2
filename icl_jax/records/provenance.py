"""With which versions and on what a run was made, each time that it was opened."""

import importlib.metadata
import platform
from collections.abc import Iterable
from typing import Any

import jax

from icl_jax.records.errors import damaged
from icl_jax.records.run import Run

PROVENANCE = "provenance.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "icl_jax")


def environment() -> dict[str, Any]:
    """Versions and device."""
    devices = jax.devices()
    versions = {"python": platform.python_version(), **versions_of(_PACKAGES)}
    device = {"kind": devices[0].device_kind, "platform": devices[0].platform}
    return {"versions": versions, "device": {**device, "count": len(devices)}}


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Package -> its version, or ``not installed``."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def with_earlier(run: Run, now: dict[str, Any]) -> dict[str, Any]:
    """The environment, and under ``earlier`` the other ones in which the run was opened before."""
    if not run.has(PROVENANCE):
        return {**now, "earlier": []}
    last = run.load_json(PROVENANCE)
    if not isinstance(last, dict) or not isinstance(last.get("earlier"), list):
        raise damaged(run.path(PROVENANCE), ValueError("it is no provenance"))
    earlier = last.pop("earlier")
    return {**now, "earlier": earlier if last == now else [*earlier, last]}
