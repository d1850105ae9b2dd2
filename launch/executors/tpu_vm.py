"""Renders scripts for TPU VMs as queued resources: a machine per shard, deleted when it is done.

A machine that starts runs its shard by itself; one that is taken back is asked for again by
``submit.sh``, which can be run at any time: it leaves alone what is there and asks for the rest.
"""

import shlex
from dataclasses import dataclass

from experiments.tools.flags import UsageError, option
from launch.outcomes import PREEMPTED
from launch.rendered import (
    as_text,
    check_batch,
    check_name,
    driver,
    hand_over,
    num_chips,
    shell,
    split_topology,
)
from launch.task import Batch, Watcher

#: Generation -> prefix of the accelerator type, cores per chip in its name, software of the VM.
_TYPES = {
    "v4": ("v4", 2, "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", 2, "v2-alpha-tpuv5"),
    "v6e": ("v6e", 1, "v2-alpha-tpuv6e"),
}


@dataclass(frozen=True)
class Options:
    """TPU VMs as queued resources."""

    name: str = option("icl-jax", "of the machines, a number is appended")
    shards: int = option(1, "machines that share the sweep")
    topology: str = option("v5e:2x2", "of a machine")
    zone: str = option("", "such as us-west4-a")
    project: str = option("", "of Google Cloud; empty: the default of gcloud")
    package: str = option("", "address of the project as a .tar.gz in a bucket; it has the sweep")
    extras: str = option("experiments", "of the project, installed on the machine")
    spot: bool = option(True, "machines that may be taken back, and cost less")

    def __post_init__(self) -> None:
        check_name("tpu_vm", self.name)
        split_topology("tpu_vm", self.topology)
        if self.shards < 1:
            raise ValueError(f"tpu_vm: shards must be at least 1, got {self.shards}.")


@dataclass(frozen=True)
class TpuVm:
    """Writes ``jobs/submit.sh`` and ``jobs/startup.sh``."""

    options: Options

    def describe(self, batch: Batch) -> str:
        """The files."""
        return as_text(self.files(batch))

    def execute(self, batch: Batch, watcher: Watcher) -> None:
        """Writes the files and says how to start them."""
        files = self.files(batch)
        jobs = batch.layout.jobs
        then = f"gcloud storage cp '{jobs}/*.sh' . && bash submit.sh"
        hand_over(batch, files, watcher, then)

    def files(self, batch: Batch) -> dict[str, str]:
        """Name -> text.

        Raises:
          UsageError: the batch cannot run elsewhere, or a zone or the package is missing.
        """
        check_batch("tpu-vm", batch)
        for name, example in (("zone", "us-west4-a"), ("package", "gs://BUCKET/project.tar.gz")):
            if not getattr(self.options, name):
                raise UsageError(f"--executor=tpu-vm: --tpu_vm.{name}={example} is missing.")
        return {"submit.sh": self._submit(), "startup.sh": self._startup(batch)}

    def _submit(self) -> str:
        options = self.options
        generation, shape = split_topology("tpu_vm", options.topology)
        prefix, cores, runtime = _TYPES[generation]
        where = [f"--zone={options.zone}"]
        where += [f"--project={options.project}"] if options.project else []
        asked = [
            *where,
            f"--accelerator-type={prefix}-{cores * num_chips(shape)}",
            f"--runtime-version={runtime}",
            "--scopes=https://www.googleapis.com/auth/cloud-platform",
            "--metadata-from-file=startup-script=startup.sh",
        ]
        asked += ["--spot"] if options.spot else []
        queue = "gcloud compute tpus queued-resources"
        return f"""\
#!/usr/bin/env bash
# Asks for a machine per shard; leaves alone those that are there, replaces those that are gone.
set -euo pipefail
for shard in $(seq 0 {options.shards - 1}); do
  name={shlex.quote(options.name)}-$shard
  state=$({queue} describe "$name" {shlex.join(where)} --format='value(state.state)' || true)
  case "$state" in
    SUSPENDED | FAILED) {queue} delete "$name" {shlex.join(where)} --force --quiet ;;
    ?*) echo "$name is there: $state"; continue ;;
  esac
  {queue} create "$name" --node-id="$name" --metadata=shard="$shard" \\
    {f" {chr(92)}{chr(10)}    ".join(shlex.quote(word) for word in asked)}
done
"""

    def _startup(self, batch: Batch) -> str:
        options = self.options
        here = ['--zone="$zone"', *([f"--project={options.project}"] if options.project else [])]
        command = shell(driver(batch, f"@/{options.shards}"), **{"@": "$shard"})
        return f"""\
#!/usr/bin/env bash
# Runs on the machine when it starts: one shard of the sweep, then the machine deletes itself.
set -uxo pipefail
metadata() {{
  curl -sf -H 'Metadata-Flavor: Google' \\
    "http://metadata.google.internal/computeMetadata/v1/instance/$1"
}}
shard=$(metadata attributes/shard)
zone=$(basename "$(metadata zone)")
mkdir -p /opt/project && cd /opt/project
gcloud storage cp {shlex.quote(options.package)} project.tar.gz
tar -xzf project.tar.gz --strip-components=1
python3 -m venv venv && . venv/bin/activate
pip install -q '.[{options.extras}]' 'jax[tpu]' gcsfs
code={PREEMPTED}
while [ "$code" -eq {PREEMPTED} ]; do
  {command}
  code=$?
done
gcloud compute tpus queued-resources delete {shlex.quote(options.name)}-"$shard" \\
  {" ".join(here)} --force --quiet
"""


def make(options: Options) -> TpuVm:
    """The executor of these options."""
    return TpuVm(options)
