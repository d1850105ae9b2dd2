"""A dataclass becomes a command line that reads well and refuses what it cannot run."""

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax
import pytest

import experiments
import icl_jax
from experiments import EXPERIMENTS
from experiments.tools.fields import items
from experiments.tools.flags import (
    UsageError,
    arguments,
    configured,
    describe,
    launch,
    option,
    parse,
)
from icl_jax.records import WorkdirError, open_run
from icl_jax.training.config import TrainingConfig
from icl_jax.training.loop import TrainingDivergedError

Task = Literal["linear", "sparse"]


@dataclass(frozen=True)
class Learner:
    """A learner and its training."""

    task: Task = option("linear", "what the prompts teach")
    widths: tuple[int, ...] = option((128,), "hidden widths")
    causal: bool = option(True, "reads backwards only")
    clip: float | None = option(1.0, "largest norm")
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class Config:
    """What is compared.

    And a second paragraph.
    """

    num_prompts: int = option(100, "test prompts")
    rate: float = option(0.1, "of the descent")
    label: str = option("paper", "of the figure")
    learner: Learner = field(default_factory=Learner)

    def __post_init__(self):
        if self.num_prompts < 2:
            raise ValueError(f"Config: num_prompts must be at least 2, got {self.num_prompts}.")

    @classmethod
    def quick(cls):
        return cls(num_prompts=8, learner=Learner(training=TrainingConfig(num_steps=50)))


def read(*flags):
    return parse(Config, ["experiments/descent.py", *flags])


def outcome(capsys, *flags, run=lambda config, workdir: None, **options):
    """The exit code (None without one), and both outputs."""
    code = None
    try:
        launch(Config, run, "The question?", argv=["experiments/descent.py", *flags], **options)
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_without_flags_the_configuration_is_the_default():
    assert read("--workdir=x").config == Config()
    assert read("--workdir=x").workdir == Path("x")


def test_every_type_of_field_is_read():
    config = read(
        "--num_prompts=7",
        "--rate=1e-3",
        "--label=a b=c",
        "--learner.task=sparse",
        "--learner.widths=64,32",
        "--nolearner.causal",
        "--learner.clip=none",
        "--learner.training.num_steps",
        "300",
    ).config
    assert config == Config(
        num_prompts=7,
        rate=1e-3,
        label="a b=c",
        learner=Learner(
            task="sparse",
            widths=(64, 32),
            causal=False,
            clip=None,
            training=TrainingConfig(num_steps=300),
        ),
    )
    assert read("--learner.clip=0.5").config.learner.clip == 0.5
    assert read("--learner.causal=false").config.learner.causal is False
    assert read("--learner.causal").config.learner.causal is True


def test_quick_is_the_base_and_only_given_flags_override_it():
    assert read("--quick").config == Config.quick()
    config = read("--quick", "--learner.training.batch_size=4").config
    assert config.num_prompts == 8
    assert config.learner.training == TrainingConfig(num_steps=50, batch_size=4)
    # A value that happens to be the default still counts as given.
    assert read("--quick", "--num_prompts=100").config.num_prompts == 100
    assert read("--noquick").config == Config()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--wordir=x", "unknown flag --wordir. Did you mean --workdir?"),
        ("--num_steps=5", "unknown flag --num_steps. Did you mean --learner.training.num_steps?"),
        ("--learner.traning.seed=5", "Did you mean --learner.training.seed"),
        ("--zzzzzz=1", "unknown flag --zzzzzz. See --help."),
        ("--learner.task=sparce", "--learner.task=sparce: must be one of linear, sparse. Did you "),
        ("--num_prompts=1e3", "--num_prompts=1e3: must be an integer."),
        ("--rate=fast", "--rate=fast: must be a number."),
        ("--learner.widths=64,x", "--learner.widths=64,x: must be an integer."),
        ("--learner.clip=some", "--learner.clip=some: must be a number."),
        ("--learner.causal=maybe", "--learner.causal=maybe: must be one of true, false."),
        ("--num_prompts=1", "--num_prompts=1: Config: num_prompts must be at least 2, got 1."),
        (
            "--learner.training.optimizer.warmup_steps=9000",
            "--learner.training.optimizer.warmup_steps=9000: OptimizerConfig: warmup_steps=9000 "
            "must be below the number of steps, 5000. Warm up for fewer steps, or take more.",
        ),
        ("--num_prompts=-5", "--num_prompts=-5: must be from 0 to 10,000,000."),
        ("--num_prompts=1000000000", "--num_prompts=1000000000: must be from 0 to 10,000,000."),
        ("--learner.widths=64,-1", "--learner.widths=64,-1: must be from 0 to 10,000,000."),
        ("--learner.training.seed=99999999999999999999", "must be from 0 to 9,223,372,036,854,775"),
        ("--learner.training.num_steps=99999999999", "must be from 0 to 1,000,000,000."),
        ("prompts=3", "unexpected argument 'prompts=3'; flags are written --name=value."),
        ("--rate", "Missing value for flag --rate"),
    ],
)
def test_what_cannot_be_run_is_named_in_one_line_with_exit_code_2(capsys, flag, message):
    ran = []
    code, out, err = outcome(capsys, flag, run=lambda config, workdir: ran.append(1))
    assert code == 2
    assert out == ""
    assert err.startswith("descent: error: ") and err.count("\n") == 1
    assert message in err
    assert not ran


