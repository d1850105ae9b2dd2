"""Job descriptions: the whole text in golden files, and what the engines themselves say of them.

    UPDATE_GOLDEN=1 python -m pytest tests/launch/test_rendered.py

writes the golden files anew; read what changed.
"""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import rich.console
import yaml

from experiments.tools.flags import UsageError, parse
from experiments.tools.processes import Distributed
from launch import sweep
from launch.configuration import identify, load_sweep, run_id, shard_of
from launch.outcomes import PREEMPTED
from launch.progress import Progress
from launch.rendered import num_chips, num_hosts, shell, split_topology
from launch.task import Batch, Task
from tests.launch import trivial

GOLDEN = Path(__file__).parent / "golden"
WORKDIR = "gs://bucket/my sweep"

CASES = {
    "gke_v5e": (
        "--executor=gke",
        "--gke.image=europe-docker.pkg.dev/me/icl-jax:1",
        "--gke.topology=v5e:2x4",
        "--gke.shards=4",
        "--gke.spot",
        "--gke.service_account=sweeper",
    ),
    "gke_gpu": ("--executor=gke", "--gke.image=icl-jax", "--gke.gpus=2", "--gke.namespace=lab"),
    "gke_cpu": ("--executor=gke", "--gke.image=icl-jax", "--gke.shards=3", "--gke.retries=0"),
    "gke_v6e": ("--executor=gke", "--gke.image=icl-jax", "--gke.topology=v6e:2x2"),
    "gke_v5p": ("--executor=gke", "--gke.image=icl-jax", "--gke.topology=v5p:2x2x1"),
    "gke_v4": ("--executor=gke", "--gke.image=icl-jax", "--gke.topology=v4:2x2x1"),
    "gke_v5e_hosts": (
        "--executor=gke",
        "--gke.image=icl-jax",
        "--gke.topology=v5e:4x4",
        "--gke.claim=sweeps",
    ),
    "gke_v5e_256": (
        "--executor=gke",
        "--gke.image=icl-jax",
        "--gke.topology=v5e:16x16",
        "--gke.claim=lab",
        "--gke.mount=/mnt/lab",
        "--gke.retries=9",
    ),
    "tpu_vm_v6e": (
        "--executor=tpu-vm",
        "--tpu_vm.topology=v6e:2x2",
        "--tpu_vm.zone=us-east5-b",
        "--tpu_vm.package=gs://bucket/project.tar.gz",
        "--tpu_vm.shards=3",
        "--tpu_vm.project=me",
    ),
    "tpu_vm_v4": (
        "--executor=tpu-vm",
        "--tpu_vm.topology=v4:2x2x1",
        "--tpu_vm.zone=us-central2-b",
        "--tpu_vm.package=gs://bucket/project.tar.gz",
        "--notpu_vm.spot",
    ),
    "skypilot_a100": (
        "--executor=skypilot",
        "--skypilot.accelerators=A100:1",
        "--skypilot.shards=2",
    ),
    "skypilot_tpu": (
        "--executor=skypilot",
        "--skypilot.accelerators=tpu-v5litepod-4",
        "--skypilot.infra=gcp/us-west4",
        "--noskypilot.spot",
    ),
}

#: The volume of what runs on several hosts, and the mesh.
ON_VOLUMES = {
    "gke_v5e_hosts": ("/sweeps/my sweep", None),
    "gke_v5e_256": ("/mnt/lab/mine", "data:16,model:16"),
}


def batch(workdir=WORKDIR, mesh=None, shard=None, swept="tests.launch.trivial:three"):
    tasks = [Task(run, workdir, mesh=mesh) for run in identify(load_sweep(swept))]
    return Batch(swept, shard, workdir, tasks, mesh=mesh)


def executor(*flags):
    return parse(sweep.Config, ["sweep", *flags]).config.make_executor()


