"""A run's name is what it computes: a hash of everything that is configured."""

import subprocess
import sys
import time

import pytest

from experiments.tools.flags import UsageError, parse
from launch.combinators import grid
from launch.configuration import (
    Configuration,
    Run,
    configurations,
    experiment_module,
    identify,
    load_sweep,
    run_id,
    shard_of,
)
from tests.launch.trivial import Config


def the_id(experiment, **settings):
    (run,) = identify([Configuration(experiment, settings)])
    return run.id


def test_settings_resolve_as_the_command_line_does():
    configuration = Configuration(
        "experiments.descent",
        {
            "quick": True,
            "learner.training.learning_rate": 1e-3,
            "learner.stack.depth": 2,
            "explicit.trains": "mlp",
            "learner.watch": False,
        },
    )
    module = experiment_module("experiments.descent")
    assert configuration.arguments() == [
        "--quick=true",
        "--learner.training.learning_rate=0.001",
        "--learner.stack.depth=2",
        "--explicit.trains=mlp",
        "--learner.watch=false",
    ]
    assert configuration.resolve() == parse(module.Config, ["x", *configuration.arguments()]).config


def test_the_id_is_of_the_resolved_configuration_however_it_is_written():
    plain = the_id("tests.launch.trivial")
    assert plain.startswith("trivial-") and len(plain) == len("trivial-") + 16
    assert the_id("tests.launch.trivial", number=0, act="well") == plain
    assert the_id("tests.launch.trivial", seconds=0) == plain  # 0 and 0.0 of a float
    assert the_id("tests.launch.trivial", number=1) != plain


def test_the_id_does_not_depend_on_where_the_experiment_lives():
    assert run_id("experiments.descent", Config()) == run_id("elsewhere.descent", Config())
    assert run_id("experiments.descent", Config()) != run_id("experiments.depth", Config())


def test_the_id_is_the_same_in_another_process():
    code = (
        "from launch.configuration import Configuration, identify\n"
        "print(identify([Configuration('tests.launch.trivial', {'number': 7})])[0].id)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == the_id("tests.launch.trivial", number=7)


def test_a_configuration_that_is_listed_twice_runs_once():
    runs = identify(configurations("tests.launch.trivial", grid({"number": (1, 2, 1)})))
    assert [run.configuration.settings["number"] for run in runs] == [1, 2]


@pytest.mark.parametrize(
    ("experiment", "settings", "message"),
    [
        ("tests.launch.trivial", {"numer": 1}, "unknown flag --numer. Did you mean --number?"),
        ("tests.launch.trivial", {"number": 1.5}, "--number=1.5: must be an integer."),
        ("tests.launch.trivial", {"act": "wel"}, "--act=wel: must be one of .* Did you mean well?"),
        ("tests.launch.trivial", {"number": 13}, "--number=13: Config: number must not be 13."),
        ("tests.launch.trivial", {"quick": True}, "unknown flag --quick"),
        ("experiments.nothing", {}, "there is no experiment 'experiments.nothing'"),
        ("nowhere.at.all", {}, "there is no experiment 'nowhere.at.all'"),
        ("launch.layout", {}, "launch.layout is no experiment: it has no Config."),
    ],
)
def test_what_the_experiment_would_refuse_is_refused_before_anything_runs(
    experiment, settings, message
):
    with pytest.raises(UsageError, match=message):
        Configuration(experiment, settings).resolve()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.launch.trivial", "must be MODULE:FUNCTION"),
        ("tests.launch.nothing:f", "there is no module 'tests.launch.nothing'"),
        ("tests.launch.trivial:f", "has no function 'f'"),
        ("tests.launch.trivial:no_list", "must return launch.configuration.Configuration objects"),
        ("builtins:list", "returns no configurations"),
    ],
)
def test_a_sweep_that_is_none_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        load_sweep(name)


def test_shards_are_disjoint_and_together_everything():
    runs = [Run(str(i), Configuration("x")) for i in range(10)]
    shards = [shard_of(runs, f"{i}/3") for i in range(3)]
    assert sorted(run.id for shard in shards for run in shard) == sorted(run.id for run in runs)
    assert [len(shard) for shard in shards] == [4, 3, 3]
    assert shard_of(runs, None) == runs
    for wrong in ("3/3", "1", "a/b", "-1/3", "1/"):
        with pytest.raises(UsageError, match=f"--shard={wrong}: must be i/n"):
            shard_of(runs, wrong)


def test_ten_thousand_configurations_of_a_real_experiment_are_named_in_seconds():
    sweep = configurations("experiments.descent", grid({"learner.training.seed": range(10_000)}))
    identify(sweep[:1])
    start = time.process_time()
    runs = identify(sweep)
    assert len(runs) == 10_000
    assert time.process_time() - start < 30
