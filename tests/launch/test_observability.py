"""What a run does is written down while it does it, and copied to where people watch."""

import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments.language.language_model import Config as LanguageModelConfig
from experiments.tools.flags import UsageError, parse
from icl_jax.compilations import count_compilations
from icl_jax.training.loop import train
from icl_jax.training.metrics import append_rows, keep_rows
from launch import chips, costs, sweep, trackers, worker
from launch.chips import CHIPS, Chip, chip_of_kind
from launch.configuration import configurations, experiment_module, identify
from launch.layout import Layout
from launch.observe import Observer, device_bytes, newest_step, read_events
from launch.roofline import least_seconds, training_step
from launch.task import Task
from launch.trackers import Mirror, TensorBoard
from launch.worker import scalars, tokens_per_step
from tests.launch import drive


def rows(first, last):
    return [{"step": step, "loss": 1.0 / step} for step in range(first, last + 1)]


class Recorder:
    """A tracker that remembers."""

    def __init__(self):
        self.seen = []
        self.closed = False

    def log(self, step, values):
        self.seen.append((step, dict(values)))

    def close(self):
        self.closed = True


@pytest.fixture
def run(tmp_path):
    layout = Layout(str(tmp_path / "sweep"))
    folder = tmp_path / "sweep" / "runs" / "r"
    folder.mkdir(parents=True)
    return layout, folder


def test_an_observer_tells_attempts_steps_speed_compilations_and_memory(run):
    layout, folder = run
    with Observer(layout, "r", folder, tokens_per_step=100, every=0.05) as observer:
        jax.jit(lambda x: x + 1)(jnp.zeros(3))
        append_rows(folder / "metrics.jsonl", rows(1, 4))
        log = layout.log("r", "jsonl")
        drive.wait_until(lambda: any(e.get("step") == 4 for e in read_events(log)))
        append_rows(folder / "metrics.jsonl", rows(5, 9))
        drive.wait_until(lambda: any(e.get("step") == 9 for e in read_events(log)))
        observer.ended(0)
    events = read_events(log)
    assert events[0]["event"] == "started" and events[0]["attempt"] == 1
    assert events[-1]["event"] == "ended" and events[-1]["code"] == 0
    assert events[-1]["compilations"] >= 1 and events[-1]["compile_seconds"] > 0
    assert events[-1]["resident_bytes"] > 1e6
    assert len(events[-1]["device_bytes"]) == len(jax.local_devices())
    (moved,) = [e for e in events if e.get("step") == 9 and e.get("steps_per_second")][:1]
    assert moved["tokens_per_second"] == pytest.approx(100 * moved["steps_per_second"], rel=0.01)
    with Observer(layout, "r", folder):
        pass
    assert read_events(log)[-1]["attempt"] == 2


#: As quick as a chip that has no other limit than its products.
SLOW = Chip(gibibytes=1, flops=1e6, memory=1e12, network=1e12, axes=2)


def scanned(depth, width=8):
    """A training of ``depth`` equal layers run by a scan, and the products of its step.

    Three of 16 x width x width a layer: one forward and two back.
    """

    def init(key):
        return jax.random.normal(key, (depth, width, width), jnp.float32)

    def loss(kernels_LDD, key):
        inputs_BD = jax.random.normal(key, (16, width), jnp.float32)
        last_BD, _ = jax.lax.scan(
            lambda x_BD, kernel_DD: (jnp.tanh(x_BD @ kernel_DD), None), inputs_BD, kernels_LDD
        )
        return jnp.mean(last_BD**2), {}

    return init, loss, 3 * 2 * 16 * width * width * depth


def trained(depth, num_steps, workdir=None):
    """Trains; the products of a step."""
    init, loss, flops = scanned(depth)
    options = {"num_steps": num_steps, "steps_per_call": 2, "show_progress": False}
    train(init, loss, optax.sgd(0.1), jax.random.key(0), workdir=workdir, **options)
    return flops


@pytest.mark.parametrize("depth", [3, 7])
def test_the_step_of_the_training_that_was_compiled_last_counts_its_layers_and_one_step(depth):
    trained(2, 4)
    flops = trained(depth, 6)
    with count_compilations() as compilations:
        step = training_step()
    assert compilations.number == 0
    assert costs.flops(step) == flops
    assert least_seconds(step, SLOW) == flops / SLOW.flops