def files(name):
    return executor(*CASES[name]).files(batch(*ON_VOLUMES.get(name, ())))


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_that_of_the_golden_file(name):
    text = executor(*CASES[name]).describe(batch(*ON_VOLUMES.get(name, ())))
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("local", ("--executor=local",)),
        ("ray", ("--executor=ray", "--ray.resource=TPU:4", "--ray.cpus=2")),
        (
            "slurm",
            (
                "--executor=slurm",
                "--slurm.partition=gpu",
                "--slurm.gpus=1",
                "--slurm.more=account=me,qos=high",
            ),
        ),
    ],
)
def test_what_runs_commands_describes_them_as_in_the_golden_file(name, flags):
    text = executor(*flags).describe(batch("/data/my sweep"))
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text()


def test_one_program_describes_its_runs_as_in_the_golden_file():
    swept = batch("/data/my sweep", swept="tests.launch.pure:two_by_two")
    text = executor("--executor=inprocess").describe(swept)
    path = GOLDEN / "inprocess.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text()


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("gke") and n not in ON_VOLUMES])
def test_a_jobset_s_driver_is_a_command_that_this_program_takes(name):
    (document,) = yaml.safe_load_all(files(name)["jobset.yaml"])
    (replicated,) = document["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert_runs_shards(container["command"], job["completions"], "$(JOB_COMPLETION_INDEX)")
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # Else there is no failure policy.


@pytest.mark.parametrize(
    ("name", "hosts"), [("gke_v5e_hosts", 4), ("gke_v5e_256", 64)], ids=lambda value: str(value)
)
def test_every_run_on_several_hosts_is_a_jobset_with_a_pod_for_each(name, hosts):
    documents = list(yaml.safe_load_all(files(name)["jobset.yaml"]))
    workdir, mesh = ON_VOLUMES[name]
    tasks = batch(workdir, mesh).tasks
    assert len({document["metadata"]["name"] for document in documents}) == len(tasks)
    for document, task in zip(documents, tasks, strict=True):
        (replicated,) = document["spec"]["replicatedJobs"]
        job = replicated["template"]["spec"]
        assert job["completions"] == job["parallelism"] == hosts
        pod = job["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"] == {"limits": {"google.com/tpu": 4}}
        # The command of the run, in each of its processes.
        python, flag, module, *words = container["command"]
        assert (python, flag, module) == ("python", "-m", "launch.worker")
        assert words[:3] == [workdir, task.id, "tests.launch.trivial"]
        parsed = parse(trivial.Config, ["trivial", *words[3:]])
        assert run_id(words[2], parsed.config) == task.id
        assert parsed.machine.mesh == mesh and parsed.machine.distributed == Distributed()
        (mounted,), (volume,) = container["volumeMounts"], pod["volumes"]
        assert mounted["name"] == volume["name"] and workdir.startswith(mounted["mountPath"])
        # The longest name of a pod is one that Kubernetes takes.
        assert len(f"{document['metadata']['name']}-run-0-{hosts - 1}-abcde") <= 63


def test_the_hosts_of_a_slice_need_a_folder_and_a_mesh_of_all_chips():
    several = ("--executor=gke", "--gke.image=i", "--gke.topology=v5e:4x4")
    with pytest.raises(UsageError, match="4 hosts of v5e:4x4 .* --gke.claim=CLAIM is missing"):
        executor(*several).describe(batch("/sweeps/x"))
    for workdir in (WORKDIR, "/tmp/x", "/sweeps/../tmp"):
        with pytest.raises(UsageError, match="must be a folder in --gke.mount=/sweeps"):
            executor(*several, "--gke.claim=c").describe(batch(workdir))
    with pytest.raises(UsageError, match="--mesh=data:4: all 16 chips of v5e:4x4 take part"):
        executor(*several, "--gke.claim=c").describe(batch("/sweeps/x", "data:4"))
    with pytest.raises(UsageError, match="leave --shard out"):
        executor(*several, "--gke.claim=c").describe(batch("/sweeps/x", shard="0/2"))


def assert_runs_shards(command, count, variable):
    """A command runs each shard once, with nothing left out."""
    assert command[:3] == ["python", "-m", "launch.sweep"]
    seen = []
    for index in range(count):
        words = [word.replace(variable, str(index)) for word in command[2:]]
        parsed = parse(sweep.Config, words)
        assert str(parsed.workdir) == WORKDIR and parsed.config.executor == "local"
        seen += shard_of(identify(load_sweep(parsed.config.sweep)), parsed.config.shard)
    assert sorted(run.id for run in seen) == sorted(task.id for task in batch().tasks)


@pytest.mark.parametrize("name", ["skypilot_a100", "skypilot_tpu"])
def test_a_sky_task_s_driver_is_a_command_that_this_program_takes(name):
    task = yaml.safe_load(files(name)["sky.yaml"])
    count = 2 if name == "skypilot_a100" else 1
    assert '"--shard=$SHARD/' in task["run"]
    assert_runs_shards(shlex.split(task["run"]), count, "$SHARD")


@pytest.mark.parametrize("name", ["tpu_vm_v6e", "tpu_vm_v4", "skypilot_a100"])
def test_scripts_are_shell_that_bash_reads(name):
    for file, text in files(name).items():
        if file.endswith(".sh"):
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def fake(folder, name, text):
    """A program that stands on PATH for a cloud's."""
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def test_the_submission_asks_for_what_is_not_there_and_replaces_what_was_taken_back(tmp_path):
    (tmp_path / "submit.sh").write_text(files("tpu_vm_v6e")["submit.sh"])
    fake(
        tmp_path,
        "gcloud",
        f'echo "$*" >> {tmp_path}/calls\n'
        'case "$*" in *"describe icl-jax-0"*) echo ACTIVE;;'
        ' *"describe icl-jax-1"*) echo SUSPENDED;; *describe*) exit 1;; esac',
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "submit.sh"], cwd=tmp_path, env=environment, check=True, capture_output=True
    )
    assert b"icl-jax-0 is there: ACTIVE" in done.stdout
    calls = (tmp_path / "calls").read_text().splitlines()
    verbs = [(words[3], words[4]) for words in map(str.split, calls)]
    assert verbs == [
        ("describe", "icl-jax-0"),
        ("describe", "icl-jax-1"),
        ("delete", "icl-jax-1"),
        ("create", "icl-jax-1"),
        ("describe", "icl-jax-2"),
        ("create", "icl-jax-2"),
    ]
    assert "--metadata=shard=2" in calls[-1] and "--accelerator-type=v6e-4" in calls[-1]


