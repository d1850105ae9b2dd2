"""A family with other options than those of its golden files."""

import jax
import jax.numpy as jnp

from icl_jax.blocks.functional import layer_params, layer_places
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


def regrouped(model, params, other):
    """The parameters of a model, stacked as those of another one with as many layers."""
    rows = {}
    for layer, (name, _) in enumerate(layer_places(other.blocks)):
        rows.setdefault(name, []).append(layer_params(model, params, layer))
    layers = {
        name: jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
        for name, found in rows.items()
    }
    before = {name for name, _ in layer_places(model.blocks)}
    return {name: leaf for name, leaf in params.items() if name not in before} | layers


def check_another_model(config, family, option, value):
    """Asserts that an option of a golden configuration, set otherwise, changes the logits."""
    *outer, last = option.split(".")
    place = config
    for key in outer:
        place = place[key]
    assert last in place and place[last] != value
    place[last] = value
    model, given, original = built(family, config), golden(family), loaded(family, "float32")
    got = batch_logits(model, regrouped(original.model, original.params, model), given)
    mask = given["mask"]
    assert relative_error(got[mask], given["float32"][mask]) > 1e-3
