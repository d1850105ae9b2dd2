"""Named activations: read, edited and replaced, in one run and while a text is written."""

import functools
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from icl_jax import checks
from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Gated
from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.huggingface import make_tiny
from icl_jax.language import observed
from icl_jax.language.generation import generate
from icl_jax.language.observed import observe, observed_generate
from icl_jax.language.prompt import full_logits, patched_logits, prompt_patches
from icl_jax.stack.block import Midpoint, apply_block
from icl_jax.stack.layers import stack_layers
from icl_jax.stack.run import forward, observed_forward
from tests.language.models import DECODERS, MODELS, params_of

TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)
SITES = ("residual", "mixed", "mlp_input", "hidden", "output")


@pytest.fixture(scope="module", params=("llama", pytest.param("gemma3", marks=pytest.mark.slow)))
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "model"
    checkpoint = make_tiny(request.param, folder, jax.random.key(0))
    return checkpoint.model, checkpoint.params


@pytest.fixture(scope="module")
def deep():
    """A model of six equal layers: one scan."""
    (block, _) = MODELS["rotary"].blocks
    model = LanguageModel((block,) * 6, vocab_size=48, width=16)
    return model, model.init(jax.random.key(1), jnp.asarray(TOKENS))["params"]


def unrolled(model, params, tokens_T):
    """All activations by name, layer after layer."""
    found = {}
    stream_TD = model.apply({"params": params}, tokens_T, method="embed")
    found["embedding"] = stream_TD
    layers = functional(model, params)
    for layer in range(len(layers)):
        block, tree = layers[layer]
        midpoint = block.contextual(tree, stream_TD)
        found[f"layers.{layer}.residual"] = stream_TD
        found[f"layers.{layer}.mixed"] = block.mixed(tree, stream_TD)
        found[f"layers.{layer}.mlp_input"] = midpoint.mlp_input_TD
        found[f"layers.{layer}.hidden"] = block.hidden(tree, midpoint.mlp_input_TD, None)
        stream_TD = apply_block(block, tree, midpoint)
        found[f"layers.{layer}.output"] = stream_TD
    found["final"] = model.apply({"params": params}, stream_TD, method="states")
    return found


def names(model):
    layered = [f"layers.{layer}.{site}" for layer in range(len(model.blocks)) for site in SITES]
    return ("embedding", *layered, "final")


def test_every_name_gives_what_an_unrolled_run_has_there(run):
    found = observe(*run, TOKENS, capture=names(run[0]))
    expected = unrolled(*run, jnp.asarray(TOKENS))
    assert list(found.activations) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found.activations[name], array, rtol=1e-4, atol=1e-4)


@pytest.mark.wide(3)
@pytest.mark.parametrize("name", [*DECODERS, "encoder"])
def test_blocks_of_every_wiring_are_open(name):
    model, params = MODELS[name], params_of(name)
    found = observe(model, params, TOKENS, capture=names(model))
    for one, array in unrolled(model, params, jnp.asarray(TOKENS)).items():
        np.testing.assert_allclose(found.activations[one], array, rtol=1e-4, atol=1e-4)


def test_the_logits_are_those_of_the_model(run):
    logits_TV = observe(*run, TOKENS, capture=("layers.0.hidden",)).logits_TV
    everything = full_logits(*run, TOKENS, np.arange(len(TOKENS)))
    np.testing.assert_allclose(logits_TV, everything, rtol=1e-5, atol=1e-6)


def test_a_star_stacks_all_layers_and_a_negative_number_counts_from_the_end(deep):
    capture = ("layers.*.residual", "layers.-1.output", "layers.2.residual")
    found = observe(*deep, TOKENS, capture=capture).activations
    assert found["layers.*.residual"].shape == (6, 8, 16)
    np.testing.assert_array_equal(found["layers.*.residual"][2], found["layers.2.residual"])
    last_TD = observe(*deep, TOKENS, capture=("layers.5.output",)).activations["layers.5.output"]
    np.testing.assert_array_equal(found["layers.-1.output"], last_TD)


