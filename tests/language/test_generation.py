"""Text written without the context from patched weights is the text written with it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Gated
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.recurrent import GatedRecurrent, StateSpace
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.language import writing
from icl_jax.language.batch import pad_prompts
from icl_jax.language.generation import generate, patched_generate, token_agreement
from icl_jax.language.loop import CHUNK
from icl_jax.language.prompt import full_logits, patched_logits
from icl_jax.language.sampling import Sampling, draw_token
from tests.helpers import eps, equations, normal, random_params, relative_error
from tests.language.models import DECODERS, MODELS, VOCAB, params_of

TOKENS = np.random.default_rng(0).integers(0, VOCAB, 20).astype(np.int32)
KEPT = np.array([0, 15, 16, 17, 18, 19])
SAMPLED = Sampling(temperature=1.0, top_k=12, top_p=0.9)


@pytest.mark.wide(6)
@pytest.mark.parametrize("name", DECODERS)
def test_a_key_value_cache_changes_nothing(name):
    model, params = MODELS[name], params_of(name)
    written = generate(model, params, TOKENS, 6)
    everything = np.concatenate([TOKENS, written])
    logits = full_logits(model, params, everything, np.arange(19, 25))
    np.testing.assert_array_equal(written, np.argmax(logits, axis=-1))


def test_a_step_hands_on_the_new_rows_of_caches_alone():
    model, params = MODELS["rotary"], params_of("rotary")
    prompts = pad_prompts("test", model, TOKENS, KEPT)
    stop_S, keys_B = np.full(1, -1, np.int32), jax.random.split(jax.random.key(0), 1)
    given = (prompts, keys_B, stop_S)
    options = {"room": 8, "sampling": Sampling(), "output": "auto"}
    begin = functools.partial(writing.begin_patched, **options)
    step = functools.partial(writing.go_on_patched, sampling=Sampling(), output="auto")
    text = begin(model, params, *given)
    caches = {leaf.shape for run in text.runs for leaf in jax.tree.leaves(run.memories)}

    def from_loops(closed):
        """The caches that loops over layers write, without the axis of a batch of one."""
        loops = [one for one in equations(closed.jaxpr) if one.primitive.name == "scan"]
        shapes = {out.aval.shape for one in loops for out in one.outvars}
        return shapes & {(shape[0], *shape[2:]) for shape in caches}

    assert from_loops(jax.make_jaxpr(begin, static_argnums=0)(model, params, *given))
    assert not from_loops(jax.make_jaxpr(step, static_argnums=0)(model, params, text, 4, stop_S))


def begun(count):
    """Texts that patched weights write, begun, and what goes on with them."""
    tokens = [np.roll(TOKENS, shift)[: 20 - shift] for shift in range(count)]
    kept = [np.append(KEPT[:3], len(one) - 1) for one in tokens]
    model, params = MODELS["rotary"], params_of("rotary")
    prompts = pad_prompts("test", model, tokens, kept)
    stop_S, keys_B = np.full(1, -1, np.int32), jax.random.split(jax.random.key(0), count)
    options = {"sampling": Sampling(), "output": "auto"}
    text = writing.begin_patched(model, params, prompts, keys_B, stop_S, room=8, **options)
    return functools.partial(writing.go_on_patched, **options), (model, params, text, 4, stop_S)


@pytest.mark.parametrize("count", (1, 3))
def test_a_step_reads_every_kernel_once_for_both_runs_and_all_texts(count):
    step, given = begun(count)
    closed = jax.make_jaxpr(step, static_argnums=0)(*given)
    loops = [one for one in equations(closed.jaxpr) if one.primitive.name == "scan"]

    def products(jaxpr):
        """How often each shape of kernel stands in a product that no axis is shared with."""
        found = []
        for one in equations(jaxpr):
            if one.primitive.name == "dot_general" and one.params["dimension_numbers"][1] == (
                (),
                (),
            ):
                found.append(one.invars[1].aval.shape)
        return sorted(found)

    (layers,) = {str(products(loop.params["jaxpr"].jaxpr)) for loop in loops}
    #  Keys and values; the output and the queries; up and gate; down.
    assert layers == str(sorted([(16, 8)] * 2 + [(16, 16)] * 2 + [(16, 24)] * 2 + [(24, 16)]))
    outside = products(closed.jaxpr)
    assert sum(VOCAB in shape for shape in outside) == 1  # The head.


def test_a_step_takes_the_memory_of_the_text_before():
    step, given = begun(2)
    text = step(*given)
    before, after = (jax.tree.leaves(one.runs) for one in (given[2], text))
    assert before and all(leaf.is_deleted() for leaf in before)
    assert not any(leaf.is_deleted() for leaf in after)


def test_texts_whose_patches_do_not_exist_end_with_an_error():
    model, params = MODELS["rotary"], params_of("rotary")
    # A token of zeros has no MLP input: there is no patch for it, wherever it is.
    broken = {**params, "embedding": params["embedding"].at[TOKENS[0]].set(0)}
    with pytest.raises(ValueError, match="check_patchable: the MLP input of layer 0 at index"):
        patched_generate(model, broken, TOKENS, KEPT, 6)


@pytest.mark.wide(12)
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    "sampling",
    (Sampling(), SAMPLED),
    ids=("greedy", "sampled"),
)
def test_patched_generation_writes_the_same_tokens(name, sampling):
    model, params = MODELS[name], params_of(name)
    drawn = {"sampling": sampling, "key": jax.random.key(5)}
    expected = generate(model, params, TOKENS, 10, **drawn)
    patched = patched_generate(model, params, TOKENS, KEPT, 10, **drawn)
    assert token_agreement(expected, patched.tokens_N) == 1.0
    assert patched.relative_error_N.max() < eps("float32", 60, condition=20)
    assert np.all(patched.same_top1_N) and patched.kl_N.max() < 1e-6
    if sampling is SAMPLED:  # Greedy random models like to repeat one token, whatever they read.
        unpatched = generate(model, params, TOKENS[KEPT], 10, positions_T=KEPT, **drawn)
        assert token_agreement(expected, unpatched) < 1.0


def test_prompts_side_by_side_have_position_ids_of_their_own():
    model, params = MODELS["rotary"], params_of("rotary")
    ids = [np.array([0, 3, 4, 9, 30]), np.arange(7, 14)]
    prompts = [TOKENS[:5], TOKENS[2:9]]
    drawn = [
        generate(model, params, tokens, 6, positions_T=positions)
        for tokens, positions in zip(prompts, ids, strict=True)
    ]
    both = generate(model, params, prompts, 6, positions_T=ids)
    assert [one.tolist() for one in both] == [one.tolist() for one in drawn]
    with pytest.raises(ValueError, match="positions_T must be those of 2 prompts, .* got 1"):
        generate(model, params, prompts, 6, positions_T=ids[:1])
    with pytest.raises(ValueError, match="strictly increasing"):
        generate(model, params, prompts, 6, positions_T=[ids[0][::-1], ids[1]])


@pytest.mark.wide(3)
@pytest.mark.parametrize("name", ("rotary", "sandwich", "experts"))
def test_its_bank_patches_one_run_over_everything_written(name):
    model, params = MODELS[name], params_of(name)
    patched = patched_generate(model, params, TOKENS, KEPT, 8)
    everything = np.concatenate([TOKENS, patched.tokens_N[:-1]])
    assert patched.bank.kept_K.tolist() == [*KEPT, *range(20, 27)]
    want = full_logits(model, params, everything, patched.bank.kept_K)
    everything[1:15] = 0  # The context, gone.
    got = patched_logits(model, params, everything, patched.bank)
    assert relative_error(got, want) < eps("float32", 60, condition=20)


@pytest.mark.wide(2)
@pytest.mark.parametrize("name", ("rotary", "sandwich"))
def test_in_bfloat16_every_step_is_that_of_the_run_beside_it_to_the_bit(name):
    model, params = MODELS[name], params_of(name, "bfloat16")
    patched = patched_generate(model, params, TOKENS, KEPT, 8)
    np.testing.assert_array_equal(patched.relative_error_N, 0)


@pytest.mark.slow
def test_in_bfloat16_the_closed_loop_holds():
    model, params = MODELS["sandwich"], params_of("sandwich", "bfloat16")
    patched = patched_generate(model, params, TOKENS, KEPT, 20)
    assert patched.relative_error_N.max() < 3e-2
    assert patched.same_top1_N.mean() >= 0.95


def test_a_stop_token_stops():
    model, params = MODELS["rotary"], params_of("rotary")
    written = generate(model, params, TOKENS, 10)
    stop = {int(written[3])}
    first = int(np.flatnonzero(written == written[3])[0])
    short = generate(model, params, TOKENS, 10, stop=stop)
    np.testing.assert_array_equal(short, written[: first + 1])
    patched = patched_generate(model, params, TOKENS, KEPT, 10, stop=stop)
    np.testing.assert_array_equal(patched.tokens_N, short)


#: Nothing in it has keys and values but the last layer.
_LAYERS = (StateSpace(), GatedRecurrent(), GatedRecurrent(), SoftmaxAttention(num_heads=4))
MIXED = LanguageModel(
    tuple(Block(one, Gated(hidden_width=24, use_bias=False), norm="rms") for one in _LAYERS),
    vocab_size=VOCAB,
    width=16,
)


@pytest.mark.parametrize(
    "sampling",
    (Sampling(), pytest.param(SAMPLED, marks=pytest.mark.slow)),
    ids=("greedy", "sampled"),
)
def test_states_are_memories_too(sampling):
    params = random_params(MIXED, 3, jnp.zeros(2, jnp.int32))
    drawn = {"sampling": sampling, "key": jax.random.key(5)}
    written = generate(MIXED, params, TOKENS, 10, **drawn)
    if not sampling.temperature:
        everything = np.concatenate([TOKENS, written])
        logits = full_logits(MIXED, params, everything, np.arange(19, 29))
        np.testing.assert_array_equal(written, np.argmax(logits, axis=-1))
    patched = patched_generate(MIXED, params, TOKENS, KEPT, 10, **drawn)
    np.testing.assert_array_equal(patched.tokens_N, written)
    assert patched.relative_error_N.max() < eps("float32", 60, condition=20)


@pytest.mark.parametrize(
    "name, sampling",
    (pytest.param("learned_positions", Sampling(), marks=pytest.mark.slow), ("sandwich", SAMPLED)),
)
def test_many_prompts_write_what_each_writes_alone(name, sampling):
    model, params = MODELS[name], params_of(name)
    many, kept = [TOKENS[:18], TOKENS], [[3, 16, 17], [0, 9, 18, 19]]
    key = jax.random.key(5)
    texts = generate(model, params, many, 8, sampling=sampling, key=key)
    patched = patched_generate(model, params, many, kept, 8, sampling=sampling, key=key)
    for number, (tokens, positions) in enumerate(zip(many, kept, strict=True)):
        drawn = {"sampling": sampling, "key": jax.random.fold_in(key, number)}
        alone = generate(model, params, tokens, 8, **drawn)
        np.testing.assert_array_equal(texts[number], alone)
        np.testing.assert_array_equal(patched[number].tokens_N, alone)
        one = patched_generate(model, params, tokens, positions, 8, **drawn)
        np.testing.assert_array_equal(one.tokens_N, alone)
        length = len(tokens)
        want = [*positions, *range(length, length + 7)]
        assert patched[number].bank.kept_K.tolist() == one.bank.kept_K.tolist() == want
        assert patched[number].relative_error_N.max() < eps("float32", 60, condition=20)


def test_every_prompt_of_a_batch_stops_for_itself():
    model, params = MODELS["rotary"], params_of("rotary")
    many = [TOKENS[:18], TOKENS]
    texts = generate(model, params, many, 10)
    stop = {int(texts[0][2])}
    for full, short in zip(texts, generate(model, params, many, 10, stop=stop), strict=True):
        ends = [*np.flatnonzero(np.isin(full, list(stop))), len(full) - 1]
        np.testing.assert_array_equal(short, full[: ends[0] + 1])


def test_progress_is_told_of_every_token_and_changes_none():
    count = 2 * CHUNK + 8
    model, params = MODELS["rotary"], params_of("rotary")
    run = (model, params, TOKENS, count)
    drawn = {"sampling": Sampling(temperature=1.0), "key": jax.random.key(5)}
    written = generate(*run, **drawn)
    _, first = np.unique(written, return_index=True)
    # A token that comes up first inside the second chunk.
    end = int(next(place for place in np.sort(first) if CHUNK < place < 2 * CHUNK - 1))
    for stop, length in (((), count), ({int(written[end])}, end + 1)):
        told = []
        shown = generate(*run, stop=stop, progress=lambda told=told: told.append(1), **drawn)
        np.testing.assert_array_equal(shown, written[:length])
        assert len(told) == length


def test_agreement_counts_what_is_missing():
    assert token_agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 5])) == 0.5


def test_a_repetition_penalty_counts_the_whole_prompt_and_what_was_written():
    model, params = MODELS["rotary"], params_of("rotary")
    sampling = Sampling(repetition_penalty=1.3)
    written = generate(model, params, TOKENS, 6, sampling=sampling)
    assert written.tolist() != generate(model, params, TOKENS, 6).tolist()
    everything = list(TOKENS)
    for token in written:  # One run per token, and the rule by hand.
        logits_V = np.array(full_logits(model, params, everything, [len(everything) - 1])[0])
        for seen in set(everything):
            logits_V[seen] *= 1.3 if logits_V[seen] < 0 else 1 / 1.3
        assert token == np.argmax(logits_V)
        everything.append(token)
    patched = patched_generate(model, params, TOKENS, KEPT, 6, sampling=sampling)
    np.testing.assert_array_equal(patched.tokens_N, written)


def test_logits_that_are_no_numbers_end_a_text_with_an_error():
    model, params = MODELS["rotary"], params_of("rotary")
    gains = {key: leaf.at[0].set(jnp.nan) for key, leaf in params["norm_final"].items()}
    broken = {**params, "norm_final": gains}  # The last norm: no patch sees it.
    with pytest.raises(ValueError, match=r"generate: the logits of row \(0, 0\) .* not finite"):
        generate(model, broken, TOKENS, 6)
    with pytest.raises(ValueError, match="patched_generate: the logits of row .* not finite"):
        patched_generate(model, broken, TOKENS, KEPT, 6)


class TestSampling:
    logits_V = normal(1, 30)

    def draws(self, sampling, number=200):
        keys = jax.random.split(jax.random.key(0), number)
        return np.asarray(jax.vmap(lambda key: draw_token(key, self.logits_V, sampling))(keys))

    def test_greedy_takes_the_most_probable(self):
        assert set(self.draws(Sampling(), 3)) == {int(np.argmax(self.logits_V))}

    def test_top_k_and_top_p_leave_the_most_probable(self):
        order = np.argsort(-np.asarray(self.logits_V))
        assert set(self.draws(Sampling(5.0, top_k=3))) == set(order[:3].tolist())
        probabilities = np.asarray(jax.nn.softmax(self.logits_V / 5.0))[order]
        count = int(np.searchsorted(np.cumsum(probabilities), 0.3) + 1)
        assert set(self.draws(Sampling(5.0, top_p=0.3))) == set(order[:count].tolist())
        assert len(set(self.draws(Sampling(5.0)))) > 20

    def test_frequencies_are_probabilities(self):
        tokens = self.draws(Sampling(1.0), 20_000)
        frequencies = np.bincount(tokens, minlength=30) / len(tokens)
        probabilities = np.asarray(jax.nn.softmax(self.logits_V))
        assert np.abs(frequencies - probabilities).max() < 0.02

    def test_min_p_leaves_what_has_a_share_of_the_most_probable(self):
        probabilities = np.asarray(jax.nn.softmax(self.logits_V / 5.0))
        left = set(np.flatnonzero(probabilities >= 0.8 * probabilities.max()).tolist())
        assert 1 < len(left) < 20 and set(self.draws(Sampling(5.0, min_p=0.8))) == left

    def test_a_penalty_divides_what_is_positive_and_multiplies_what_is_negative(self):
        penalised = Sampling(repetition_penalty=2.0)
        logits_V, key = jnp.array([3.0, 2.0, -1.0]), jax.random.key(0)
        for seen, token in (([], 0), ([0], 1), ([0, 1], 0), ([2], 0)):
            seen_V = jnp.zeros(3, bool).at[jnp.array(seen, int)].set(True)
            assert int(draw_token(key, logits_V, penalised, seen_V)) == token
        all_seen_V = jnp.ones(2, bool)
        assert int(draw_token(key, jnp.array([-1.5, -1.0]), penalised, all_seen_V)) == 1
        with pytest.raises(ValueError, match="repetition_penalty needs seen_V"):
            draw_token(key, logits_V, penalised)

    def test_values_are_checked(self):
        with pytest.raises(ValueError, match=r"min_p must lie in \[0, 1\], got 2.0"):
            Sampling(1.0, min_p=2.0)
        with pytest.raises(ValueError, match="repetition_penalty must be a finite number above 0"):
            Sampling(repetition_penalty=0.0)
        with pytest.raises(ValueError, match="temperature"):
            Sampling(-1.0)
        with pytest.raises(ValueError, match="top_k"):
            Sampling(1.0, top_k=0)
        with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\], got 1.5"):
            Sampling(1.0, top_p=1.5)


class TestErrors:
    run = (MODELS["learned_positions"], params_of("learned_positions"), TOKENS)

    def test_what_cannot_generate(self):
        encoder = (MODELS["encoder"], params_of("encoder"), TOKENS)
        with pytest.raises(ValueError, match="an encoder has no head"):
            generate(*encoder, 3)
        headed = dataclasses.replace(MODELS["encoder"], head="tied")
        wording = "contextual layer of block 0, SoftmaxAttention, has no memory to go on from"
        with pytest.raises(ValueError, match=wording):
            generate(headed, *encoder[1:], 3)

    def test_arguments(self):
        with pytest.raises(ValueError, match="num_tokens must be an integer of at least 1"):
            generate(*self.run, 0)
        with pytest.raises(ValueError, match="65 tokens are needed, .* only 64 positions"):
            generate(*self.run, 45)
        with pytest.raises(ValueError, match="temperature needs key="):
            generate(*self.run, 3, sampling=SAMPLED)
        with pytest.raises(ValueError, match="kept_K must end with the prompt's last position, 19"):
            patched_generate(*self.run, [0, 5], 3)
        with pytest.raises(ValueError, match="positions_T"):
            generate(*self.run, 3, positions_T=jnp.arange(3))
