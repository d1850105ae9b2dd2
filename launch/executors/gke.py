"""Renders a JobSet for a Kubernetes cluster, on GKE with TPUs, GPUs or neither.

Every shard is an index of one indexed job, a pod of its own. A pod whose node is taken back (exit
code 42, or a disruption) is started again and does not count as a failure; one in which runs failed
(exit code 1) is not, because they would fail again; any other end is tried again ``retries`` times.
"""

from dataclasses import dataclass
from typing import Any

from experiments.tools.flags import UsageError, option
from launch.outcomes import PREEMPTED
from launch.rendered import (
    TPUS,
    as_text,
    check_batch,
    check_name,
    driver,
    hand_over,
    num_chips,
    split_topology,
    to_yaml,
)
from launch.task import Batch, Watcher


@dataclass(frozen=True)
class Options:
    """A JobSet for a Kubernetes cluster."""

    name: str = option("icl-jax", "of the JobSet")
    image: str = option("", "container image with the project, its experiments and the sweep")
    shards: int = option(1, "pods that share the sweep")
    topology: str | None = option(None, "TPU slice of a pod, such as v5e:2x2; none: no TPU")
    gpus: int = option(0, "NVIDIA GPUs of a pod")
    namespace: str = option("default", "of the cluster")
    service_account: str = option("", "that may read and write the bucket; empty: the default")
    spot: bool = option(False, "machines that may be taken back, and cost less")
    retries: int = option(3, "further attempts of a pod that failed for no reason of its own")
    grace: int = option(60, "seconds to checkpoint when a pod is taken back")

    def __post_init__(self) -> None:
        check_name("gke", self.name)
        if self.shards < 1:
            raise ValueError(f"gke: shards must be at least 1, got {self.shards}.")
        if self.topology is not None:
            split_topology("gke", self.topology)
            if self.gpus:
                raise ValueError("gke: a pod has a TPU slice or GPUs: leave topology or gpus out.")


@dataclass(frozen=True)
class Gke:
    """Writes ``jobs/jobset.yaml``."""

    options: Options

    def describe(self, batch: Batch) -> str:
        """The file."""
        return as_text(self.files(batch))

    def execute(self, batch: Batch, watcher: Watcher) -> None:
        """Writes the file and says how to start it."""
        files = self.files(batch)
        path = batch.layout.jobs / "jobset.yaml"
        hand_over(batch, files, watcher, f"gcloud storage cat {path} | kubectl apply -f -")

    def files(self, batch: Batch) -> dict[str, str]:
        """Name -> text.

        Raises:
          UsageError: the batch cannot run elsewhere, or there is no image.
        """
        check_batch("gke", batch)
        if not self.options.image:
            raise UsageError("--executor=gke: --gke.image=IMAGE is missing.")
        return {"jobset.yaml": to_yaml(self._jobset(batch))}

    def _jobset(self, batch: Batch) -> dict[str, Any]:
        options = self.options
        job = {
            "completionMode": "Indexed",
            "completions": options.shards,
            "parallelism": options.shards,
            "backoffLimitPerIndex": options.retries,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [PREEMPTED]}},
                    {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1, 2]}},
                ]
            },
            "template": {"spec": self._pod(batch)},
        }
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {"name": options.name, "namespace": options.namespace},
            "spec": {
                "replicatedJobs": [{"name": "sweep", "replicas": 1, "template": {"spec": job}}]
            },
        }

    def _pod(self, batch: Batch) -> dict[str, Any]:
        options = self.options
        # Kubernetes sets the variable in every pod of an indexed job, and expands it here.
        shard = f"$(JOB_COMPLETION_INDEX)/{options.shards}"
        container: dict[str, Any] = {
            "name": "sweep",
            "image": options.image,
            "command": driver(batch, shard),
        }
        selector: dict[str, str] = {}
        tainted = None
        if options.topology is not None:
            generation, shape = split_topology("gke", options.topology)
            tainted = "google.com/tpu"
            container["resources"] = {"limits": {tainted: num_chips(shape)}}
            selector["cloud.google.com/gke-tpu-accelerator"] = TPUS[generation][0]
            selector["cloud.google.com/gke-tpu-topology"] = shape
        elif options.gpus:
            tainted = "nvidia.com/gpu"
            container["resources"] = {"limits": {tainted: options.gpus}}
        if options.spot:
            selector["cloud.google.com/gke-spot"] = "true"
        pod: dict[str, Any] = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": options.grace,
        }
        if options.service_account:
            pod["serviceAccountName"] = options.service_account
        if selector:
            pod["nodeSelector"] = selector
        if tainted is not None:  # GKE keeps other pods away from nodes that have one.
            pod["tolerations"] = [{"key": tainted, "operator": "Exists"}]
        return {**pod, "containers": [container]}


def make(options: Options) -> Gke:
    """The executor of these options."""
    return Gke(options)