def test_the_share_of_the_roofline_is_the_speed_times_the_least_seconds(run, monkeypatch):
    monkeypatch.setitem(CHIPS, "slow", SLOW)
    monkeypatch.setitem(chips.KINDS, "cpu", "slow")
    layout, folder = run
    with Observer(layout, "r", folder, tokens_per_step=100, every=3600.0) as observer:
        flops = trained(5, 4, folder)
        observer.ended(0)
        trained(5, 12, folder)
        observer.ended(0)
    *_, event = read_events(layout.log("r", "jsonl"))
    assert event["share_of_roofline"] == pytest.approx(
        event["steps_per_second"] * flops / SLOW.flops, rel=0.01
    )


def test_a_device_that_is_no_known_chip_has_no_roofline(run):
    assert chip_of_kind("cpu") is None and chip_of_kind("TPU v5 lite") == CHIPS["v5e"]
    layout, folder = run
    with Observer(layout, "r", folder, every=3600.0) as observer:
        trained(5, 4, folder)
        observer.ended(0)
        trained(5, 12, folder)
        observer.ended(0)
    *_, event = read_events(layout.log("r", "jsonl"))
    assert event["steps_per_second"] > 0 and "share_of_roofline" not in event


def test_a_line_that_a_kill_cut_short_spoils_neither_the_next_nor_the_ones_before(run):
    layout, folder = run
    path = layout.log("r", "jsonl")
    path.parent.mkdir()
    path.write_text('{"event": "started"}\n{"event": "obs')
    with Observer(layout, "r", folder) as observer:
        observer.ended(3)
    assert [e["event"] for e in read_events(path)] == ["started", "started", "ended"]


def test_the_newest_step_is_that_of_the_training_that_wrote_last(tmp_path):
    assert newest_step(tmp_path) is None
    for name, last in (("a", 7), ("b", 3)):
        (tmp_path / name).mkdir()
        append_rows(tmp_path / name / "metrics.jsonl", rows(1, last))
    import os

    os.utime(tmp_path / "a" / "metrics.jsonl", (1, 1))
    assert newest_step(tmp_path) == 3
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert newest_step(tmp_path) == 3
    assert device_bytes() == [{}] * len(jax.local_devices())  # A CPU does not tell.


def test_the_tokens_of_a_step_are_the_configuration_s_business():
    learner = experiment_module("experiments.training").Config()
    assert tokens_per_step(learner) == 64 * 51
    assert tokens_per_step(LanguageModelConfig()) == 8 * LanguageModelConfig().length
    depth = experiment_module("experiments.depth").Config()
    assert tokens_per_step(depth) == 1024 * 11
    assert tokens_per_step(experiment_module("tests.launch.trivial").Config()) is None


def test_a_summary_s_single_values_are_kept_and_lists_left_out():
    tree = {"a": 1, "b": {"c": 0.5, "d": {"e": "x"}, "f": [1]}, "g": None, "h": True}
    assert scalars(tree) == {"a": 1, "b.c": 0.5, "b.d.e": "x", "h": True}


def test_metrics_are_copied_once_and_in_order_each_training_under_its_name(tmp_path):
    recorder, made = Recorder(), []

    def make():
        made.append(1)
        return [recorder]

    with Mirror(tmp_path, make, every=60.0) as mirror:
        mirror.copy()
        assert made == []  # The folder is still its experiment's.
        append_rows(tmp_path / "metrics.jsonl", rows(1, 2))
        mirror.copy()
        # Cut back and written again, as a resumed training does.
        keep_rows(tmp_path / "metrics.jsonl", 1)
        append_rows(tmp_path / "metrics.jsonl", rows(2, 3))
        (tmp_path / "learners" / "x").mkdir(parents=True)
        append_rows(tmp_path / "learners" / "x" / "metrics.jsonl", rows(1, 1))
    assert recorder.seen == [
        (1, {"loss": 1.0}),
        (2, {"loss": 0.5}),
        (1, {"learners/x/loss": 1.0}),
        (3, {"loss": 1.0 / 3}),
    ]
    assert recorder.closed and made == [1]


class Broken(Recorder):
    """Takes some steps, then nothing, and cannot be closed."""

    def log(self, step, values):
        if step > 2:
            raise RuntimeError("no network\nat all")
        super().log(step, values)

    def close(self):
        raise ConnectionError("nor now")


def test_a_tracker_that_raises_costs_neither_the_run_nor_another_tracker(tmp_path, capsys):
    broken, recorder = Broken(), Recorder()
    append_rows(tmp_path / "metrics.jsonl", rows(1, 4))
    with Mirror(tmp_path, lambda: [broken, recorder], every=0.01):
        drive.wait_until(lambda: len(recorder.seen) == 4)
        append_rows(tmp_path / "metrics.jsonl", rows(5, 5))
    assert [step for step, _ in broken.seen] == [1, 2]
    assert [step for step, _ in recorder.seen] == [1, 2, 3, 4, 5] and recorder.closed
    assert capsys.readouterr().err.splitlines() == [
        "launch.trackers: Broken did not take all metrics (RuntimeError: no network at all); the "
        "run's own files have all.",
        "launch.trackers: Broken was not closed (ConnectionError: nor now); the run's own files "
        "have all.",
    ]


