"""Every function that runs a stack refuses the same mistakes about places, in its own name."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.block import Block
from icl_jax.patches.extraction import patched_forward, stack_patches
from icl_jax.patches.static_patch import StaticPatch, static_forward
from icl_jax.stack.run import forward, observed_forward
from tests.helpers import LAYERS, MLPS, WIDTH, make_model, normal

MODEL = make_model(Block(LAYERS["attention_rotary"], MLPS["gated"], "pre_norm", "rms"), 2)
STREAM_TD = MODEL.embed(normal(0, 12, 3, dtype="float32"))
RUN, KEPT = (MODEL.layers, STREAM_TD), np.array([3, 8])
IDS, HERE = np.arange(12), np.arange(12) < 10


def patched(**places):
    """The patched run; what is said of the kept rows alone is said in the bank."""
    bank = stack_patches(*RUN, KEPT)
    said = {name: places.pop(name) for name in ("kept_K", "positions_K") if name in places}
    return patched_forward(*RUN, replace(bank, **said), **places)


def static(**places):
    nothing = StaticPatch(bias_D=jnp.zeros(WIDTH, jnp.float32))
    return static_forward(*RUN, MODEL.layers.params.rebuilt([nothing] * 2), **places)


#: By name: a function of position ids and of a mask.
PLACED = {
    "forward": lambda **places: forward(*RUN, **places),
    "observed_forward": lambda **places: observed_forward(*RUN, **places),
    "stack_patches": lambda **places: stack_patches(*RUN, KEPT, **places),
    "static_forward": static,
}
#: And one of a mask alone.
MASKED = {**PLACED, "patched_forward": patched}
#: By name: a function of kept positions.
KEEPING = {
    "stack_patches": lambda kept_K: stack_patches(*RUN, kept_K),
    "patched_forward": lambda kept_K: patched(kept_K=kept_K),
}


@pytest.mark.parametrize("name", PLACED)
def test_good_places_are_taken(name):
    plain = PLACED[name]()
    for same in ({"positions_T": IDS.astype(np.int8)}, {"present_T": np.ones(12, bool)}):
        jax.tree.map(np.testing.assert_array_equal, PLACED[name](**same), plain)
    # Ids may leave gaps, and those of padding are nobody's business.
    PLACED[name](positions_T=np.where(HERE, 2 * IDS, -1), present_T=HERE)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(
    "mask",
    (np.full(12, 2), np.ones(12), np.full(12, 2, np.uint8)),
    ids=lambda mask: str(mask.dtype),
)
def test_a_mask_of_numbers_is_refused(name, mask):
    message = f"^{name}: present_T must be a boolean mask, got dtype {mask.dtype}"
    with pytest.raises(TypeError, match=message):
        MASKED[name](present_T=mask)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("length", (1, 2, 11, 13))
def test_a_mask_of_another_length_is_refused(name, length):
    message = rf"^{name}: axis 0 of present_T must have 12 entries .* got {length}"
    with pytest.raises(ValueError, match=message):
        MASKED[name](present_T=np.ones(length, bool))


@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize("length", (1, 2, 11, 13))
def test_ids_of_another_number_are_refused(name, length):
    message = rf"^{name}: axis 0 of positions_T must have 12 entries .* got {length}"
    with pytest.raises(ValueError, match=message):
        PLACED[name](positions_T=np.arange(length))


@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize("present_T", (None, HERE), ids=("all", "padded"))
@pytest.mark.parametrize("ids", (IDS[::-1], 0 * IDS, IDS - 1), ids=("falling", "equal", "negative"))
def test_ids_that_do_not_increase_are_refused(name, ids, present_T):
    message = f"^{name}: positions_T must be non-negative and strictly increasing, got "
    with pytest.raises(ValueError, match=message):
        PLACED[name](positions_T=ids, present_T=present_T)


@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize("dtype", (np.uint8, np.uint32, np.float32))
def test_ids_whose_differences_wrap_or_round_are_refused(name, dtype):
    message = f"^{name}: positions_T must hold signed integers, got dtype {np.dtype(dtype)}"
    for ids in (IDS, IDS[::-1]):
        with pytest.raises(TypeError, match=message):
            PLACED[name](positions_T=ids.astype(dtype))


@pytest.mark.parametrize("name", KEEPING)
def test_unsigned_kept_positions_are_taken_in_order_only(name):
    want = KEEPING[name](KEPT)
    jax.tree.map(np.testing.assert_array_equal, KEEPING[name](KEPT.astype(np.uint8)), want)
    message = rf"^{name}: kept_K must be strictly increasing .* got \[8, 3\]"
    for dtype in (np.uint8, np.uint64, np.int32):
        with pytest.raises(ValueError, match=message):
            KEEPING[name](np.array([8, 3], dtype))


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    (
        (np.array([8, 3]), ValueError, "positions_K must be non-negative and strictly increasing"),
        (np.array([3, 8], np.uint8), TypeError, "positions_K must hold signed integers, got dtype"),
        (np.array([3]), ValueError, r"axis 0 of positions_K must have 2 entries .* got 1"),
    ),
    ids=("falling", "unsigned", "too_few"),
)
def test_ids_in_a_bank_that_cannot_be_are_refused(ids, error, message):
    with pytest.raises(error, match=f"^patched_forward: {message}"):
        patched(positions_K=ids)
