"""Records of arrays: saved by field, and nothing is left out or made up when they are read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from experiments.tools.arrays import flatten, rebuild


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


def test_a_record_is_read_back_as_it_was():
    arrays = flatten(RECORD)
    assert set(arrays) == {
        *("models.trained.losses.zero", "models.trained.losses.ridge", "models.trained.rate"),
        *("models.untrained.losses.zero", "models.untrained.rate", "scales", "more.a"),
    }
    found = rebuild(Outer, arrays)
    assert found.extra is None and set(found.more) == {"a"}
    assert found.models["trained"].losses["zero"].tolist() == [0, 1, 2]
    assert found.models["untrained"].rate == 0.25


@pytest.mark.parametrize("name", ["scales", "models.trained.rate"])
def test_a_field_without_its_array_is_an_error(name):
    arrays = {key: array for key, array in flatten(RECORD).items() if key != name}
    with pytest.raises(ValueError, match=f"nothing was saved for {re.escape(name)}"):
        rebuild(Outer, arrays)


@pytest.mark.parametrize("name", ["sclaes", "models.trained.rates", "scales.x"])
def test_an_array_without_a_field_is_an_error(name):
    with pytest.raises(ValueError, match="rebuild: .*scales|rates|sclaes"):
        rebuild(Outer, {**flatten(RECORD), name: np.ones(1)})


def test_a_name_that_would_be_a_path_is_refused():
    with pytest.raises(ValueError, match="models has the key 'a.b'"):
        flatten(Outer({"a.b": RECORD.models["trained"]}, RECORD.scales, None, None))
