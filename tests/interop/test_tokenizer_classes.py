"""What the classes of transformers make of the files of a tokenizer: the same ids, or a refusal."""

import json

import numpy as np
import pytest

from icl_jax.interop.tokenizer import EOS, load_tokenizer, save_tokenizer, train_bpe
from tests.interop import tokenizer_classes, tokenizer_named
from tests.interop.tokenizer_folders import write_json

TEXT = "The quick brown fox jumps over the lazy dog. " * 3
TRAINED = train_bpe([TEXT], 300)
CASES = (*tokenizer_classes.CASES, *tokenizer_named.CASES)


def change_json(file, **changes):
    write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **changes})


@pytest.fixture
def folder(tmp_path):
    save_tokenizer(tmp_path, TRAINED)
    return tmp_path


@pytest.mark.parametrize(("write", "text", "ids"), [pytest.param(*c, id=n) for n, *c in CASES])
def test_the_ids_are_those_of_the_class_that_transformers_reads_with(tmp_path, write, text, ids):
    write(tmp_path)
    assert load_tokenizer(tmp_path).encode(text).tokens_T.tolist() == ids


@pytest.mark.parametrize(
    ("file", "key", "value", "expected"),
    (
        ("tokenizer_config.json", "tokenizer_class", "RobertaTokenizerFast", "a RobertaTokenizer"),
        (
            "config.json",
            "tokenizer_class",
            "T5Tokenizer",
            "makes a T5Tokenizer in a way of its own",
        ),
        ("config.json", "model_type", "t5", "makes a T5Tokenizer in a way of its own"),
        (
            "tokenizer_config.json",
            "fix_mistral_regex",
            True,
            "tokenizer.json cuts a text as before",
        ),
        ("tokenizer_config.json", "fast_tokenizer_files", ["tokenizer.4.0.json"], "other versions"),
    ),
)
def test_what_transformers_reads_in_another_way_is_refused_by_name(
    folder, file, key, value, expected
):
    change_json(folder / "tokenizer_config.json", tokenizer_class=None)
    if file == "config.json":
        write_json(folder / file, {})
    change_json(folder / file, **{key: value})
    named = json.dumps(value).replace("[", r"\[").replace("]", r"\]").replace(".", r"\.")
    with pytest.raises(ValueError, match=f"{file}: {key} = {named}.*{expected}"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    (
        ({"dropout": 0.1}, r"tokenizer.json: model.dropout = 0.1 cuts a text by chance"),
        ({"type": "Unigram", "alpha": 0.2}, r"tokenizer.json: model.alpha = 0.2 cuts a text by"),
    ),
)
def test_a_tokenizer_that_cuts_by_chance_is_refused(folder, change, expected):
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    change_json(folder / "tokenizer.json", model={**model, **change})
    with pytest.raises(ValueError, match=expected):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("kind", "expected"),
    (
        ("BertTokenizer", r'model.type = "BPE", but a BertTokenizer makes its own of a WordPiece'),
        (
            "GemmaTokenizer",
            "has no <unk> in its vocabulary, which a GemmaTokenizer needs as its unk",
        ),
    ),
)
def test_a_class_that_makes_nothing_of_a_file_is_named(folder, kind, expected):
    change_json(folder / "tokenizer_config.json", tokenizer_class=kind)
    with pytest.raises(ValueError, match=f"tokenizer.json: {expected}"):
        load_tokenizer(folder)


@pytest.mark.parametrize("damaged", ({"extra_special_tokens": [7]}, {"pad_token": {"content": 1}}))
def test_damaged_special_tokens_are_named(folder, damaged):
    change_json(folder / "tokenizer_config.json", **damaged)
    with pytest.raises(ValueError, match="tokenizer_config.json.*(damaged|Fetch)"):
        load_tokenizer(folder)


def test_a_class_that_drops_bos_drops_it_of_a_saved_tokenizer(folder):
    change_json(folder / "tokenizer_config.json", tokenizer_class="GPTNeoXTokenizer")
    tokenizer = load_tokenizer(folder)
    expected = TRAINED.encode(TEXT, add_special=False).tokens_T
    np.testing.assert_array_equal(tokenizer.encode(TEXT).tokens_T, expected)
    assert tokenizer.bos_id == TRAINED.bos_id and not tokenizer.adds_bos


def test_a_tokenizer_that_splits_special_tokens_still_does_when_it_is_saved(folder):
    change_json(folder / "tokenizer_config.json", split_special_tokens=True)
    tokenizer = load_tokenizer(folder)
    expected = tokenizer.encode(f"fox{EOS}").tokens_T
    assert 1 not in expected and 1 in TRAINED.encode(f"fox{EOS}").tokens_T
    save_tokenizer(folder, tokenizer)
    np.testing.assert_array_equal(load_tokenizer(folder).encode(f"fox{EOS}").tokens_T, expected)
