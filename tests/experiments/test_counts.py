"""No experiment takes a number of anything that it cannot run."""

import importlib

import pytest

from experiments import EXPERIMENTS
from experiments.tools.fields import items
from experiments.tools.flags import UsageError, parse


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


def test_no_experiment_searches_rates_that_are_no_grid():
    searching = [
        module
        for module in programs().values()
        if "num_rates" in [item.name for item in items(module.Config())]
    ]
    assert len(searching) >= 4
    for module in searching:
        with pytest.raises(UsageError, match="num_rates must be at least 3, got 2"):
            parse(module.Config, ["x", "--num_rates=2"])
        for lowest in (2.0, 1.0):
            wording = f"highest_rate=1.0 must be above lowest_rate={lowest}"
            with pytest.raises(UsageError, match=wording):
                parse(module.Config, ["x", f"--lowest_rate={lowest}", "--highest_rate=1.0"])
