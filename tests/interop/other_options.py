"""A family with other options than those of its golden files."""

from icl_jax.interop.options import Options
from icl_jax.interop.registry import families
from tests.helpers import relative_error
from tests.interop.test_parity import batch_logits, golden, loaded


def variant(family, changes):
    """The tiny configuration of a family with other options; those set to ... are left out."""
    config = {**families()[family].tiny(), **changes}
    return {key: value for key, value in config.items() if value is not ...}


def check_another_model(config, family, option, value):
    """Asserts that an option of a golden configuration, set otherwise, changes the logits."""
    *outer, last = option.split(".")
    place = config
    for key in outer:
        place = place[key]
    assert last in place and place[last] != value
    place[last] = value
    model, given = families()[family].build(Options(config)), golden(family)
    got = batch_logits(model, loaded(family, "float32").params, given)
    mask = given["mask"]
    assert relative_error(got[mask], given["float32"][mask]) > 1e-3