def test_an_edit_by_what_was_captured_changes_nothing(run):
    capture = ("embedding", *(f"layers.1.{site}" for site in SITES), "final")
    plain = observe(*run, TOKENS, capture=capture)
    again = observe(*run, TOKENS, capture=capture, edit=plain.activations)
    chex.assert_trees_all_close(again, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("end", ("embedding", "final"))
def test_the_ends_can_be_replaced_too(deep, end):
    plain = observe(*deep, TOKENS)
    other = observe(*deep, TOKENS, edit={end: jnp.zeros_like})
    assert not np.allclose(other.logits_TV, plain.logits_TV, atol=1e-3)


@pytest.mark.wide(2)
@pytest.mark.parametrize("site", SITES)
def test_an_edit_changes_its_layer_and_what_follows_and_nothing_before(deep, site):
    capture = ("layers.*.residual", "layers.*.output")
    plain = observe(*deep, TOKENS, capture=capture).activations
    edited = observe(*deep, TOKENS, capture=capture, edit={f"layers.3.{site}": lambda x: 2 * x})
    changed = edited.activations["layers.*.output"] != plain["layers.*.output"]
    assert not np.any(changed[:3])
    assert all(np.any(changed[layer]) for layer in range(3, 6))


def test_what_is_captured_is_what_the_run_goes_on_with(deep):
    name = "layers.2.mlp_input"
    found = observe(*deep, TOKENS, capture=(name,), edit={name: jnp.zeros_like})
    assert not np.any(found.activations[name])


def test_edits_of_one_place_come_in_their_order(deep):
    edit = {"layers.2.output": lambda x: x + 1, "layers.-4.output": lambda x: 2 * x}
    plain = observe(*deep, TOKENS, capture=("layers.2.output",)).activations
    edited = observe(*deep, TOKENS, capture=("layers.2.output",), edit=edit).activations
    expected_TD = 2 * (plain["layers.2.output"] + 1)
    np.testing.assert_allclose(edited["layers.2.output"], expected_TD, rtol=1e-5)


def test_an_output_is_the_next_residual(deep):
    edit = {"layers.2.output": lambda x: x * 1.5}
    first = observe(*deep, TOKENS, edit=edit).logits_TV
    second = observe(*deep, TOKENS, edit={"layers.3.residual": lambda x: x * 1.5}).logits_TV
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_an_activation_moved_from_another_prompt_carries_its_answer(deep):
    other = TOKENS[::-1].copy()
    source = observe(*deep, other, capture=("layers.5.output",))
    moved = observe(*deep, TOKENS, edit={"layers.5.output": source.activations["layers.5.output"]})
    np.testing.assert_allclose(moved.logits_TV, source.logits_TV, rtol=1e-6)


def test_steering_has_the_gradient_of_finite_differences():
    model = MODELS["sandwich"]
    params = params_of("sandwich", "float64")

    def logit(v_D):
        edit = {"layers.1.residual": lambda x: x + v_D[None]}
        return observe(model, params, TOKENS, edit=edit).logits_TV[-1, 7]

    at_D = jax.random.normal(jax.random.key(2), (16,), jnp.float64)
    gradient_D = jax.grad(logit)(at_D)
    direction_D = jax.random.normal(jax.random.key(3), (16,), jnp.float64)
    step = 1e-5
    slope = (logit(at_D + step * direction_D) - logit(at_D - step * direction_D)) / (2 * step)
    np.testing.assert_allclose(jnp.dot(gradient_D, direction_D), slope, rtol=1e-6)
    assert np.any(gradient_D)


def test_gradients_reach_parameters_and_what_takes_an_activations_place(deep):
    model, params = deep

    def logit(params, values_TD):
        edit = {"layers.3.mlp_input": values_TD, "layers.*.hidden": jnp.tanh}
        return observe(model, params, TOKENS, edit=edit).logits_TV[-1, 3]

    by_params, by_values_TD = jax.grad(logit, (0, 1))(params, jnp.ones((8, 16), jnp.float32))
    assert np.any(by_values_TD[-1])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(by_params["layers_0_0"]["mlp"]))


def test_a_function_that_is_undefined_in_other_layers_spoils_no_gradient(deep):
    name = "layers.0.residual"
    embedded_TD = observe(*deep, TOKENS, capture=(name,)).activations[name]

    def logit(scale):  # Elsewhere the root of something negative.
        edit = {name: lambda x: scale * jnp.sqrt(0.5 - jnp.sum((x - embedded_TD) ** 2)) + x}
        return observe(*deep, TOKENS, edit=edit).logits_TV[-1, 0]

    assert np.isfinite(jax.grad(logit)(jnp.float32(0.1)))


def test_jit_and_vmap_agree_with_one_at_a_time(deep):
    model, params = deep
    prompts_BT = jnp.stack([TOKENS, TOKENS[::-1]])
    capture = ("layers.4.hidden", "layers.*.mixed", "final")
    look = functools.partial(observe, model, params, capture=capture)
    batched = jax.jit(jax.vmap(look))(prompts_BT)
    for number, tokens_T in enumerate(prompts_BT):
        alone = look(tokens_T)
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, n=number: leaf[n], batched), alone, rtol=1e-5, atol=1e-6
        )


