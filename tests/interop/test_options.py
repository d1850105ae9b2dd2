"""config.json: every option is understood, or refused by name."""

import pytest

from icl_jax.interop.json_files import read_json
from icl_jax.interop.options import Options


def test_the_first_name_that_is_there_and_not_null_counts():
    options = Options({"dtype": None, "torch_dtype": "float16", "n_embd": 9, "hidden_size": 9})
    assert options.text("dtype", "torch_dtype") == "float16"
    assert options.integer("hidden_size", "n_embd") == 9
    assert options.integer("n_layer", default=3) == 3
    assert options.either("nothing", default=None) is None
    assert options.has("nothing", "n_embd") and not options.has("dtype")


def test_two_names_of_one_option_must_say_the_same():
    options = Options({"n_embd": 8, "hidden_size": 9})
    with pytest.raises(ValueError, match="hidden_size = 9 and n_embd = 8 are two names of one"):
        options.integer("hidden_size", "n_embd")


def test_types_are_converted_only_where_nothing_is_lost():
    options = Options(
        {"width": 8.0, "theta": 10000, "tied": False, "list": [1, 2], "inner": {"a": 1}}
    )
    assert (options.integer("width"), type(options.integer("width"))) == (8, int)
    assert (options.number("theta"), type(options.number("theta"))) == (10000.0, float)
    assert options.boolean("tied") is False
    assert options.sequence("list") == (1, 2)
    assert options.mapping("inner").integer("a") == 1
    assert options.optional_integer("width") == 8 and options.optional_number("none") is None


def test_an_option_that_is_null_is_not_the_same_as_one_that_is_not_there():
    options = Options({"window": None})
    assert options.optional_integer("window", missing=4096) is None
    assert options.optional_integer("sliding_window", missing=4096) == 4096
    assert options.optional_integer("sliding_window") is None


@pytest.mark.parametrize(
    "getter, value, expected",
    (
        ("integer", True, "a whole number of 32 bits, got true"),
        ("integer", 1.5, "a whole number of 32 bits, got 1.5"),
        ("integer", "8", 'a whole number of 32 bits, got "8"'),
        ("integer", 10**12, "a whole number of 32 bits, got 1000000000000"),
        ("integer", 1e300, "a whole number of 32 bits, got 1e[+]300"),
        ("count", 0, "at least 1, got 0"),
        ("layers", -1, "at least 1, got -1"),
        ("number", 10**400, "a finite number, got 10+[.][.][.]"),
        ("number", "1", 'a finite number, got "1"'),
        ("number", float("inf"), "a finite number, got Infinity"),
        ("number", False, "a finite number, got false"),
        ("boolean", 1, "true or false, got 1"),
        ("text", 1, "a text, got 1"),
        ("sequence", "ab", 'a list, got "ab"'),
        ("mapping", [1], r"an object, got \[1\]"),
    ),
)
def test_a_value_of_another_type_is_named(getter, value, expected):
    with pytest.raises(ValueError, match=f"config.json: key must be {expected}."):
        getattr(Options({"key": value}), getter)("key")


def test_a_missing_option_is_named_with_all_its_names():
    with pytest.raises(ValueError, match="x/config.json: hidden_size or n_embd is missing"):
        Options({}, "x/config.json").integer("hidden_size", "n_embd")
    with pytest.raises(ValueError, match="config.json: inner: a is missing"):
        Options({"inner": {}}).mapping("inner").integer("a")


def test_require_names_the_key_the_value_and_what_is_supported():
    options = Options({"act": "swish2", "null": None, "flag": True, "good": "gelu"})
    assert options.require("good", ("gelu", "relu")) == "gelu"
    assert options.require("absent", ("gelu",), "gelu") == "gelu"
    assert options.require("null", (None, "a")) is None
    assert options.require("absent", (None, 1.0), None) is None
    with pytest.raises(ValueError, match='act = "swish2" is not supported; supported: "gelu", "r'):
        options.require("act", ("gelu", "relu"))
    with pytest.raises(ValueError, match="flag = true is not supported; supported: 1"):
        options.require("flag", (1,))
    with pytest.raises(ValueError, match="missing is missing"):
        options.require("missing", (1,))


OLD = {"rope_theta": 5e5, "max_position_embeddings": 64}
SCALED = {"factor": 8.0, "original_max_position_embeddings": 16}


YARN = {"rope_type": "yarn", "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("config", "expected"),
    (
        # The older object wins over the newer one, as in transformers.
        (
            {
                "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0},
                "rope_parameters": {"rope_type": "yarn", "factor": 3.0, "rope_theta": 9.0},
            },
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0},
        ),
        # A factor of null is how much longer texts are than those of the training.
        (
            {"max_position_embeddings": 64, "rope_scaling": {**YARN, "factor": None}},
            {**YARN, "factor": 4.0},
        ),
        # An original length beside the object counts more than the one inside.
        (
            {
                "max_position_embeddings": 64,
                "original_max_position_embeddings": 32,
                "rope_scaling": {**YARN, "factor": 2.0},
            },
            {**YARN, "factor": 2.0, "original_max_position_embeddings": 32},
        ),
    ),
)
def test_of_rotary_options_that_disagree_those_count_that_transformers_takes(config, expected):
    assert Options(config).rope().config == expected


@pytest.mark.parametrize(
    "config, expected",
    (
        ({}, {"rope_type": "default"}),
        (OLD, {"rope_type": "default", "rope_theta": 5e5}),
        (
            {**OLD, "rope_scaling": {"type": "yarn", **SCALED}},
            {"rope_type": "yarn", "rope_theta": 5e5, **SCALED},
        ),
        ({**OLD, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 5e5}),
        # Without an original length, the model's.
        (
            {**OLD, "rope_scaling": {"type": "yarn", "factor": 8.0}},
            {
                "rope_type": "yarn",
                "rope_theta": 5e5,
                "factor": 8.0,
                "original_max_position_embeddings": 64,
            },
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 7.0, **SCALED}},
            {"rope_type": "llama3", "rope_theta": 7.0, **SCALED},
        ),
        # The newer object wins over what stands beside it.
        (
            {**OLD, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
            {"rope_type": "default", "rope_theta": 7.0},
        ),
        (
            {"rotary_emb_base": 100, "rotary_pct": 0.25},
            {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25},
        ),
    ),
)
def test_rotary_options_of_every_age_come_under_their_newest_names(config, expected):
    assert Options(config).rope().config == expected


def test_rotary_options_of_a_type_of_layer():
    newer = {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    }
    older = {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    for config in (newer, older):
        full = Options(config).rope("full_attention")
        assert full.config == newer["rope_parameters"]["full_attention"]
        local = Options(config).rope("sliding_attention")
        assert local.config == newer["rope_parameters"]["sliding_attention"]


def test_a_file_that_is_no_object_is_refused(tmp_path):
    file = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError, match="no such file. A checkpoint is a folder with"):
        read_json(file)
    for text, reason in (("{", "not a JSON file"), ("[1]", "must hold a JSON object, got a list")):
        file.write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_json(file)
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match="not a JSON file"):
        read_json(file)
