"""Records of arrays: saved by field, and nothing is left out or made up when they are read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from experiments.tools.arrays import OneOf, flatten, rebuild, under


@dataclass(frozen=True)
class Inner:
    """Of one model."""

    losses: Mapping[str, np.ndarray]
    rate: np.ndarray


@dataclass(frozen=True)
class Outer:
    """Of all."""

    models: Mapping[str, Inner]
    scales: np.ndarray
    extra: np.ndarray | None
    more: Mapping[str, np.ndarray] | None


RECORD = Outer(
    {
        "trained": Inner({"zero": np.arange(3), "ridge": np.ones(2)}, np.array(0.5)),
        "untrained": Inner({"zero": np.zeros(1)}, np.array(0.25)),
    },
    np.linspace(0, 1, 4),
    None,
    {"a": np.ones(1)},
)
NAMES = {
    "models": ("trained", "untrained"),
    "models.*.losses": ("zero",),
    "models.trained.losses": ("zero", "ridge"),
    "extra": False,
    "more": ("a",),
}


def test_a_record_is_read_back_as_it_was():
    arrays = flatten(RECORD)
    assert set(arrays) == {
        *("models.trained.losses.zero", "models.trained.losses.ridge", "models.trained.rate"),
        *("models.untrained.losses.zero", "models.untrained.rate", "scales", "more.a"),
    }
    found = rebuild(Outer, arrays, NAMES)
    assert found.extra is None and set(found.more) == {"a"}
    assert found.models["trained"].losses["zero"].tolist() == [0, 1, 2]
    assert found.models["untrained"].rate == 0.25


@pytest.mark.parametrize("name", ["scales", "models.trained.rate"])
def test_a_field_without_its_array_is_an_error(name):
    arrays = {key: array for key, array in flatten(RECORD).items() if key != name}
    with pytest.raises(ValueError, match=f"nothing was saved for {re.escape(name)}"):
        rebuild(Outer, arrays, NAMES)


@pytest.mark.parametrize("name", ["sclaes", "models.trained.rates", "scales.x"])
def test_an_array_without_a_field_is_an_error(name):
    with pytest.raises(ValueError, match="rebuild: .*scales|rates|sclaes"):
        rebuild(Outer, {**flatten(RECORD), name: np.ones(1)}, NAMES)


def test_a_name_that_would_be_a_path_is_refused():
    with pytest.raises(ValueError, match="models has the key 'a.b'"):
        flatten(Outer({"a.b": RECORD.models["trained"]}, RECORD.scales, None, None))


@pytest.mark.parametrize(
    "name", ["models.trained.losses.ridge", "models.untrained", "models.untrained.losses", "more.a"]
)
def test_a_lost_name_of_a_mapping_is_an_error(name):
    arrays = {
        key: array
        for key, array in flatten(RECORD).items()
        if key != name and not key.startswith(f"{name}.")
    }
    assert len(arrays) < len(flatten(RECORD))
    with pytest.raises(ValueError, match=f"nothing was saved for {re.escape(name)}.*--workdir"):
        rebuild(Outer, arrays, NAMES)


def test_a_name_too_many_is_an_error():
    arrays = flatten(RECORD)
    arrays["models.trained.losses.shuffled"] = np.ones(2)
    said = "rebuild: models.trained.losses.shuffled is not asked for.*another version"
    with pytest.raises(ValueError, match=said):
        rebuild(Outer, arrays, NAMES)
    with pytest.raises(ValueError, match="more.a: more is not asked for"):
        rebuild(Outer, flatten(RECORD), {**NAMES, "more": ()})


def test_what_may_be_none_is_none_where_nothing_is_asked_of_it():
    arrays = {key: array for key, array in flatten(RECORD).items() if key != "more.a"}
    assert rebuild(Outer, arrays, {**NAMES, "more": ()}).more is None


@pytest.mark.parametrize("told, said", [
    (False, "extra is not asked for"),
    (None, "nobody says whether there is extra.*names="),
])  # fmt: skip
def test_what_may_be_none_is_there_where_it_is_asked_for_and_nowhere_else(told, said):
    record = Outer(RECORD.models, RECORD.scales, np.ones(3), RECORD.more)
    names = {path: it for path, it in NAMES.items() if path != "extra"}
    assert rebuild(Outer, flatten(record), {**names, "extra": True}).extra.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="nothing was saved for extra"):
        rebuild(Outer, flatten(RECORD), {**names, "extra": True})
    with pytest.raises(ValueError, match=said):
        rebuild(Outer, flatten(record), names if told is None else {**names, "extra": told})


def test_a_mapping_of_which_nobody_says_its_names_is_an_error():
    names = {path: told for path, told in NAMES.items() if path != "models.*.losses"}
    said = r"nobody says which names models\.\*\.losses has.*names="
    with pytest.raises(ValueError, match=said):
        rebuild(Outer, flatten(RECORD), names)


def test_names_may_be_those_of_one_of_some_choices():
    names = {**NAMES, "models.trained.losses": OneOf((("best",), ("zero", "ridge", "averaging")))}
    arrays = flatten(RECORD)
    with pytest.raises(ValueError, match="nothing was saved for models.trained.losses.averaging"):
        rebuild(Outer, arrays, names)
    arrays["models.trained.losses.averaging"] = np.ones(2)
    assert len(rebuild(Outer, arrays, names).models["trained"].losses) == 3


def test_names_of_a_part_are_those_of_the_whole_under_its_path():
    names = under("models.trained", {"losses": ("zero", "ridge")})
    assert names == {"models.trained.losses": ("zero", "ridge")}