def test_the_program_does_not_grow_with_depth():
    (block, _) = MODELS["rotary"].blocks
    sizes = []
    for depth in (4, 16):
        model = LanguageModel((block,) * depth, vocab_size=48, width=16)
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(TOKENS))["params"]
        capture = ("layers.3.mixed", "layers.*.residual")
        edit = {"layers.2.hidden": jnp.tanh}

        def look(params, model=model, capture=capture, edit=edit):
            return observe(model, params, TOKENS, capture=capture, edit=edit)

        sizes.append(str(jax.make_jaxpr(look)(params)).count(" = "))
    assert sizes[0] == sizes[1]


def test_another_layer_is_the_same_program(deep):
    before = observed._observe._cache_size()
    vector_1D = jnp.ones((1, 16), jnp.float32)
    for layer in range(6):
        name = f"layers.{layer}.residual"
        observe(*deep, TOKENS, capture=(name,), edit={name: Partial(jnp.add, layer * vector_1D)})
    assert observed._observe._cache_size() - before == 1


def test_a_patched_run_has_the_activations_of_the_full_one(run):
    kept = np.array([0, 6, 7])
    bank = prompt_patches(*run, TOKENS, kept)
    capture = ("layers.*.output", "final")
    full = observe(*run, TOKENS, capture=capture)
    patched = observe(*run, TOKENS, capture=capture, bank=bank)
    for name in capture:
        expected = full.activations[name][..., kept, :]
        np.testing.assert_allclose(patched.activations[name], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        patched.logits_TV, patched_logits(*run, TOKENS, bank), rtol=1e-5, atol=1e-6
    )


def test_a_stack_of_arrays_is_observed_too(deep):
    layers = functional(*deep)
    stream_TD = jax.random.normal(jax.random.key(4), (5, 16))
    output_TD, seen = observed_forward(
        layers, stream_TD, capture=("layers.0.residual", "layers.5.output")
    )
    np.testing.assert_array_equal(output_TD, forward(layers, stream_TD))
    np.testing.assert_array_equal(seen["layers.0.residual"], stream_TD)
    np.testing.assert_array_equal(seen["layers.5.output"], output_TD)


def test_writing_reads_what_one_run_over_the_whole_text_reads(run):
    capture = ("embedding", "layers.1.mixed", "layers.0.hidden", "layers.*.residual", "final")
    found = observed_generate(*run, TOKENS, 6, capture=capture)
    np.testing.assert_array_equal(found.tokens_N, generate(*run, TOKENS, 6))
    text = np.concatenate([TOKENS, found.tokens_N[:-1]])
    whole = observe(*run, text, capture=capture).activations
    for name in capture:
        np.testing.assert_allclose(found.activations[name], whole[name], rtol=1e-3, atol=1e-4)


def test_an_edit_is_made_in_the_prompt_and_at_every_new_token(run):
    model, params = run
    vector_D = 3 * jax.random.normal(jax.random.key(5), (model.width,), jnp.float32)
    edit = {"layers.1.residual": lambda x: x + vector_D[None], "layers.0.mlp_input": jnp.tanh}
    written_N = generate(model, params, TOKENS, 6, edit=edit)
    tokens = TOKENS
    for _ in range(6):
        logits_TV = observe(model, params, tokens, edit=edit).logits_TV
        tokens = np.append(tokens, np.int32(jnp.argmax(logits_TV[-1])))
    np.testing.assert_array_equal(written_N, tokens[len(TOKENS) :])
    assert not np.array_equal(written_N, generate(model, params, TOKENS, 6))


def test_prompts_of_several_lengths_are_written_and_read_side_by_side(run):
    prompts = [TOKENS, TOKENS[:3]]
    capture = ("layers.1.output",)
    edit = {"layers.0.output": 0.1 * np.ones(run[0].width, np.float32)}
    both = observed_generate(*run, prompts, 4, capture=capture, edit=edit)
    for prompt, found in zip(prompts, both, strict=True):
        alone = observed_generate(*run, prompt, 4, capture=capture, edit=edit)
        np.testing.assert_array_equal(found.tokens_N, alone.tokens_N)
        np.testing.assert_allclose(
            found.activations[capture[0]], alone.activations[capture[0]], rtol=1e-4, atol=1e-5
        )
        assert len(found.activations[capture[0]]) == len(prompt) + 3


