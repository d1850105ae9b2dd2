"""Renders a JobSet for a Kubernetes cluster, on GKE with TPUs, GPUs or neither.

Every shard is an index of one indexed job, a pod of its own. A pod whose node is taken back (exit
code 42, or a disruption) is started again and does not count as a failure; one in which runs failed
(exit code 1) is not, because they would fail again; any other end is tried again ``retries`` times.

On a TPU slice of several hosts every run has a JobSet of its own, with a pod per host, in which
its processes compute as one (``--distributed``): GKE tells them who they are. They write into one
folder, so the workdir is on a volume that all pods mount. When all were preempted each pod is
started again; when one is lost, the others end too, and the JobSet starts all again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from experiments.tools.flags import UsageError, option
from icl_jax.sharding import mesh_axes
from launch.layout import is_remote
from launch.outcomes import PREEMPTED
from launch.rendered import (
    TPUS,
    as_text,
    check_batch,
    check_name,
    check_whole,
    driver,
    hand_over,
    num_chips,
    num_hosts,
    split_topology,
    to_yaml,
)
from launch.task import Batch, Task, Watcher

#: Kubernetes takes names of 63 letters; JobSet appends to a run's what its pods are told apart by.
_LONGEST = 63 - len("-0123456789abcdef") - len("-run-0-1535-abcde")


@dataclass(frozen=True)
class Options:
    """A JobSet for a Kubernetes cluster."""

    name: str = option("icl-jax", "of the JobSet")
    image: str = option("", "container image with the project, its experiments and the sweep")
    shards: int = option(1, "pods that share the sweep, on slices of one host")
    topology: str | None = option(
        None, "TPU slice of a pod, such as v5e:2x2, or of a run, such as v5e:16x16; none: no TPU"
    )
    claim: str = option("", "volume claim (ReadWriteMany) that all hosts of a slice mount")
    mount: str = option("/sweeps", "where they mount it; the workdir is a folder in it")
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
            split_topology("gke", self.topology, several=True)
            if self.gpus:
                raise ValueError("gke: a pod has a TPU slice or GPUs: leave topology or gpus out.")
        if self.hosts > 1 and self.shards > 1:
            raise ValueError(
                f"gke: on {self.topology} every run has a JobSet of its own, got shards="
                f"{self.shards}. Leave shards out; the cluster runs as many as it has slices."
            )
        if self.hosts > 1 and len(self.name) > _LONGEST:
            raise ValueError(
                f"gke: name must be at most {_LONGEST} long where runs have several hosts, got "
                f"{self.name!r}."
            )

    @property
    def hosts(self) -> int:
        """Of one run."""
        return 1 if self.topology is None else num_hosts(self.topology)


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
        start = f"gcloud storage cat {path} | kubectl apply -f -"
        if not is_remote(batch.workdir):
            start = f"kubectl apply -f {path}"
        hand_over(batch, files, watcher, start)

    def files(self, batch: Batch) -> dict[str, str]:
        """Name -> text.

        Raises:
          UsageError: the batch cannot run elsewhere, or there is no image.
        """
        several = self.options.hosts > 1
        if several:
            self._check_together(batch)
        else:
            check_batch("gke", batch)
        if not self.options.image:
            raise UsageError("--executor=gke: --gke.image=IMAGE is missing.")
        if several:
            return {"jobset.yaml": to_yaml(*(self._together(task) for task in batch.tasks))}
        return {"jobset.yaml": to_yaml(self._jobset(batch))}

    def _check_together(self, batch: Batch) -> None:
        """UsageError where the hosts of a slice could not share a run."""
        options = self.options
        check_whole("gke", batch)
        if not options.claim:
            raise UsageError(
                f"--executor=gke: the {options.hosts} hosts of {options.topology} write into one "
                "folder: --gke.claim=CLAIM is missing, a volume claim that all mount."
            )
        inside = PurePosixPath(batch.workdir).is_relative_to(options.mount)
        if is_remote(batch.workdir) or ".." in batch.workdir.split("/") or not inside:
            raise UsageError(
                f"--executor=gke: --workdir={batch.workdir} must be a folder in --gke.mount="
                f"{options.mount}, the volume of all hosts of {options.topology}."
            )
        chips = num_chips(str(options.topology).partition(":")[2])
        if batch.mesh is not None and math.prod(mesh_axes(batch.mesh).values()) != chips:
            raise UsageError(
                f"--mesh={batch.mesh}: all {chips} chips of {options.topology} take part in a run. "
                f"Choose sizes whose product is {chips}."
            )

    def _together(self, task: Task) -> dict[str, Any]:
        """One run on all hosts of a slice."""
        options = self.options
        job = _indexed(
            options.hosts,
            "FailJob",
            self._pod([*task.command("python"), "--distributed"]),
            backoffLimit=0,  # One that is lost ends all, and the JobSet starts all again.
        )
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {
                # Of an id the digits: the experiment's name may have letters that no name has.
                "name": f"{options.name}-{task.id.rpartition('-')[2]}",
                "namespace": options.namespace,
                # Its pods have the hosts of one slice for themselves.
                "annotations": {
                    "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
                },
            },
            "spec": {
                # A headless service: the pods find each other by name.
                "network": {"enableDNSHostnames": True},
                "failurePolicy": {
                    "maxRestarts": options.retries,
                    "rules": [
                        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
                    ],
                },
                "replicatedJobs": [{"name": "run", "replicas": 1, "template": {"spec": job}}],
            },
        }

    def _jobset(self, batch: Batch) -> dict[str, Any]:
        options = self.options
        # Kubernetes sets the variable in every pod of an indexed job, and expands it here.
        shard = f"$(JOB_COMPLETION_INDEX)/{options.shards}"
        job = _indexed(
            options.shards,
            "FailIndex",
            self._pod(driver(batch, shard)),
            backoffLimitPerIndex=options.retries,
        )
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {"name": options.name, "namespace": options.namespace},
            "spec": {
                "replicatedJobs": [{"name": "sweep", "replicas": 1, "template": {"spec": job}}]
            },
        }

    def _pod(self, command: list[str]) -> dict[str, Any]:
        options = self.options
        container: dict[str, Any] = {"name": "sweep", "image": options.image, "command": command}
        selector: dict[str, str] = {}
        tainted = None
        if options.topology is not None:
            generation, shape = split_topology("gke", options.topology, several=True)
            tainted = "google.com/tpu"
            container["resources"] = {"limits": {tainted: num_chips(shape) // options.hosts}}
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
        if options.hosts > 1:
            container["volumeMounts"] = [{"name": "sweeps", "mountPath": options.mount}]
            claim = {"claimName": options.claim}
            pod["volumes"] = [{"name": "sweeps", "persistentVolumeClaim": claim}]
        return {**pod, "containers": [container]}


def _indexed(count: int, failure: str, pod: Mapping[str, Any], **limit: int) -> dict[str, Any]:
    """A job of so many pods, each with its number."""
    return {
        "completionMode": "Indexed",
        "completions": count,
        "parallelism": count,
        **limit,
        "podFailurePolicy": _failures(failure),
        "template": {"spec": pod},
    }


def _failures(final: str) -> dict[str, Any]:
    """What a pod's end means; ``final`` is done where it would end the same way again."""
    disrupted = {"type": "DisruptionTarget", "status": "True"}
    rules: list[Mapping[str, Any]] = [
        {"action": "Ignore", "onPodConditions": [disrupted]},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [PREEMPTED]}},
        {"action": final, "onExitCodes": {"operator": "In", "values": [1, 2]}},
    ]
    return {"rules": rules}


def make(options: Options) -> Gke:
    """The executor of these options."""
    return Gke(options)
