"""A dataclass becomes a command line that reads well and refuses what it cannot run."""

import importlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import benchmarks
from experiments import EXPERIMENTS
from experiments import __main__ as listing
from experiments.tools.flags import (
    UsageError,
    arguments,
    configured,
    describe,
    option,
    parse,
)
from icl_jax.training.config import TrainingConfig
from launch import collect, long_context, plan, scaling, sweep
from tests.experiments.launching import Config, Learner, outcome


def read(*flags):
    return parse(Config, ["experiments/descent.py", *flags])


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
    command = (
        "python -m experiments.descent --learner.widths=64,32 --rate=0.001 --workdir=runs/here"
    )
    doc = (
        "A question that is rather longer than a narrow window has room for in a line?\n\n"
        f"    {command}\n    python -m experiments.descent \\\n        --label='a  b'"
    )
    text = describe(Config, doc, "descent")
    # What is copied from a narrow window is the same command.
    joined = " ".join(text.replace("\\\n", " ").split())
    assert f"{command} python -m experiments.descent --label='a b' Usage:" in joined
    assert max(map(len, text.splitlines())) <= columns
    monkeypatch.setenv("COLUMNS", "100")
    wide = describe(Config, doc, "descent")
    assert sorted(text.replace("\\", "").split()) == sorted(wide.replace("\\", "").split())


@pytest.mark.parametrize("columns", [60, 80])
def test_every_experiments_help_fits_its_window(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for name, path in EXPERIMENTS.items():
        module = importlib.import_module(path)
        for line in describe(module.Config, module.__doc__, name).splitlines():
            assert len(line) <= columns, (name, line)


@pytest.mark.parametrize("columns", [60, 80])
def test_every_command_of_launch_fits_its_window(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in (sweep, plan, collect, scaling, long_context):
        assert command.main([command.__name__, "--help"]) == 0
        text = capsys.readouterr().out
        assert "Usage: python -m launch." in text
        assert max(map(len, text.splitlines())) <= columns
        assert str(Path(scaling.__file__).parent) not in text  # Nor is it another on each machine.


@pytest.mark.parametrize("columns", [60, 80])
def test_the_list_of_experiments_fits_its_window_without_broken_words(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    listing.main()
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= columns
    words = text.split()
    for name in EXPERIMENTS:
        assert name in words and set(listing.question(name).split()) <= set(words)


@dataclass(frozen=True)
class Listing:
    """Has a list that no narrow line has room for."""

    kinds: tuple[str, ...] = option(("unlikely",) * 8, "kinds of inputs")


@dataclass(frozen=True)
class ShortListing:
    """Has a list that stays on one line."""

    kinds: tuple[str, ...] = option(("a", "b"), "likely")


def test_a_list_longer_than_a_line_goes_on_behind_a_comma(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = describe(Listing, "", "x").splitlines()
    assert lines[-3:] == [
        "      kinds of inputs (default: unlikely, unlikely,",
        "      unlikely, unlikely, unlikely, unlikely, unlikely,",
        "      unlikely)",
    ]
    assert "likely (default: a,b)" in describe(ShortListing, "", "x")


#: Runs each benchmark named, as ``python -m`` would, in one process; the next has its own flags.
BENCHMARKS_HELP = """
import runpy, sys
from absl import flags
import benchmarks.harness
kept = set(flags.FLAGS)
for name in sys.argv[1:]:
    sys.argv = [f"{name}.py", "--help"]
    print(f"== {name}")
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    flags.FLAGS.remove_flag_values({n: flags.FLAGS[n] for n in set(flags.FLAGS) - kept})
"""


@pytest.mark.parametrize("columns", [60, 80])
def test_every_benchmarks_help_is_no_error_and_fits_its_window(columns):
    folder = Path(benchmarks.__file__).parent
    names = [f.stem for f in folder.glob("*.py") if "launch(benchmark)" in f.read_text()]
    done = subprocess.run(
        [sys.executable, "-c", BENCHMARKS_HELP, *names],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder.parent,
        env={**os.environ, "COLUMNS": str(columns)},
    )
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= columns
    texts = done.stdout.split("== ")[1:]
    assert len(texts) == len(names) >= 8
    for name, text in zip(names, texts, strict=True):
        assert f"Usage: python -m benchmarks.{name} [flags]" in text
        assert "--repeats=INT" in text and "logtostderr" not in text
        own = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', (folder / f"{name}.py").read_text())
        assert own and all(re.search(rf"^  --{flag}\b", text, re.MULTILINE) for flag in own)


def test_help_says_when_the_workdir_is_optional():
    assert "(required)" in describe(Config, "", "descent")
    assert "(optional)" in describe(Config, "", "descent", needs_workdir=False)


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