@pytest.mark.parametrize(
    ("name", "text"),
    (
        ("layers.1.mlp_inptu", "Did you mean 'layers.1.mlp_input'"),
        ("layer.1.residual", "Did you mean 'layers.N.residual'"),
        ("embeddings", "Did you mean 'embedding'"),
        ("layers.9.residual", "layers run from 0 to 5"),
        ("blocks", "Names are embedding, final, layers.N.SITE"),
    ),
)
def test_a_name_that_is_none_is_an_error_with_the_nearest(deep, name, text):
    for options in ({"capture": (name,)}, {"edit": {name: jnp.tanh}}):
        with pytest.raises(ValueError, match="observe: ") as error:
            observe(*deep, TOKENS, **options)
        assert text in str(error.value)


def test_edits_that_cannot_be_are_refused(deep):
    def run(edit):
        return observe(*deep, TOKENS, edit={"layers.1.residual": edit})

    with pytest.raises(ValueError, match=r"edit of residual.*float32 \(8, 16\).*\(8, 1\)"):
        run(lambda x: x[:, :1])
    with pytest.raises(ValueError, match=r"float32 \(8, 16\), got float64"):
        run(lambda x: x.astype(jnp.float64))
    with pytest.raises(ValueError, match=r"must have that shape, or \(16,\)"):
        run(jnp.zeros(3))
    with pytest.raises(TypeError, match="must be a function of the values or an array"):
        run("zero")
    with pytest.raises(TypeError, match="capture must hold names"):
        observe(*deep, TOKENS, capture="final")
    with pytest.raises(ValueError, match="bank has position ids of its own"):
        bank = prompt_patches(*deep, TOKENS, [0, 7])
        observe(*deep, TOKENS, bank=bank, positions_T=np.arange(8))


def test_layers_of_different_widths_are_named_one_by_one():
    wide = Block(MODELS["rotary"].blocks[0].contextual_layer, Gated(hidden_width=8), norm="rms")
    model = LanguageModel((MODELS["rotary"].blocks[0], wide), vocab_size=48, width=16)
    params = model.init(jax.random.key(1), jnp.asarray(TOKENS))["params"]
    capture = ("layers.0.hidden", "layers.1.hidden")
    found = observe(model, params, TOKENS, capture=capture).activations
    assert [found[name].shape for name in capture] == [(8, 24), (8, 8)]
    with pytest.raises(ValueError, match="needs layers of one shape"):
        observe(model, params, TOKENS, capture=("layers.*.hidden",))


def test_a_block_in_one_piece_has_no_mixed():
    @dataclass(frozen=True)
    class Closed:
        patches_input = has_output_bias = True

        def contextual(self, params, stream_TD, *, positions_T=None, present_T=None):
            return Midpoint(stream_TD, params * stream_TD)

        def hidden(self, params, mlp_input_TD, factor):
            return mlp_input_TD

        def output(self, params, midpoint, hidden_TH, patch):
            return midpoint.residual_TD + hidden_TH

    layers = stack_layers([Closed()] * 3, [jnp.float32(number) for number in range(3)])
    stream_TD = jnp.ones((2, 4), jnp.float32)
    output_TD, seen = observed_forward(layers, stream_TD, capture=("layers.*.mlp_input",))
    np.testing.assert_array_equal(output_TD, 6 * stream_TD)
    np.testing.assert_array_equal(seen["layers.*.mlp_input"][:, 0, 0], [0, 1, 4])
    with pytest.raises(TypeError, match="Give it the methods mixed and join"):
        observed_forward(layers, stream_TD, capture=("layers.1.mixed",))


def test_the_error_of_a_nan_says_where_it_begins(deep):
    def broken(*capture):
        edit = {"layers.3.mlp_input": lambda values_TD: values_TD * jnp.nan}
        with pytest.raises(checks.NumericalError, match="observe: the logits") as caught:
            observe(*deep, TOKENS, capture=capture, edit=edit)
        return str(caught.value).rpartition("float16. ")[2]

    begins = "layers.*.residual from layer 4 on, layers.*.mlp_input from layer 3 on, final."
    found = broken("embedding", "layers.*.residual", "layers.*.mlp_input", "final")
    assert found == f"Of what was captured, not finite: {begins}"
    with pytest.raises(checks.NumericalError, match="observe: the logits"):

        def loss(v_TD):
            edit = {"layers.3.mlp_input": lambda values_TD: values_TD + v_TD * jnp.nan}
            seen = observe(*deep, TOKENS, capture=("final",), edit=edit)
            return jnp.sum(seen.logits_TV) + jnp.sum(seen.activations["final"])

        jax.grad(loss)(jnp.ones((8, 16), jnp.float32))
    assert broken("layers.2.output").startswith("All of what was captured is finite: layers.2")
    assert broken() == "capture=('layers.*.residual',) says in which layer it begins."