def test_a_machine_runs_its_shard_until_it_is_not_preempted_and_deletes_itself(tmp_path):
    text = files("tpu_vm_v6e")["startup.sh"].replace("/opt/project", str(tmp_path / "project"))
    (tmp_path / "startup.sh").write_text(text)
    fake(tmp_path, "curl", 'case "$*" in *shard*) echo 1;; *zone*) echo projects/9/zones/z;; esac')
    fake(tmp_path, "gcloud", f'echo "$*" >> {tmp_path}/calls')
    fake(tmp_path, "tar", "true")
    fake(tmp_path, "pip", "true")
    fake(
        tmp_path,
        "python",
        f'echo "python $*" >> {tmp_path}/calls\n'
        f"[ -e {tmp_path}/again ] && exit 0; touch {tmp_path}/again; exit 42",
    )
    fake(tmp_path, "python3", "mkdir -p venv/bin; touch venv/bin/activate")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(
        ["bash", "startup.sh"], cwd=tmp_path, env=environment, check=True, capture_output=True
    )
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "storage cp gs://bucket/project.tar.gz project.tar.gz"
    assert calls[1] == calls[2] and calls[1].endswith("--shard=1/3")
    assert "--workdir=gs://bucket/my sweep" in calls[1]
    assert calls[3] == (
        "compute tpus queued-resources delete icl-jax-1 --zone=z --project=me --force --quiet"
    )
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--executor=gke",), "--gke.image=IMAGE is missing"),
        (("--executor=tpu-vm",), "--tpu_vm.zone=us-west4-a is missing"),
        (("--executor=tpu-vm", "--tpu_vm.zone=z"), "--tpu_vm.package=gs://BUCKET/.* is missing"),
    ],
)
def test_what_is_missing_is_named(flags, message):
    with pytest.raises(UsageError, match=message):
        executor(*flags).describe(batch())


