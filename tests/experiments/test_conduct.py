"""What a report says of itself: the command that makes it again, the code, the device."""

import dataclasses
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tools import conduct
from experiments.tools.flags import command, option, parse
from icl_jax.records import WorkdirError
from icl_jax.report.page import Section


@dataclass(frozen=True)
class Inner:
    """Nested."""

    words: tuple[str, ...] = option(("a",), "of it")


@dataclass(frozen=True)
class Config:
    """What is measured."""

    count: int = option(100, "of prompts")
    deep: bool = option(True, "or not")
    label: str = option("x", "of it")
    inner: Inner = field(default_factory=Inner)

    @classmethod
    def quick(cls):
        return cls(count=8, label="small")


@dataclass(frozen=True)
class Arrays:
    """One number."""

    value: np.ndarray


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        (Config(), ""),
        (Config.quick(), " --quick"),
        (dataclasses.replace(Config.quick(), deep=False), " --quick --deep=false"),
        (Config(label="two words"), " --label='two words'"),
        (Config(inner=Inner(("b", "c"))), " --inner.words=b,c"),
    ],
)
def test_the_command_is_the_shortest_that_gives_the_configuration(config, flags):
    line = command("descent", config, Path("runs/x"))
    assert line == f"python -m experiments.descent --workdir=runs/x{flags}"
    import shlex

    assert parse(Config, ["descent", *shlex.split(line)[3:]]).config == config


def report(folder, config, monkeypatch, commit):
    monkeypatch.setattr(conduct, "commit", lambda: commit)
    run = conduct.start(folder, "descent", config)
    conduct.measured(run, Arrays, lambda: Arrays(jnp.ones(3)))
    section = Section("A title", "Words.", verdict="Found: 1.")
    conduct.finish(run, "Title", "Doc.", conduct.Outcome({}, [section]))
    return (folder / "report.html").read_text()


def test_a_page_ends_with_its_command_configuration_device_and_commit(tmp_path, monkeypatch):
    page = report(tmp_path, Config.quick(), monkeypatch, "abc123")
    footer = page[page.index("<footer>") :]
    assert f"python -m experiments.descent --workdir={tmp_path} --quick" in footer
    assert "(with <code>--quick</code>;" in footer
    assert "Measured by commit abc123 on 8 x cpu (cpu)." in footer and "Report by" not in footer
    assert "<dt>--inner.words</dt><dd>a</dd>" in footer and "jax 0." in footer


def test_the_commit_of_the_measurement_stays_when_the_page_is_made_again(tmp_path, monkeypatch):
    report(tmp_path, Config(), monkeypatch, "old")
    page = report(tmp_path, Config(), monkeypatch, "new")
    assert "Measured by commit old on" in page and "Report by commit new on" in page
    assert "(without <code>--quick</code>;" in page
    assert [m["commit"] for m in json.loads((tmp_path / "measurement.json").read_text())] == ["old"]


def test_the_commit_is_that_of_this_repository_and_of_no_other(tmp_path, monkeypatch):
    def git(*arguments, at=tmp_path):
        subprocess.run(["git", *arguments], cwd=at, check=True, capture_output=True)

    git("init", "-q")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "--allow-empty", "-m", "m")
    inside = tmp_path / "vendored"
    inside.mkdir()
    monkeypatch.setattr(conduct, "CHECKOUT", inside)
    assert conduct.commit() == "unknown"
    # The root of a repository that does not hold this code is not its repository, either.
    monkeypatch.setattr(conduct, "CHECKOUT", tmp_path)
    assert conduct.commit() == "unknown"


@dataclass(frozen=True)
class Named:
    """Arrays by name."""

    losses: Mapping[str, np.ndarray]


def test_what_was_measured_under_other_names_is_neither_saved_nor_read(tmp_path):
    run = conduct.start(tmp_path, "descent", Config())
    zero = np.zeros(2)

    def measured(names, *made):
        record = Named(dict.fromkeys(made, zero))
        return conduct.measured(run, Named, lambda: record, names={"losses": names})

    with pytest.raises(ValueError, match="nothing was saved for losses.shuffled"):
        measured(("descent", "shuffled"), "descent")
    assert not run.has("arrays.npz")
    assert set(measured(("descent", "shuffled"), "descent", "shuffled").losses) == {
        "descent",
        "shuffled",
    }
    with pytest.raises(WorkdirError, match=r"arrays.npz: .*losses.shuffled is not asked for"):
        measured(("descent",))