def test_a_run_whose_tracker_raises_has_its_result(tmp_path, monkeypatch, capsys):
    def broken(*about):
        raise RuntimeError("no such project")

    monkeypatch.setattr(worker, "make_tracker", broken)
    (only,) = identify(configurations("tests.launch.trivial", [{"number": 3}]))
    task = Task(only, str(tmp_path), ("wandb",))
    folder = tmp_path / "runs" / only.id / "process-0"  # A new run may have what logs there.
    folder.mkdir(parents=True)
    append_rows(folder / "metrics.jsonl", rows(1, 1))
    assert worker.main(["worker", *task.command()[3:]]) == 0
    assert drive.results(tmp_path)[only.id]["summary"]["square"] == 9.0
    assert "RuntimeError: no such project" in capsys.readouterr().err


def scalars_of(folder):
    """Tag -> steps, in tensorboardX's event files."""
    from tensorboardX.event_file_writer import EventsWriter  # noqa: F401
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            data = data[16 + length :]
    return found


def test_tensorboard_has_every_step_once_however_often_a_run_was_started(tmp_path):
    pytest.importorskip("tensorboardX")
    append_rows(tmp_path / "metrics.jsonl", rows(1, 3))
    with Mirror(tmp_path, lambda: [TensorBoard(tmp_path)]):
        pass
    append_rows(tmp_path / "metrics.jsonl", rows(4, 4))
    with Mirror(tmp_path, lambda: [TensorBoard(tmp_path)]):
        pass
    found = scalars_of(tmp_path / "tensorboard")
    assert found == {"loss": [(n, pytest.approx(1 / n)) for n in range(1, 5)]}


def test_wandb_and_trackio_are_spoken_to_as_they_document(tmp_path, monkeypatch):
    calls = []

    def recording(module, name, result=None):
        setattr(module, name, lambda *a, **k: calls.append((module.__name__, name, a, k)) or result)

    wandb, run, trackio = (types.ModuleType(name) for name in ("wandb", "run", "trackio"))
    recording(run, "log"), recording(run, "finish"), recording(wandb, "init", run)
    for name in ("init", "log", "finish"):
        recording(trackio, name)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    for name in ("wandb", "trackio"):
        tracker = trackers.make(name, "id", {"rate": 0.1}, tmp_path)
        tracker.log(3, {"loss": 0.5})
        tracker.close()
    about = {"project": "icl_jax", "name": "id", "config": {"rate": 0.1}, "resume": "allow"}
    assert calls == [
        ("wandb", "init", (), {**about, "id": "id", "dir": tmp_path}),
        ("run", "log", ({"loss": 0.5},), {"step": 3}),
        ("run", "finish", (), {}),
        ("trackio", "init", (), about),
        ("trackio", "log", ({"loss": 0.5},), {"step": 3}),
        ("trackio", "finish", (), {}),
    ]


def test_a_tracker_that_is_not_installed_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--track=tensorboard needs the package tensorboardX"):
        parse(sweep.Config, ["sweep", "--track=tensorboard"])
    with pytest.raises(UsageError, match="must be one of tensorboard, wandb, trackio"):
        parse(sweep.Config, ["sweep", "--track=tensorbord"])


@pytest.mark.slow
def test_a_real_training_is_tracked_observed_and_collected(tmp_path):
    pytest.importorskip("tensorboardX")
    base = {"learner.training.num_steps": 8, "learner.training.batch_size": 4}
    base |= {"quick": True, "num_prompts": 10, "learner.num_examples": 3}
    base |= {"learner.training.optimizer.warmup_steps": 2, "learner.training.steps_per_call": 2}
    (only,) = identify(configurations("experiments.training", base=base))
    task = Task(only, str(tmp_path / "s"), ("tensorboard",))
    assert "--track=tensorboard" in task.shell()
    subprocess.run(task.command(), check=True, cwd=drive.ROOT, capture_output=True)
    folder = tmp_path / "s" / "runs" / only.id
    (tags,) = [scalars_of(folder / "tensorboard")]
    (loss,) = [tag for tag in tags if tag.endswith("/loss")]
    assert [step for step, _ in tags[loss]] == list(range(1, 9))
    (ended,) = [e for e in drive.events(tmp_path / "s")[only.id] if e["event"] == "ended"]
    assert ended["step"] == 8 and ended["compilations"] > 3
    assert json.loads((tmp_path / "s" / "results" / f"{only.id}.json").read_text())["summary"]
