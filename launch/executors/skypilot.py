"""Renders a task for SkyPilot, which finds a machine in any cloud and replaces lost ones.

One file for all shards: each is a managed job, started with its number in ``SHARD``.
"""

from dataclasses import dataclass
from typing import Any

from experiments.tools.flags import option
from launch.outcomes import PREEMPTED
from launch.rendered import as_text, check_batch, check_name, driver, hand_over, shell, to_yaml
from launch.task import Batch, Watcher


@dataclass(frozen=True)
class Options:
    """Managed jobs of SkyPilot."""

    name: str = option("icl-jax", "of the jobs")
    shards: int = option(1, "machines that share the sweep")
    accelerators: str = option(
        "", "NAME:COUNT as SkyPilot says it, such as A100:1, tpu-v5litepod-4"
    )
    infra: str = option("", "where, such as gcp/us-central1; empty: SkyPilot chooses")
    project: str = option(".", "folder that is copied to the machines: the project and the sweep")
    setup: str = option('pip install -q ".[experiments]" gcsfs', "run once on a machine")
    spot: bool = option(True, "machines that may be taken back, and cost less")
    retries: int = option(3, "further attempts of a job that failed")

    def __post_init__(self) -> None:
        check_name("skypilot", self.name)
        if self.shards < 1:
            raise ValueError(f"skypilot: shards must be at least 1, got {self.shards}.")


@dataclass(frozen=True)
class Skypilot:
    """Writes ``jobs/sky.yaml`` and ``jobs/sky.sh``."""

    options: Options

    def describe(self, batch: Batch) -> str:
        """The files."""
        return as_text(self.files(batch))

    def execute(self, batch: Batch, watcher: Watcher) -> None:
        """Writes the files and says how to start them."""
        files = self.files(batch)
        jobs = batch.layout.jobs
        then = f"gcloud storage cp '{jobs}/sky.*' . && bash sky.sh"
        hand_over(batch, files, watcher, then)

    def files(self, batch: Batch) -> dict[str, str]:
        """Name -> text; UsageError where the batch cannot run elsewhere."""
        check_batch("skypilot", batch)
        options = self.options
        resources: dict[str, Any] = {"use_spot": options.spot}
        if options.accelerators:
            resources["accelerators"] = options.accelerators
        if options.infra:
            resources["infra"] = options.infra
        resources["job_recovery"] = {
            "max_restarts_on_errors": options.retries,
            "recover_on_exit_codes": [PREEMPTED],
        }
        task = {
            "name": options.name,
            "workdir": options.project,
            "resources": resources,
            "envs": {"SHARD": "0"},
            "setup": options.setup,
            "run": shell(driver(batch, f"@/{options.shards}"), **{"@": "$SHARD"}),
        }
        starts = [
            "#!/usr/bin/env bash",
            "# A managed job per shard.",
            "set -euo pipefail",
            f"for shard in $(seq 0 {options.shards - 1}); do",
            f'  sky jobs launch --yes --detach-run --name "{options.name}-$shard" '
            '--env SHARD="$shard" sky.yaml',
            "done",
        ]
        return {"sky.yaml": to_yaml(task), "sky.sh": "\n".join(starts) + "\n"}


def make(options: Options) -> Skypilot:
    """The executor of these options."""
    return Skypilot(options)