@pytest.mark.parametrize("name", ["gke", "tpu-vm", "skypilot"])
def test_other_machines_need_a_bucket_and_divide_the_sweep_themselves(name):
    some = executor(
        f"--executor={name}", "--gke.image=i", "--tpu_vm.zone=z", "--tpu_vm.package=gs://b/p"
    )
    with pytest.raises(UsageError, match="--workdir=/tmp/x must be an address"):
        some.describe(batch("/tmp/x"))
    with pytest.raises(UsageError, match=f"leave --shard out; --{name.replace('-', '_')}.shards"):
        some.describe(batch(shard="0/2"))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--gke.topology=v5e:4x2", "no slice 'v5e:4x2': .* 1x1 or 2x2 or 2x4, on several 4x4, 4x8"),
        ("--gke.topology=v5p:4x8x4", "no slice 'v5p:4x8x4': .* up to 6144 chips"),
        ("--gke.topology=v4:16x16x20", "no slice 'v4:16x16x20'"),
        ("--gke.topology=v5p:2x2", "no slice 'v5p:2x2'"),
        ("--gke.topology=v7:2x2", "must be GENERATION:SHAPE, .* got 'v7:2x2'"),
        ("--gke.name=My_Sweep", "name must consist of a-z, 0-9 and -"),
        ("--gke.shards=0", "gke: shards must be at least 1, got 0"),
        ("--tpu_vm.topology=v5p:2x2x2", "Raise shards .* or take --executor=gke"),
        ("--tpu_vm.topology=v5e:4x4", "one host here, so v5e can be 1x1 or 2x2 or 2x4, got '4x4'"),
        ("--ray.resource=TPU", "resource must be NAME:AMOUNT"),
        ("--slurm.more=account", "more must be NAME=VALUE"),
        ("--slurm.minutes=0", "slurm: minutes must be at least 1, got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(flag, message):
    with pytest.raises(UsageError, match=message):
        parse(sweep.Config, ["sweep", flag])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gke.shards=2",), "on v5e:4x4 every run has a JobSet of its own, got shards=2"),
        ((f"--gke.name={'a' * 40}",), "name must be at most 29 long where runs have several"),
        (("--gke.gpus=1",), "a TPU slice or GPUs"),
    ],
)
def test_so_are_those_that_several_hosts_cannot_have(flags, message):
    with pytest.raises(UsageError, match=message):
        parse(sweep.Config, ["sweep", "--gke.topology=v5e:4x4", *flags])


def test_a_rendered_sweep_is_written_into_the_bucket(tmp_path, monkeypatch):
    bucket = pytest.importorskip("tests.launch.bucket.sitecustomize")
    monkeypatch.setenv("BUCKETS", str(tmp_path))
    import fsspec

    fsspec.register_implementation("gcs", bucket.Bucket, clobber=True)
    console = rich.console.Console(file=io.StringIO(), width=200)
    where = ("--sweep=tests.launch.trivial:three", f"--workdir={WORKDIR}")
    assert sweep.main(["sweep", *where, *CASES["gke_v5e"]], console) == 0
    written = tmp_path / "bucket" / "my sweep"
    assert (written / "jobs" / "jobset.yaml").read_text() == files("gke_v5e")["jobset.yaml"]
    assert (written / "sweep.json").exists()
    shown = console.file.getvalue()
    assert "gcloud storage cat gs://bucket/my sweep/jobs/jobset.yaml | kubectl apply" in shown


def test_words_with_variables_are_quoted_so_that_the_shell_expands_them():
    assert shell(["a b", "--x=@/2"], **{"@": "$S"}) == "'a b' \"--x=$S/2\""
    assert num_chips("2x2x1") == 4
    assert split_topology("x", "v6e:2x4") == ("v6e", "2x4")
    slices = {"v6e:2x4": 1, "v5e:16x16": 64, "v4:2x2x2": 2, "v5p:4x4x8": 32, "v5p:16x16x24": 1536}
    for topology, hosts in slices.items():
        split_topology("x", topology, several=True)
        assert num_hosts(topology) == hosts


def test_progress_of_what_is_handed_over_counts_nothing():
    assert Progress(3, rich.console.Console(file=io.StringIO())).failures == {}


SKY = Path(os.environ.get("SKYPILOT_PYTHON", sys.executable))