def test_of_several_flags_the_wrong_one_is_blamed():
    with pytest.raises(UsageError, match="^--learner.training.batch_size=0: TrainingConfig: batch"):
        read("--learner.training.seed=3", "--learner.training.batch_size=0", "--rate=2")


def test_quick_with_a_flag_that_does_not_fit_it_is_refused():
    flag = "--learner.training.optimizer.warmup_steps=60"
    assert read(flag).config.learner.training.optimizer.warmup_steps == 60
    with pytest.raises(UsageError, match="warmup_steps=60: .* below the number of steps, 50"):
        read("--quick", flag)


def test_the_workdir_is_required_unless_the_experiment_says_otherwise(capsys):
    code, _, err = outcome(capsys, "--quick")
    assert code == 2 and "--workdir=DIR is missing" in err and "--workdir=runs/descent" in err
    seen = []
    code, _, _ = outcome(
        capsys, run=lambda config, workdir: seen.append(workdir), needs_workdir=False
    )
    assert code is None and seen == [None]


def test_help_shows_the_question_and_every_flag_with_its_default(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = outcome(capsys, "--help")
    assert code == 0 and err == ""
    assert out.startswith("The question?\n")
    for line in [
        "Usage: python -m experiments.descent [flags]",
        "This experiment: What is compared",
        "learner: A learner and its training",
        "  --num_prompts=INT                         test prompts (default: 100; quick: 8)",
        "  --learner.task=NAME                       what the prompts teach (linear, sparse; "
        "default: linear)",
        "  --learner.widths=INT,...                  hidden widths (default: 128)",
        "  --[no]learner.causal                      reads backwards only (default: true)",
        "  --learner.clip=FLOAT|none                 largest norm (default: 1.0)",
    ]:
        assert line in out.splitlines()
    assert "--learner.training.num_steps=INT" in out
    assert "logtostderr" not in out  # One of absl's own.
    assert max(map(len, out.splitlines())) <= 100


@dataclass(frozen=True)
class Needy:
    """Cannot run without being told."""

    checkpoint: str = option("", "a folder, which is needed")
    labels: tuple[str, ...] = option((), "words")


def test_a_flag_that_must_be_given_shows_no_default():
    lines = describe(Needy, "", "x").splitlines()
    assert "  --checkpoint=TEXT                         a folder, which is needed" in lines
    assert "default" not in "".join(lines)


@pytest.mark.parametrize("columns", [60, 80])
def test_help_fits_its_window_without_broken_words(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    doc = "A question that is rather longer than a narrow window has room for in a line?\n\n    cmd"
    text = describe(Config, doc, "descent")
    flags = [line for line in text.splitlines() if line.startswith("  --")]
    rest = [line for line in text.splitlines() if line not in flags]
    assert max(map(len, rest)) <= columns
    monkeypatch.setenv("COLUMNS", "100")
    assert sorted(text.split()) == sorted(describe(Config, doc, "descent").split())


SHELL = "set -o pipefail; python() { '" + sys.executable + '\' "$@"; }; '


def shell(command):
    return subprocess.run(
        ["bash", "-c", SHELL + command],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )


#: What prints: a command, and its name in an error.
PRINTING = {
    "experiments.training --help": "training",
    "experiments": "experiments",
    "launch.sweep --help": "sweep",
    "launch.collect --help": "collect",
}


@pytest.mark.parametrize("printing", PRINTING)
def test_a_reader_that_has_seen_enough_is_no_error(printing):
    done = shell(f"python -m {printing} | head -1")
    assert done.stdout.count("\n") == 1 and done.stderr == ""
    done = shell(f"python -m {printing} | true")
    assert done.stderr == "" and done.returncode == 141


@pytest.mark.parametrize("printing", PRINTING)
def test_a_full_disk_is_told_in_one_line(printing):
    done = shell(f"python -m {printing} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == (
        f"{PRINTING[printing]}: error: standard output cannot be written: No space left on "
        "device.\n"
    )


def test_help_says_when_the_workdir_is_optional():
    assert "(required)" in describe(Config, "", "descent")
    assert "(optional)" in describe(Config, "", "descent", needs_workdir=False)


def test_run_gets_the_configuration_and_float64(capsys):
    seen = []

    def run(config, workdir):
        seen.append((config, workdir, jax.config.jax_enable_x64))

    jax.config.update("jax_enable_x64", False)
    try:
        code, _, err = outcome(capsys, "--workdir=x", "--rate=2", run=run)
    finally:
        jax.config.update("jax_enable_x64", True)
    assert (code, err) == (None, "")
    assert seen == [(Config(rate=2.0), Path("x"), True)]


def test_a_workdir_of_another_configuration_is_refused_in_one_line(capsys, tmp_path):
    def run(config, workdir):
        open_run(workdir, config, experiment="descent")

    where = f"--workdir={tmp_path}"
    assert outcome(capsys, where, run=run)[0] is None
    assert outcome(capsys, where, run=run)[0] is None
    code, _, err = outcome(capsys, where, "--quick", run=run)
    assert code == 2 and err.count("\n") == 1
    assert "num_prompts: 100 -> 8; learner.training.num_steps: 5000 -> 50" in err
    with pytest.raises(WorkdirError):
        run(Config.quick(), tmp_path)


def raising(error):
    def run(config, workdir):
        raise error

    return run


def test_how_a_run_ends_is_told_by_its_exit_code(capsys):
    diverged = TrainingDivergedError("training diverged at step 3.", step=3, checkpoint=None)
    faster = "--learner.training.learning_rate=0.01"
    code, _, err = outcome(capsys, "--workdir=x", faster, run=raising(diverged))
    assert code == 1
    assert err == (
        "descent: error: training diverged at step 3. This run had "
        "--learner.training.learning_rate=0.01.\n"
    )
    code, _, err = outcome(capsys, "--workdir=x", run=raising(UsageError("too late for that.")))
    assert (code, err) == (2, "descent: error: too late for that.\n")
    code, _, err = outcome(capsys, "--workdir=x", run=raising(KeyboardInterrupt()))
    assert code == 130 and "the same command goes on" in err


def test_too_little_memory_is_one_line(capsys):
    exhausted = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 8e12 bytes")
    for error in (exhausted, MemoryError("Unable to allocate 7 TiB")):
        code, _, err = outcome(capsys, "--workdir=x", run=raising(error))
        assert code == 1 and err.count("\n") == 1
        assert "not enough memory (" in err and "Ask for fewer or smaller prompts." in err
    with pytest.raises(jax.errors.JaxRuntimeError):
        outcome(capsys, "--workdir=x", run=raising(jax.errors.JaxRuntimeError("INTERNAL: bug")))


def programs():
    """The experiments that are run from the command line."""
    found = (importlib.import_module(module) for module in EXPERIMENTS.values())
    return {one.__name__: one for one in found if hasattr(one, "Config") and hasattr(one, "run")}


def test_no_experiment_takes_a_count_that_it_cannot_run():
    assert len(programs()) > 10
    for module in programs().values():
        for item in items(module.Config()):
            if item.hint is not int:
                continue
            for value in (-5, 10**20):
                with pytest.raises(UsageError, match=f"^--{item.name}={value}: must be from 0 to"):
                    parse(module.Config, ["x", f"--{item.name}={value}"])
            leaf = item.name.split(".")[-1]
            if leaf.startswith("num_") or leaf in ("vocab_size", "input_width", "depth"):
                with pytest.raises(UsageError, match=f"--{item.name}=0"):
                    parse(module.Config, ["x", f"--{item.name}=0"])
        if hasattr(module, "another_prompts") or hasattr(module, "bootstrap_mean"):
            with pytest.raises(UsageError, match="--num_prompts=1.*no other prompt for a null"):
                parse(module.Config, ["x", "--num_prompts=1"])


SLOW = """
import time
def wait(what):
    print(what, flush=True)
    time.sleep(60)
if {imports}: wait("imports")
from dataclasses import dataclass
from experiments.tools.flags import launch
@dataclass(frozen=True)
class Config:
    "Nothing."
launch(Config, lambda config, workdir: wait("runs"), "", needs_workdir=False)
"""


@pytest.mark.parametrize("imports", [True, False])
def test_ctrl_c_is_one_line_and_exit_code_130(tmp_path, imports):
    # A folder of experiments with one that tells how far it is.
    folder = tmp_path / "experiments"
    folder.mkdir()
    here = Path(experiments.__file__).parent
    shutil.copy(here / "__init__.py", folder / "__init__.py")
    shutil.copytree(here / "tools", folder / "tools")
    (folder / "slow.py").write_text(SLOW.format(imports=imports))
    path = os.pathsep.join([str(tmp_path), str(Path(icl_jax.__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.slow"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().strip() == ("imports" if imports else "runs")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.count("\n") == 1 and "interrupted" in errors and "the same command" in errors


@pytest.mark.parametrize("bug", [ZeroDivisionError, ValueError])
def test_a_bug_keeps_its_traceback(capsys, bug):
    with pytest.raises(bug):
        outcome(capsys, "--workdir=x", run=raising(bug()))


def test_asked_to_end_a_run_says_that_it_can_go_on_with_exit_code_42(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def run(config, workdir):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        raise AssertionError("The signal should have ended this.")

    code, _, err = outcome(capsys, "--workdir=x", run=run)
    assert code == 42
    assert err == "descent: error: asked to end (SIGTERM); the same command goes on from here.\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"quick": True},
        {"quick": True, "learner.training.batch_size": 4, "rate": 1e-3},
        {"learner.widths": (64, 32), "learner.clip": None, "learner.causal": False},
        {"num_prompts": 7, "learner.task": "sparse", "label": "a b=c"},
    ],
)
def test_settings_configure_as_the_command_line_that_they_make(settings):
    assert configured(Config, settings) == read(*arguments(settings)).config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 5}, "unknown flag --num_steps. Did you mean --learner.training.num_steps?"),
        ({"num_prompts": 1e3}, "--num_prompts=1000.0: must be an integer."),
        ({"num_prompts": 1}, "--num_prompts=1: Config: num_prompts must be at least 2, got 1."),
        ({"learner": Learner()}, "unknown flag --learner."),
    ],
)
def test_settings_are_refused_as_flags_are(settings, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        configured(Config, settings)


def test_the_workdir_may_be_a_bucket_s():
    assert os.fspath(read("--workdir=gs://bucket/a/b").workdir) == "gs://bucket/a/b"


@dataclass(frozen=True)
class Unflaggable:
    """Holds what no flag can."""

    table: dict[str, int] = field(default_factory=dict)


def test_a_field_that_cannot_be_a_flag_is_an_error_that_names_it():
    with pytest.raises(TypeError, match=r"^table: dict\[str, int\] cannot be a flag. Use int"):
        parse(Unflaggable, ["x"])


@dataclass(frozen=True)
class Plain:
    """No quick configuration."""

    seed: int = option(0, "of everything")


def test_without_a_quick_configuration_there_is_no_such_flag():
    assert parse(Plain, ["x", "--seed=4"]).config == Plain(seed=4)
    with pytest.raises(UsageError, match="unknown flag --quick"):
        parse(Plain, ["x", "--quick"])
    assert "--quick" not in describe(Plain, "", "x")
