"""Layers of this library are what they say; layers that are not are found out by name."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from icl_jax.blocks.attention import Attention
from icl_jax.blocks.check_layer import check_layer
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.recurrent import GatedRecurrent
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from tests.helpers import LAYERS


@pytest.mark.wide(4)
@pytest.mark.parametrize("name", LAYERS)
def test_the_librarys_layers_are_what_they_say(name):
    check_layer(LAYERS[name])


class Shift(ContextualLayer):
    """Reads the token before, present or not."""

    def __call__(self, stream_TD, *, positions_T=None, present_T=None):
        return jnp.concatenate([jnp.zeros_like(stream_TD[:1]), stream_TD[:-1]])


class Ahead(ContextualLayer):
    """Says that it is causal, and reads the mean of all that is there."""

    def __call__(self, stream_TD, *, positions_T=None, present_T=None):
        weight_T = jnp.ones(len(stream_TD)) if present_T is None else present_T.astype(float)
        mean_D = jnp.sum(weight_T[:, None] * stream_TD, axis=0) / jnp.sum(weight_T)
        return jnp.broadcast_to(mean_D[None], stream_TD.shape)


class HalfWeights(Attention):
    """Says that its weights add up to 1."""

    @property
    def normalised(self):
        return True

    def weigh(self, scores_AMT, sees_MT):
        return jnp.where(sees_MT[None], jnp.full_like(scores_AMT, 0.5), 0 * scores_AMT)


class ForgetsItsSink(SoftmaxAttention):
    """Says that its weights add up to 1 without the sink that it has."""

    @property
    def has_sink(self):
        return False


class ForgetsRoom(SoftmaxAttention):
    """Does not put what is new into its memory."""

    def extend(self, reads, memories, slots):
        return super().extend(reads, memories, slots)[0], memories


class ReadsPadding(GatedRecurrent):
    """Goes on from what pads a prompt."""

    def extend(self, reads, memories, slots):
        present = [dataclasses.replace(one, present_T=one.present_T | True) for one in slots]
        return super().extend(reads, memories, tuple(present))


class SilentShift(Shift):
    """The same, behind a kernel that begins with zeros."""

    @nn.compact
    def __call__(self, stream_TD, **places):
        scale_D = self.param("scale", nn.initializers.zeros, (stream_TD.shape[-1],))
        return super().__call__(stream_TD, **places) * scale_D[None]


@pytest.mark.parametrize(
    "layer, claim",
    (
        (Shift(), r"present_T \(absent"),
        (Ahead(), r"causal \(what comes later"),
        (HalfWeights(num_heads=2), r"normalised \(weights must add up to 1\)"),
        (ForgetsItsSink(num_heads=2, sinks=True), r"normalised \(weights must add up to 1\)"),
        (ForgetsRoom(num_heads=2), r"extend \(a sequence in two pieces\)"),
        (ReadsPadding(), r"extend \(padding behind a prompt"),
        (SilentShift(), r"present_T \(absent"),
    ),
)
def test_a_layer_that_is_not_what_it_says_is_found_out(layer, claim):
    with pytest.raises(ValueError, match=f"check_layer: {type(layer).__name__} .*{claim}"):
        check_layer(layer)


def test_a_layer_that_says_nothing_shows_nothing():
    layer = SilentShift()
    zeros = jax.tree.map(jnp.zeros_like, layer.init(jax.random.key(0), jnp.ones((2, 8)))["params"])
    with pytest.raises(ValueError, match="SilentShift gives zeros only"):
        check_layer(layer, params=zeros)