@pytest.mark.engines
@pytest.mark.parametrize("name", ["skypilot_a100", "skypilot_tpu"])
def test_skypilot_takes_the_task(name, tmp_path):
    """Where SkyPilot is installed; SKYPILOT_PYTHON names a Python that has it."""
    found = subprocess.run([str(SKY), "-c", "import sky"], capture_output=True)
    if found.returncode:
        pytest.skip("SkyPilot is not installed")
    path = tmp_path / "sky.yaml"
    path.write_text(files(name)["sky.yaml"])
    code = (
        "import sys, sky\n"
        "task = sky.Task.from_yaml(sys.argv[1])\n"
        "(resources,) = task.resources\n"
        "print(resources.use_spot, resources.job_recovery)"
    )
    done = subprocess.run(
        [str(SKY), "-c", code, str(path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "42" in done.stdout and "max_restarts_on_errors" in done.stdout


XPK = Path(os.environ.get("XPK_PYTHON", sys.executable)).with_name("xpk")


@pytest.mark.engines
@pytest.mark.parametrize(
    ("name", "slice_of"),
    [
        ("gke_v4", "v4-8"),
        ("gke_v5p", "v5p-8"),
        ("gke_v6e", "v6e-4"),
        # Of v5e it knows no slice on one host: its 2x4 is two hosts of four chips.
        ("gke_v5e_hosts", "v5litepod-16"),
        ("gke_v5e_256", "v5litepod-256"),
    ],
)
def test_a_pod_is_placed_as_xpk_places_its_own(name, slice_of, tmp_path):
    """Its dry run, where it is installed; XPK_PYTHON names a Python that has it beside itself."""
    if not XPK.exists():
        pytest.skip("xpk is not installed")
    manifest = tmp_path / "jobset.yaml"
    command = (
        f"{XPK} workload create --dry-run --skip-validation --workload=sweep --cluster=mine "
        f"--project=mine --zone=us-east5-b --tpu-type={slice_of} --docker-image=icl-jax "
        f"--command=true --no-dependency-auto-download --output-manifest-file={manifest} "
        f"--restart-on-exit-codes={PREEMPTED} --max-restarts=9"
    )
    here = {**os.environ, "HOME": str(tmp_path), "PATH": f"{XPK.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        shlex.split(command), capture_output=True, text=True, cwd=tmp_path, env=here
    )
    assert manifest.exists(), done.stdout + done.stderr
    theirs = yaml.safe_load(manifest.read_text())
    ours = next(yaml.safe_load_all(files(name)["jobset.yaml"]))  # Others are as the first.
    assert ours["apiVersion"] == theirs["apiVersion"] and ours["kind"] == theirs["kind"]
    (job,), (their_job,) = (
        [one["template"]["spec"] for one in document["spec"]["replicatedJobs"]]
        for document in (ours, theirs)
    )
    for field in ("completions", "parallelism"):
        assert job[field] == their_job[field], field
    if name in ON_VOLUMES:  # Its pods have the slice for themselves, and one that is lost ends all.
        assert ours["metadata"]["annotations"] == theirs["metadata"]["annotations"]
        assert job["backoffLimit"] == their_job["backoffLimit"] == 0
        assert ours["spec"]["failurePolicy"]["rules"] == theirs["spec"]["failurePolicy"]["rules"]
    if name == "gke_v5e_256":
        policies = [document["spec"]["failurePolicy"] for document in (ours, theirs)]
        assert policies[0] == policies[1]
    pod, their_pod = (one["template"]["spec"] for one in (job, their_job))
    for field in ("nodeSelector", "tolerations", "restartPolicy"):
        assert pod[field] == their_pod[field], field
    (container,), (their_container,) = (one["containers"] for one in (pod, their_pod))
    assert container["resources"] == their_container["resources"]
    # What theirs retries ours does not count: neither ends the sweep with it.
    (failing,) = their_job["podFailurePolicy"]["rules"]
    assert failing["onExitCodes"]["operator"] == "NotIn"
    assert PREEMPTED in failing["onExitCodes"]["values"]
    ignored = [
        rule["onExitCodes"]["values"]
        for rule in job["podFailurePolicy"]["rules"]
        if rule["action"] == "Ignore" and "onExitCodes" in rule
    ]
    assert ignored == [[PREEMPTED]]
