"""Prompts of many lengths in few shapes: what is added changes nothing, whatever it is."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Gated
from icl_jax.blocks.functional import functional
from icl_jax.blocks.rotary import Rotary, Scaling
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.compilations import count_compilations
from icl_jax.dynamics.prefixes import prefix_pass
from icl_jax.language import prompt
from icl_jax.language.attribution import attribute
from icl_jax.language.batch import (
    Prompts,
    bucket,
    cut_rows,
    is_batch,
    kept_bucket,
    over_prompts,
    pad_prompts,
    presence,
    repeat_last_row,
)
from icl_jax.language.generation import generate, patched_generate
from icl_jax.language.prefixes import prefix_logits
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.patches.normed import BalancedPatch
from tests.helpers import assert_trees_close, eps, kept_sets, normal, relative_error
from tests.language.models import MODELS, VOCAB, params_of

TOKENS = np.random.default_rng(0).integers(0, VOCAB, 24).astype(np.int32)
#: Prompts of three lengths, with three or four kept positions, and so of one bucket.
MANY = [TOKENS[:18], TOKENS, TOKENS[5:22]]
KEPT = [[3, 9, 17], [0, 22, 23, 12], [1, 15, 16]]
KEPT[1].sort()
#: Two models by default: one whose layers look ahead needs a mask for what pads it.
SEEN = [
    name if name in ("rotary", "encoder") else pytest.param(name, marks=pytest.mark.slow)
    for name in MODELS
]


class TestOverPrompts:
    @pytest.mark.parametrize("count", (1, 3))
    def test_it_is_vmap_whatever_the_axes(self, count):
        rows_BT, columns_TB = normal(1, count, 4), normal(2, 4, count)

        def one(row_T, column_T, rest):
            return row_T + column_T * rest["scale"], {"both": (row_T, column_T)}

        axes = {"in_axes": (0, 1, None), "out_axes": (1, 0)}
        given = (rows_BT, columns_TB, {"scale": jnp.float64(2)})
        got = over_prompts(one, count, **axes)(*given)
        chex.assert_trees_all_equal(got, jax.vmap(one, **axes)(*given))

    def test_a_batch_of_one_has_no_axis_inside(self):
        seen = []
        over_prompts(lambda row_T: seen.append(row_T.ndim), 1)(normal(1, 1, 4))
        assert seen == [1]


class TestBuckets:
    def test_they_are_powers_of_two_and_later_the_middles_between(self):
        assert [bucket(n) for n in (1, 16, 17, 64, 65, 128)] == [16, 16, 32, 64, 128, 128]
        assert [bucket(n) for n in (129, 192, 193, 256, 385)] == [192, 192, 256, 256, 512]
        assert [kept_bucket(n) for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 4, 8]

    @given(st.integers(1, 5000))
    def test_a_bucket_holds_what_it_is_for_and_at_most_twice_that(self, count):
        size = bucket(count)
        assert count <= size <= max(16, 2 * count) and bucket(size) == size
        assert count <= 128 or size <= 1.5 * count
        assert count <= kept_bucket(count) < 2 * count + (count == 1)

    def test_padding_stops_at_the_models_positions(self):
        assert bucket(24, 25) == 25 and bucket(24, 24) == 24 and bucket(24, 64) == 32
        model = MODELS["learned_positions"].clone(num_positions=25)
        padded = pad_prompts("test", model, TOKENS, [3, 9, 17])
        assert padded.tokens_BT.shape == (1, 25) and padded.kept_BK.tolist() == [[3, 9, 17, 17]]

    def test_there_is_something_to_pad(self):
        with pytest.raises(ValueError, match="bucket: count must be an integer of at least 1"):
            bucket(0)


class TestPadding:
    def test_one_prompt_is_a_batch_of_one(self):
        padded = pad_prompts("test", MODELS["rotary"], TOKENS[:18], [3, 9, 17])
        assert padded.tokens_BT.shape == (1, 32) and padded.tokens_BT.dtype == np.int32
        np.testing.assert_array_equal(padded.tokens_BT[0, :18], TOKENS[:18])
        assert set(padded.tokens_BT[0, 18:].tolist()) == {TOKENS[17]}
        assert padded.kept_BK.tolist() == [[3, 9, 17, 17]] and padded.num_kept_B.tolist() == [3]
        assert padded.length_B.tolist() == [18]

    def test_many_share_the_bucket_of_the_longest(self):
        prompts, kept = [*MANY[:2], TOKENS[5:9]], [*KEPT[:2], [3]]
        padded = pad_prompts("test", MODELS["rotary"], prompts, kept)
        assert padded.tokens_BT.shape == (3, 32) and padded.kept_BK.shape == (3, 4)
        assert padded.length_B.tolist() == [18, 24, 4]
        assert padded.num_kept_B.tolist() == [3, 4, 1]
        assert padded.kept_BK[2].tolist() == [3, 3, 3, 3]

    def test_what_is_a_batch(self):
        assert is_batch(MANY) and is_batch(np.stack([TOKENS, TOKENS])) and is_batch([[1], [2, 3]])
        assert not is_batch(TOKENS) and not is_batch([1, 2]) and not is_batch([])
        assert not is_batch(jnp.asarray(TOKENS))

    def test_only_who_looks_behind_needs_a_mask(self):
        assert presence(MODELS["rotary"], jnp.int32(2), 4) is None
        there = presence(MODELS["encoder"], jnp.int32(2), 4)
        np.testing.assert_array_equal(there, [True, True, False, False])

    def test_rows_are_repeated_and_cut_again(self):
        tree = {"a": jnp.arange(6).reshape(2, 3), "b": jnp.arange(12).reshape(2, 3, 2)}
        longer = repeat_last_row(tree, 5, axis=1)
        np.testing.assert_array_equal(longer["a"][:, 3:], tree["a"][:, [2, 2]])
        batch = jax.tree.map(lambda leaf: jnp.stack([leaf * 0, leaf]), longer)
        assert_trees_close(cut_rows(batch, 1, 3, axis=1), tree)


@pytest.mark.parametrize("name", SEEN)
def test_padding_changes_nothing(name):
    # The same prompt without any padding: its bucket is its length, and all rows are kept.
    model, params = MODELS[name], params_of(name)
    kept = np.array([3, 9, 17])
    logits_TV = model.apply({"params": params}, TOKENS[:18])
    got = full_logits(model, params, TOKENS[:18], kept)
    assert got.shape == (3, *logits_TV.shape[1:])
    assert relative_error(got, logits_TV[kept]) < eps("float32", 60)
    alone_KV = model.apply({"params": params}, TOKENS[kept], positions_T=jnp.asarray(kept))
    assert relative_error(alone_logits(model, params, TOKENS[:18], kept), alone_KV) < eps(
        "float32", 60
    )


@pytest.mark.parametrize("name", SEEN)
def test_what_the_padding_is_does_not_matter(name):
    model, params = MODELS[name], params_of(name)
    padded = pad_prompts("test", model, TOKENS[:18], [3, 9])
    got, _ = prompt._full(model, params, padded)
    spoilt_BT = padded.tokens_BT.copy()
    spoilt_BT[:, 18:] = (spoilt_BT[:, 18:] + 5) % VOCAB
    spoilt = Prompts(spoilt_BT, padded.length_B, padded.kept_BK, padded.num_kept_B)
    np.testing.assert_array_equal(prompt._full(model, params, spoilt)[0], got)


def whole(bank):
    """Patches to be compared: what a balanced one adds for the rounding counts with its gain."""

    def of(patch):
        if not isinstance(patch.output, BalancedPatch):
            return patch
        gain_D = patch.output.gain_ratio[..., None] + patch.output.gain_delta_D
        return dataclasses.replace(
            patch, output=dataclasses.replace(patch.output, gain_delta_D=gain_D)
        )

    return bank.patches.map(of)


@pytest.mark.wide(4)
@pytest.mark.parametrize("name", ("encoder", *(name for name in MODELS if name != "encoder")))
@pytest.mark.parametrize("loop", ("closed", "open"))
def test_many_prompts_are_what_each_is_alone(name, loop):
    model, params = MODELS[name], params_of(name, "float64")
    banks = prompt_patches(model, params, MANY, KEPT, loop=loop)
    full = full_logits(model, params, MANY, KEPT)
    alone = alone_logits(model, params, MANY, KEPT)
    patched = patched_logits(model, params, MANY, banks)
    bound = eps("float64", 60, condition=20)
    for number, (tokens, kept) in enumerate(zip(MANY, KEPT, strict=True)):
        bank = prompt_patches(model, params, tokens, kept, loop=loop)
        assert banks[number].kept_K.tolist() == banks[number].positions_K.tolist() == kept
        assert_trees_close(whole(banks[number]), whole(bank), 60, condition=1000)
        if name != "parallel":  # There the context does not change what the MLP reads: 0 / |z|.
            # What rounding leaves is noise, not a number to compare.
            got, wanted = (
                one.conditioning.map(lambda c: dataclasses.replace(c, residual=None))
                for one in (banks[number], bank)
            )
            assert_trees_close(got, wanted, 60, condition=1000)
        want = full_logits(model, params, tokens, kept)
        assert relative_error(full[number], want) < bound
        assert relative_error(patched[number], want) < bound
        assert relative_error(alone[number], alone_logits(model, params, tokens, kept)) < bound
        assert relative_error(alone[number], want) > 1e-3


@given(kept_sets(24), st.integers(2, 23), st.sampled_from(("sandwich", "rotary", "encoder")))
def test_neighbours_do_not_matter(kept, length, name):
    model, params = MODELS[name], params_of(name)
    first = list(kept)
    banks = prompt_patches(model, params, [TOKENS, TOKENS[:length]], [first, [length - 1]])
    other = (TOKENS[:length] + 1) % VOCAB
    others = prompt_patches(model, params, [TOKENS, other], [first, [length - 1]])
    for got, want in zip(jax.tree.leaves(others[0]), jax.tree.leaves(banks[0]), strict=True):
        np.testing.assert_array_equal(got, want)
    logits = patched_logits(model, params, [TOKENS, other], others)
    want = full_logits(model, params, TOKENS, first)
    assert relative_error(logits[0], want) < eps("float32", 60, condition=20)


def test_prompts_of_a_bucket_share_their_programs():
    model, params = MODELS["rotary"], params_of("rotary")
    for function in (prompt._patches, prompt._full, prompt._alone):
        function.clear_cache()
    chex.clear_trace_counter()
    for length in (17, 20, 24, 31):
        tokens, kept = np.resize(TOKENS, length), [0, 4, length - 1]
        bank = prompt_patches(model, params, tokens, kept)
        got = patched_logits(model, params, tokens, bank)
        want = full_logits(model, params, tokens, kept)
        assert relative_error(got, want) < eps("float32", 60, condition=20)
    for function in (prompt._patches, prompt._full, prompt._alone):
        assert function._cache_size() == 1


#: 64 prompts of as many lengths, and so of four buckets.
LENGTHS = range(4, 68)

#: By name: a call of one prompt or of many.
CALLS = {
    "prompt_patches": prompt_patches,
    "full_logits": full_logits,
    "alone_logits": alone_logits,
    "prefix_logits": prefix_logits,
    "patched_logits": lambda *run: patched_logits(*run[:3], prompt_patches(*run)),
    "attribute": attribute,
    "generate": lambda model, params, tokens, _: generate(model, params, tokens, 3),
    "patched_generate": lambda *run: patched_generate(*run, 3),
}


@pytest.mark.parametrize("name", CALLS)
def test_sixty_four_lengths_are_eight_programs_at_most(name):
    run = (MODELS["rotary"], params_of("rotary"))
    tokens = [np.resize(TOKENS, length) for length in LENGTHS]
    kept = [[0, 2, length - 1] for length in LENGTHS]
    jax.clear_caches()
    with count_compilations() as together:
        jax.block_until_ready(CALLS[name](*run, tokens, kept))
    assert 1 <= together.number <= 8, together.programs
    if name in ("patched_logits", "generate", "patched_generate"):
        return  # Several programs each.
    with count_compilations() as apart:
        for one, some in zip(tokens, kept, strict=True):
            jax.block_until_ready(CALLS[name](*run, one, some))
    assert apart.number <= 8, apart.programs


#: By name: how often a call reads from the device. Banks hold their kept positions there.
READS = {name: 1 for name in CALLS} | {"patched_logits": 3}


@pytest.mark.parametrize("count", (1, 3))
@pytest.mark.parametrize("name", CALLS)
def test_a_call_reads_back_once(name, count, monkeypatch):
    run = (MODELS["rotary"], params_of("rotary"), MANY[:count], KEPT[:count])
    jax.block_until_ready(CALLS[name](*run))
    get, kind, reads, inside = jax.device_get, type(jnp.zeros(1)), [], []
    value = kind._value

    def counted(tree):
        if any(isinstance(leaf, kind) for leaf in jax.tree.leaves(tree)):
            reads.append("device_get")
        inside.append(True)
        try:
            return get(tree)
        finally:
            inside.pop()

    def seen(array):
        if not inside and array.size:
            reads.append(f"{array.shape} by itself")
        return value.fget(array)

    monkeypatch.setattr(jax, "device_get", counted)
    monkeypatch.setattr(kind, "_value", property(seen))
    CALLS[name](*run)
    assert len(reads) == READS[name], reads


class TestErrors:
    model = MODELS["rotary"]

    def test_every_prompt_has_its_kept_positions(self):
        with pytest.raises(ValueError, match="test: kept must hold the kept positions of each of"):
            pad_prompts("test", self.model, MANY, KEPT[:2])

    def test_each_prompt_is_checked(self):
        with pytest.raises(ValueError, match="test: tokens_T must lie in"):
            pad_prompts("test", self.model, [TOKENS, TOKENS + VOCAB], [[1], [1]])
        with pytest.raises(ValueError, match="test: kept position 24 is outside the sequence"):
            pad_prompts("test", self.model, [TOKENS, TOKENS], [[1], [24]])
        with pytest.raises(ValueError, match="test: the removed set is empty"):
            pad_prompts("test", self.model, TOKENS[:2], [0, 1])
        everything = pad_prompts("test", self.model, TOKENS[:2], [0, 1], some_removed=False)
        assert everything.num_kept_B.tolist() == [2]

    def test_there_is_room_for_what_is_to_come(self):
        model = MODELS["learned_positions"]
        pad_prompts("test", model, TOKENS, [1], extra=40)
        with pytest.raises(ValueError, match="65 tokens are needed, .* only 64 positions"):
            pad_prompts("test", model, TOKENS, [1], extra=41)

    def test_no_prompts_are_refused(self):
        with pytest.raises(ValueError, match="test: tokens_T is empty"):
            pad_prompts("test", self.model, [], [])


def longrope(original_length):
    """The model with other rates for sequences of more than ``original_length`` tokens."""
    scaling = Scaling(
        "longrope",
        4.0,
        original_length=original_length,
        attention_factor=1.1,
        short_factors=(1.0, 1.2),
        long_factors=(2.0, 5.0),
    )
    attention = SoftmaxAttention(num_heads=4, num_kv_heads=2, rotary=Rotary(100.0, scaling=scaling))
    mlp = Gated(hidden_width=24, activation="silu", use_bias=False)
    blocks = tuple(Block(attention.clone(), mlp.clone(), norm="rms") for _ in range(2))
    return MODELS["rotary"].clone(blocks=blocks)


@pytest.mark.slow
def test_padding_does_not_make_a_prompt_long_for_longrope():
    # 18 tokens are padded to 32, and behind 20 of them the positions turn by other rates.
    params, kept, bound = params_of("rotary"), np.array([3, 9, 17]), eps("float32", 60, condition=9)
    run = (longrope(20), params, TOKENS[:18])
    short_TV, long_TV = (
        longrope(length).apply({"params": params}, TOKENS[:18]) for length in (99, 2)
    )
    assert relative_error(long_TV[kept], short_TV[kept]) > 1e-2
    assert relative_error(full_logits(*run, kept), short_TV[kept]) < bound
    assert relative_error(patched_logits(*run, prompt_patches(*run, kept)), short_TV[kept]) < bound
    beside = full_logits(*run[:2], [TOKENS[:18], TOKENS], [kept, [22, 23]])
    assert relative_error(beside[0], short_TV[kept]) < bound
    written = patched_generate(*run, kept, 1)
    best = int(jnp.argmax(short_TV[-1]))
    assert int(generate(*run, 1)[0]) == int(written.tokens_N[0]) == best
    assert written.relative_error_N[0] < bound
    shares, want = (attribute(one, *run[1:], kept).shares_LAT for one in (run[0], longrope(99)))
    assert relative_error(shares, want) < 1e-4


def test_a_prefix_that_longrope_turns_otherwise_shares_no_pass():
    layers = functional(longrope(20), params_of("rotary"))
    stream_TD = longrope(20).apply({"params": params_of("rotary")}, TOKENS, method="embed")
    prefix_pass(layers, stream_TD[:19], stream_TD[19])
    with pytest.raises(NotImplementedError, match="prefixes of 21 tokens.*longrope.*by itself"):
        prefix_pass(layers, stream_TD[:20], stream_TD[20])
