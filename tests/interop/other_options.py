"""A family with other options than those of its golden files."""

from icl_jax.interop.assemble import plan
from icl_jax.interop.huggingface import parameter_shapes
from icl_jax.interop.options import Options
from icl_jax.interop.registry import families
from icl_jax.interop.stacking import stacked_table
from tests.helpers import relative_error
from tests.interop.test_parity import batch_logits, golden, loaded


def variant(family, changes):
    """The tiny configuration of a family with other options; those set to ... are left out."""
    config = {**families()[family].tiny(), **changes}
    return {key: value for key, value in config.items() if value is not ...}


def built(family, config):
    """The model of a family's configuration."""
    return families()[family].build(Options(config))


def check_table(family, config):
    """Asserts that the table of a configuration names every parameter of its model once."""
    model = built(family, config)
    table = stacked_table(families()[family].table(model, Options(config)), model)
    names = [one.name for one in table]
    assert len(set(names)) == len(names)
    plan(family, table, parameter_shapes(model))  # ValueError where one lacks what the other has.


def check_another_model(config, family, option, value):
    """Asserts that an option of a golden configuration, set otherwise, changes the logits."""
    *outer, last = option.split(".")
    place = config
    for key in outer:
        place = place[key]
    assert last in place and place[last] != value
    place[last] = value
    model, given = built(family, config), golden(family)
    got = batch_logits(model, loaded(family, "float32").params, given)
    mask = given["mask"]
    assert relative_error(got[mask], given["float32"][mask]) > 1e-3
