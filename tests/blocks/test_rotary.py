"""Rotary rates against the formulas of their sources, by hand, and what a rotation leaves alone."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.rotary import SCALINGS, Rotary, Scaling, rates, rotate, tempered
from tests.helpers import assert_close, compiled, normal, relative_error, seeds

#: With base 10^4 and 8 features the plain rates are 1, 0.1, 0.01, 0.001; in 2000 pi positions they
#: turn 1000, 100, 10 and 1 times.
PLAIN = np.array([1.0, 0.1, 0.01, 0.001])
LENGTH = 2000 * math.pi


def scaled(kind, factor=4.0, **options):
    if kind == "longrope":
        options = {"short_factors": (factor,) * 4, **options}
    return rates(Rotary(1e4, scaling=Scaling(kind, factor, original_length=LENGTH, **options)), 8)


def turned(features_TAF, positions_T, rates_n, *, interleaved=False):
    """A rotation as a product of complex numbers."""
    num = len(rates_n)
    features_TAF = np.array(features_TAF)
    first, second = (slice(0, num), slice(num, 2 * num))
    if interleaved:
        first, second = (slice(0, 2 * num, 2), slice(1, 2 * num, 2))
    pairs = features_TAF[..., first] + 1j * features_TAF[..., second]
    pairs = pairs * np.exp(1j * np.asarray(positions_T)[:, None] * rates_n)[:, None, :]
    features_TAF[..., first], features_TAF[..., second] = pairs.real, pairs.imag
    return features_TAF


@st.composite
def rotaries(draw, kinds=(None, "linear", "llama3")):
    """Rotary embeddings of heads of 6 features; without yarn, which also changes lengths."""
    kind = draw(st.sampled_from(kinds))
    scaling = None
    if kind is not None:
        factor = draw(st.sampled_from((0.5, 2.0, 8.0)))
        scaling = Scaling(kind, factor, original_length=draw(st.sampled_from((4, 64, 8192))))
    features = draw(st.sampled_from((None, 2, 4, 6)))
    return Rotary(draw(st.sampled_from((10.0, 5e5))), features, scaling, draw(st.booleans()))


class TestRates:
    def test_plain_rates_are_powers_of_the_base(self):
        assert_close(rates(Rotary(), 8), PLAIN, 1)
        assert_close(rates(Rotary(16.0), 4), np.array([1.0, 0.25]), 1)
        assert_close(rates(Rotary(16.0), 2), np.array([1.0]), 1)

    def test_fewer_features_turn_like_a_narrower_head(self):
        np.testing.assert_array_equal(rates(Rotary(100.0, 4), 8), rates(Rotary(100.0), 4))

    def test_linear_divides_all(self):
        assert_close(scaled("linear"), PLAIN / 4, 1)
        # Half as far apart is twice as fast: factors below 1 are meant as they stand.
        assert_close(scaled("linear", 0.5), 2 * PLAIN, 1)

    def test_llama3_keeps_the_fast_divides_the_slow_and_blends_between(self):
        # Turns 1000, 100, 10, 1 between 5 and 25: 10 lies a quarter of the way up.
        got = scaled("llama3", low_freq_factor=5.0, high_freq_factor=25.0)
        blend = 0.25 * 0.01 + 0.75 * 0.01 / 4
        assert_close(got, np.array([1.0, 0.1, blend, 0.001 / 4]), 1)

    @given(
        st.sampled_from((100.0, 1e4, 5e5)),
        st.sampled_from((2.0, 8.0, 32.0)),
        st.sampled_from(((1.0, 4.0), (0.5, 64.0))),
        st.sampled_from((64, 512, 8192)),
    )
    def test_llama3_equals_the_wavelengths_of_its_source(self, base, factor, turns, length):
        low, high = turns
        want = []
        for i in range(16):
            rate = base ** (-2 * i / 32)
            wavelength = 2 * math.pi / rate
            if wavelength < length / high:
                want.append(rate)
            elif wavelength > length / low:
                want.append(rate / factor)
            else:
                smooth = (length / wavelength - low) / (high - low)
                want.append((1 - smooth) * rate / factor + smooth * rate)
        scaling = Scaling("llama3", factor, low, high, original_length=length)
        assert_close(rates(Rotary(base, scaling=scaling), 32), np.array(want), 4)

    def test_yarn_blends_by_the_index_of_the_rate(self):
        # 1000 / 10^i turns: 32 turns at i = 1.49, 2 turns at i = 2.70; rounded outwards, 1 and 3.
        got = scaled("yarn", beta_fast=32.0, beta_slow=2.0)
        blend = 0.5 * 0.01 + 0.5 * 0.01 / 4
        assert_close(got, np.array([1.0, 0.1, blend, 0.001 / 4]), 1)

    def test_yarn_may_blend_over_an_exact_range(self):
        first, last = math.log10(1000 / 32), math.log10(1000 / 2)
        ramp = np.array([0.0, 0.0, (2 - first) / (last - first), 1.0])
        got = scaled("yarn", beta_fast=32.0, beta_slow=2.0, truncate=False)
        assert_close(got, (1 - ramp) * PLAIN + ramp * PLAIN / 4, 4)

    def test_yarns_range_stays_within_the_head(self):
        # 10^5 turns would be rate -2, 10^-9 turns rate 12: 0 and, as in the source, features - 1.
        ramp = np.arange(4) / 3
        got = scaled("yarn", beta_fast=1e5, beta_slow=2.0)
        assert_close(got, (1 - ramp) * PLAIN + ramp * PLAIN / 4, 4)
        ramp = np.maximum(np.arange(4) - 1, 0) / 6
        got = scaled("yarn", beta_fast=32.0, beta_slow=1e-9)
        assert_close(got, (1 - ramp) * PLAIN + ramp * PLAIN / 4, 4)

    def test_yarn_without_a_range_is_a_step(self):
        got = scaled("yarn", beta_fast=32.0, beta_slow=32.0, truncate=False)
        assert_close(got, PLAIN / np.array([1.0, 1.0, 4.0, 4.0]), 1)

    def test_longrope_divides_each_rate_by_its_own_factor(self):
        factors = {"short_factors": (1.0, 2.0, 3.0, 4.0), "long_factors": (5.0, 6.0, 7.0, 8.0)}
        rotary = Rotary(1e4, scaling=Scaling("longrope", 4.0, **factors))
        assert_close(rates(rotary, 8), PLAIN / np.arange(1, 5), 1)
        assert_close(rates(rotary, 8, long=True), PLAIN / np.arange(5, 9), 1)

    @pytest.mark.parametrize("kind", SCALINGS)
    def test_a_factor_of_one_changes_no_rate(self, kind):
        assert_close(scaled(kind, 1.0), PLAIN, 4)

    @pytest.mark.parametrize("kind", SCALINGS)
    def test_scaled_rates_lie_between_the_plain_and_the_divided_ones(self, kind):
        got = scaled(kind)
        assert np.all(got <= PLAIN) and np.all(got >= PLAIN / 4) and np.any(got < PLAIN)


class TestRotation:
    positions_T = jnp.array([0, 1, 2, 7, 30])

    @given(rotaries(), seeds())
    def test_equals_a_product_of_complex_numbers(self, rotary, seed):
        features_TAF = normal(seed, 5, 2, 6)
        rates_n, interleaved = rates(rotary, 6), rotary.interleaved
        want_TAF = turned(features_TAF, self.positions_T, rates_n, interleaved=interleaved)
        # An angle of 30 radians has 30 times the error of one radian.
        assert_close(rotate(features_TAF, self.positions_T, rotary), want_TAF, 4, condition=30)

    @given(rotaries(), seeds())
    def test_keeps_lengths(self, rotary, seed):
        features_TAF = normal(seed, 5, 2, 6)
        got_TAF = rotate(features_TAF, self.positions_T, rotary)
        want_TA = jnp.linalg.norm(features_TAF, axis=-1)
        assert_close(jnp.linalg.norm(got_TAF, axis=-1), want_TA, 6)

    @given(rotaries(), seeds(), st.integers(1, 50))
    def test_products_depend_on_differences_of_positions_only(self, rotary, seed, shift):
        query_TAF, key_TAF = normal(seed, 5, 1, 6), normal(seed + 1, 5, 1, 6)

        def products(query_shift, key_shift):
            query = rotate(query_TAF, self.positions_T + query_shift, rotary)
            key = rotate(key_TAF, self.positions_T + key_shift, rotary)
            return np.asarray(jnp.einsum("taf,jaf->tj", query, key))

        want = products(0, 0)
        assert_close(products(shift, shift), want, 6, condition=300)
        assert relative_error(products(shift, 0), want) > 1e-6

    @given(rotaries(), seeds())
    def test_position_zero_is_the_identity(self, rotary, seed):
        features_TAF = normal(seed, 3, 2, 6)
        got_TAF = rotate(features_TAF, jnp.zeros(3, jnp.int32), rotary)
        np.testing.assert_array_equal(got_TAF, features_TAF)
        moved_TAF = rotate(features_TAF, jnp.ones(3, jnp.int32), rotary)
        assert relative_error(moved_TAF, features_TAF) > 1e-6

    def test_the_trailing_features_of_a_partial_rotation_stand_still(self):
        features_TAF = normal(0, 5, 2, 6)
        got_TAF = rotate(features_TAF, self.positions_T, Rotary(10.0, features=4))
        np.testing.assert_array_equal(got_TAF[..., 4:], features_TAF[..., 4:])
        want_TA4 = rotate(features_TAF[..., :4], self.positions_T, Rotary(10.0))
        np.testing.assert_array_equal(got_TAF[..., :4], want_TA4)

    @pytest.mark.parametrize(
        "factor, attention_factor, want",
        ((4.0, None, 0.1 * math.log(4.0) + 1), (0.5, None, 1.0), (4.0, 1.5, 1.5), (4.0, 1.0, 1.0)),
    )
    def test_yarn_sharpens_the_features_that_turn(self, factor, attention_factor, want):
        scaling = Scaling("yarn", factor, attention_factor=attention_factor)
        features_TAF = normal(0, 5, 2, 6)
        got_TAF = rotate(features_TAF, self.positions_T, Rotary(10.0, 4, scaling))
        lengths_TA = jnp.linalg.norm(features_TAF[..., :4], axis=-1)
        assert_close(jnp.linalg.norm(got_TAF[..., :4], axis=-1), want * lengths_TA, 6)
        np.testing.assert_array_equal(got_TAF[..., 4:], features_TAF[..., 4:])

    @pytest.mark.parametrize(
        "factor, attention_factor, want",
        ((4.0, None, math.sqrt(1 + math.log(4) / math.log(31))), (1.0, None, 1.0), (4.0, 1.5, 1.5)),
    )
    @pytest.mark.parametrize("last, long", ((30, False), (31, True)))
    def test_longrope_asks_how_long_the_sequence_is(
        self, factor, attention_factor, want, last, long
    ):
        scaling = Scaling(
            "longrope",
            factor,
            original_length=31,
            attention_factor=attention_factor,
            short_factors=(1.0, 2.0, 3.0),
            long_factors=(4.0, 5.0, 6.0),
        )
        rotary = Rotary(10.0, scaling=scaling)
        features_TAF, positions_T = normal(0, 3, 2, 6), jnp.array([0, 7, last])
        want_TAF = want * turned(features_TAF, positions_T, rates(rotary, 6, long=long))
        assert_close(rotate(features_TAF, positions_T, rotary), want_TAF, 4, condition=30)
        other_TAF = want * turned(features_TAF, positions_T, rates(rotary, 6, long=not long))
        assert relative_error(other_TAF, want_TAF) > 0.1

    @pytest.mark.parametrize("kind", ("linear", "llama3"))
    def test_other_scalings_have_no_sharpness(self, kind):
        features_TAF = normal(0, 2, 1, 6)
        rotary = Rotary(10.0, scaling=Scaling(kind, 4.0, attention_factor=2.0))
        got_TAF = rotate(features_TAF, jnp.zeros(2, jnp.int32), rotary)
        np.testing.assert_array_equal(got_TAF, features_TAF)

    def test_angles_of_low_precision_features_are_taken_in_float32(self):
        # In bfloat16 position 4097 is 4096, an angle of a whole radian less.
        features_TAF, positions_T = normal(0, 2, 1, 4, dtype="bfloat16"), jnp.array([4097, 12289])
        got_TAF = rotate(features_TAF, positions_T, Rotary(10.0))
        want_TAF = rotate(features_TAF.astype("float32"), positions_T, Rotary(10.0))
        np.testing.assert_array_equal(got_TAF, want_TAF.astype("bfloat16"))
        rounded_TAF = rotate(features_TAF, positions_T - 1, Rotary(10.0))
        assert relative_error(rounded_TAF, want_TAF) > 0.1

    def test_tempered_queries_grow_with_every_period(self):
        query_TAF, positions_T = normal(0, 4, 2, 6), jnp.array([0, 9, 10, 25])
        lengths_T = np.array([1.0, 1.0, 1 + 0.3 * math.log(2), 1 + 0.3 * math.log(3)])
        got_TAF = tempered(query_TAF, positions_T, 0.3, 10)
        assert_close(got_TAF, query_TAF * lengths_T[:, None, None], 2)

    def test_jit_is_eager(self):
        features_TAF = normal(0, 5, 2, 6)
        rotary = Rotary(10.0, 4, Scaling("yarn", 4.0))
        got_TAF = compiled(rotate, static_argnums=2)(features_TAF, self.positions_T, rotary)
        want_TAF = rotate(features_TAF, self.positions_T, rotary)
        assert_close(got_TAF, want_TAF, 4, condition=30)


class TestErrors:
    @pytest.mark.parametrize("features", (3, 10, 0, -2))
    def test_the_features_that_turn_are_even_and_fit_the_head(self, features):
        wording = rf"even number of at most 8 features \(the head width\), got {features}"
        with pytest.raises(ValueError, match=wording):
            rates(Rotary(features=features), 8)

    def test_a_head_of_odd_width_does_not_turn_as_a_whole(self):
        with pytest.raises(ValueError, match="even number of at most 5 features"):
            rotate(normal(0, 2, 1, 5), jnp.arange(2), Rotary())
        assert rotate(normal(0, 2, 1, 5), jnp.arange(2), Rotary(features=4)).shape == (2, 1, 5)

    def test_longrope_without_a_factor_for_each_rate_is_refused(self):
        for long in (False, True):
            scaling = Scaling("longrope", 4.0, short_factors=(1.0,), long_factors=(1.0,))
            wording = f"{'long' if long else 'short'}_factors must have one for each of the 4 rates"
            with pytest.raises(ValueError, match=f"longrope: {wording}, got 1"):
                rates(Rotary(scaling=scaling), 8, long=long)

    def test_an_unknown_scaling_is_refused(self):
        with pytest.raises(ValueError, match="Scaling: kind must be one of 'linear', .* 'ntk'"):
            Scaling("ntk", 2.0)

    @pytest.mark.parametrize("factor", (0.0, -2.0))
    def test_a_factor_that_is_not_positive_is_refused(self, factor):
        with pytest.raises(ValueError, match=f"Scaling: factor must be positive, got {factor}"):
            Scaling("linear", factor)


def test_longrope_sharpens_by_a_length_that_has_a_logarithm():
    given = {"short_factors": (1.0,), "long_factors": (2.0,), "original_length": 1}
    with pytest.raises(ValueError, match="original_length, which must be at least 2, got 1; or g"):
        Scaling("longrope", 4.0, **given)
    Scaling("longrope", 4.0, **given, attention_factor=1.1)
