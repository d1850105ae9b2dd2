"""The tokenizer of a checkpoint: every kind of file, what it adds, where its tokens stand."""

import json
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.interop.tokenizer import (
    BOS,
    EOS,
    has_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
)
from tests.interop.tokenizer_folders import CASES

TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "for value in values:\n    print(value)\n\n    return value",
    "Grüße aus Köln, naïve café 🙂 — d'accord",
]
TRAINED = train_bpe(TEXTS, 320)


def write_json(file, value):
    file.write_text(json.dumps(value), encoding="utf-8")


def change_json(file, **changes):
    write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **changes})


@pytest.fixture
def folder(tmp_path):
    save_tokenizer(tmp_path, TRAINED)
    return tmp_path


@given(text=st.text(max_size=40))
def test_every_text_comes_back_from_the_tokens_of_a_trained_tokenizer(text):
    # Characters that only the encoding of the machine knows (surrogates) are no text.
    text = text.encode("utf-8", "ignore").decode().replace(BOS, "").replace(EOS, "")
    encoded = TRAINED.encode(text)
    assert TRAINED.decode(encoded.tokens_T) == text
    assert encoded.tokens_T.dtype == np.int32 and encoded.offsets_T2.dtype == np.int32
    assert encoded.offsets_T2.shape == (len(encoded.tokens_T), 2)


@given(text=st.text(alphabet="ab  \n\té🙂", max_size=30))
def test_the_tokens_cover_the_text_without_a_gap(text):
    _, *offsets_T2 = TRAINED.encode(text).offsets_T2.tolist()
    covered = 0
    for begin, end in offsets_T2:
        assert begin <= covered and end > begin
        covered = max(covered, end)
    assert covered == len(text)


def test_a_trained_tokenizer_has_the_size_and_the_special_tokens_it_was_asked_for():
    assert TRAINED.backend.get_vocab_size() == 320
    assert (TRAINED.bos_id, TRAINED.eos_ids, TRAINED.pad_id) == (0, (1,), None)
    assert TRAINED.adds_bos and not TRAINED.adds_eos
    bytes_only = train_bpe(TEXTS, 258)
    assert len(bytes_only.encode("é🙂", add_special=False).tokens_T) == 6


@pytest.mark.parametrize("size", (257, 0, True))
def test_a_vocabulary_without_room_for_the_bytes_is_refused(size):
    with pytest.raises(ValueError, match="train_bpe: vocab_size"):
        train_bpe(TEXTS, size)


def test_a_saved_tokenizer_is_the_same_when_loaded(folder):
    loaded = load_tokenizer(folder)
    for text in TEXTS:
        np.testing.assert_array_equal(loaded.encode(text).tokens_T, TRAINED.encode(text).tokens_T)
    for name in ("bos_id", "eos_ids", "pad_id", "special_tokens", "chat_template", "adds_bos"):
        assert getattr(loaded, name) == getattr(TRAINED, name), name


def test_special_tokens_are_added_and_skipped_only_on_request(folder):
    tokenizer = load_tokenizer(folder)
    with_bos, without = tokenizer.encode("The fox"), tokenizer.encode("The fox", add_special=False)
    assert with_bos.tokens_T.tolist() == [0, *without.tokens_T.tolist()]
    assert with_bos.offsets_T2[0].tolist() == [0, 0]
    assert tokenizer.decode(with_bos.tokens_T) == "The fox"
    assert tokenizer.decode(with_bos.tokens_T, skip_special=False) == f"{BOS}The fox"


@pytest.mark.parametrize("flag", (None, False, True))
def test_tokenizer_json_alone_says_whether_bos_is_added_and_it_is_never_added_twice(folder, flag):
    change_json(folder / "tokenizer_config.json", add_bos_token=flag)
    assert load_tokenizer(folder).encode("fox").tokens_T.tolist().count(0) == 1
    change_json(folder / "tokenizer.json", post_processor=None)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("fox").tokens_T.tolist().count(0) == 0 and not tokenizer.adds_bos


@pytest.mark.parametrize("nested", (False, True))
def test_spaces_belong_to_their_tokens_also_where_the_file_trims_them(folder, nested):
    # As in the files of GPT-2 and NeoX (alone), and of Llama 3 (in a sequence).
    processor = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    if nested:
        processor = {"type": "Sequence", "processors": [processor]}
    change_json(folder / "tokenizer.json", post_processor=processor)
    text = "for   value \n  in"
    trimmed = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text)
    assert any(begin == end for begin, end in trimmed.offsets)
    encoded = load_tokenizer(folder).encode(text)
    assert encoded.tokens_T.tolist() == trimmed.ids
    begins_T, ends_T = encoded.offsets_T2.T
    np.testing.assert_array_equal(begins_T, [0, *ends_T[:-1]])
    assert ends_T[-1] == len(text)


def test_settings_of_a_training_do_not_cut_or_fill_texts(folder):
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(folder / "tokenizer.json"))
    found, expected = load_tokenizer(folder).encode(TEXTS[0]), TRAINED.encode(TEXTS[0])
    np.testing.assert_array_equal(found.tokens_T, expected.tokens_T)


def test_special_tokens_come_from_both_files_and_the_older_one_wins(folder):
    write_json(
        folder / "special_tokens_map.json",
        {"bos_token": EOS, "pad_token": {"content": EOS, "lstrip": False}, "unk_token": "x"},
    )
    change_json(folder / "tokenizer_config.json", unk_token=None, model_max_length=8)
    tokenizer = load_tokenizer(folder)
    wanted = {"bos_token": EOS, "eos_token": EOS, "pad_token": EOS, "unk_token": "x"}
    assert tokenizer.special_tokens == wanted
    assert (tokenizer.bos_id, tokenizer.pad_id) == (1, 1)


def test_a_named_special_token_is_one_whether_it_is_marked_or_not(folder):
    described = json.loads((folder / "tokenizer.json").read_text())
    write_json(folder / "tokenizer.json", {**described, "added_tokens": []})
    assert load_tokenizer(folder).encode(f"fox{EOS}").tokens_T[-1] == 1
    # One that is marked keeps its own rules, and one that no file numbers gets the next number.
    described["added_tokens"][1]["lstrip"] = True
    write_json(folder / "tokenizer.json", described)
    change_json(folder / "tokenizer_config.json", pad_token="[PAD]")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode(f"fox  {EOS}").offsets_T2[-1].tolist() == [3, 5 + len(EOS)]
    assert tokenizer.pad_id == 320 and tokenizer.encode("[PAD]fox").tokens_T[1] == 320


def test_generation_is_ended_by_what_its_configuration_says(folder):
    write_json(folder / "config.json", {"eos_token_id": 7})
    assert load_tokenizer(folder).eos_ids == (7,)
    write_json(folder / "generation_config.json", {"eos_token_id": [5, 6]})
    assert load_tokenizer(folder).eos_ids == (5, 6)
    write_json(folder / "generation_config.json", {"eos_token_id": ["</s>"]})
    with pytest.raises(ValueError, match="generation_config.json: eos_token_id must be token ids"):
        load_tokenizer(folder)


def test_the_chat_template_is_the_file_or_the_default_of_those_with_names(folder):
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]
    change_json(folder / "tokenizer_config.json", chat_template=named[:1])
    assert load_tokenizer(folder).chat_template is None
    change_json(folder / "tokenizer_config.json", chat_template=named)
    assert load_tokenizer(folder).chat_template == "named"
    write_json(folder / "chat_template.json", {"chat_template": "older file"})
    assert load_tokenizer(folder).chat_template == "older file"
    (folder / "chat_template.jinja").write_text("file")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template == "file"
    save_tokenizer(folder / "again", tokenizer)
    assert load_tokenizer(folder / "again").chat_template == "file"


@pytest.fixture
def gpt2_folder(tmp_path):
    model = json.loads(TRAINED.backend.to_str())["model"]
    vocabulary = {
        token.replace(EOS, "<|endoftext|>"): index for token, index in model["vocab"].items()
    }
    write_json(tmp_path / "vocab.json", vocabulary)
    merges = [" ".join(merge) for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return tmp_path


def test_gpt2s_older_files_give_the_same_tokens(gpt2_folder):
    tokenizer = load_tokenizer(gpt2_folder)
    for text in TEXTS:
        expected = TRAINED.encode(text, add_special=False)
        found = tokenizer.encode(text)
        np.testing.assert_array_equal(found.tokens_T, expected.tokens_T)
        np.testing.assert_array_equal(found.offsets_T2, expected.offsets_T2)
        assert tokenizer.decode(found.tokens_T) == text
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (1, (1,), False)
    assert tokenizer.encode("fox<|endoftext|>").tokens_T[-1] == 1


def test_without_tokenizer_json_the_configuration_says_what_is_added(gpt2_folder):
    config = {"add_bos_token": True, "add_eos_token": True, "add_prefix_space": True}
    write_json(gpt2_folder / "tokenizer_config.json", {**config, "eos_token": BOS})
    tokenizer = load_tokenizer(gpt2_folder)
    spaced = TRAINED.encode(" fox", add_special=False).tokens_T.tolist()
    assert tokenizer.encode("fox").tokens_T.tolist() == [1, *spaced, 0]
    assert tokenizer.adds_bos and tokenizer.adds_eos


def test_added_tokens_of_older_files_have_the_ids_that_they_say(gpt2_folder):
    write_json(gpt2_folder / "added_tokens.json", {"<|b|>": 321, "<|a|>": 320})
    tokenizer = load_tokenizer(gpt2_folder)
    assert tokenizer.encode("<|a|>fox<|b|>").tokens_T[[0, -1]].tolist() == [320, 321]
    write_json(gpt2_folder / "added_tokens.json", {"<|b|>": 400})
    with pytest.raises(ValueError, match=r"added_tokens.json: '<\|b\|>' should be token 400"):
        load_tokenizer(gpt2_folder)


def test_berts_vocabulary_gives_word_pieces(tmp_path):
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "fox",
        "jump",
        "##s",
        ".",
        "cafe",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "BertTokenizerFast"})
    tokenizer = load_tokenizer(tmp_path)
    encoded = tokenizer.encode("The fox jumps. Café zebra[MASK]")
    assert encoded.tokens_T.tolist() == [2, 5, 6, 7, 8, 9, 10, 1, 4, 3]
    assert encoded.offsets_T2[[1, 4]].tolist() == [[0, 3], [12, 13]]
    assert tokenizer.decode(encoded.tokens_T[:6]) == "the fox jumps."
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_ids) == (None, 0, ())
    change_json(tmp_path / "tokenizer_config.json", do_lower_case=False)
    assert load_tokenizer(tmp_path).encode("The fox").tokens_T.tolist() == [2, 1, 6, 3]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces[4:]))
    with pytest.raises(ValueError, match=r"vocab.txt: has no \[CLS\]"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "file, content",
    (
        ("tokenizer_config.json", {"tokenizer_class": "Qwen2TokenizerFast"}),
        ("config.json", {"model_type": "qwen2"}),
    ),
)
def test_older_files_that_mean_something_else_are_refused(gpt2_folder, file, content):
    write_json(gpt2_folder / file, content)
    with pytest.raises(ValueError, match=r"(?i)vocab.json with merges.txt of a qwen2.*save_pretr"):
        load_tokenizer(gpt2_folder)


def test_sentencepiece_alone_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    assert not has_tokenizer(tmp_path)  # Token ids still go.
    with pytest.raises(ValueError, match="only tokenizer.model .*AutoTokenizer.from_pretrained"):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path):
    assert not has_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tokenizer.json, nor vocab.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("damaged", (b"{", b"[]", b"{}", b'{"post_processor": 3}', b"\xff"))
def test_a_damaged_file_is_named(folder, damaged):
    (folder / "tokenizer.json").write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{folder}.*(Fetch|must hold)"):
        load_tokenizer(folder)


def test_a_missing_package_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r'tokenizers .*pip install "icl_jax\[huggingface\]"'):
        load_tokenizer(folder)


@pytest.mark.parametrize(("write", "text", "ids"), [pytest.param(*c, id=n) for n, *c in CASES])
def test_files_that_do_not_say_the_same_give_the_ids_of_transformers(tmp_path, write, text, ids):
    write(tmp_path)
    assert load_tokenizer(tmp_path).encode(text).tokens_T.tolist() == ids


def test_a_llama_tokenizer_whose_files_differ_in_the_first_space_is_refused(folder):
    change_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    load_tokenizer(folder)
    change_json(folder / "tokenizer_config.json", add_prefix_space=True)
    with pytest.raises(ValueError, match="add_prefix_space = true, but tokenizer.json puts no spa"):
        load_tokenizer(folder)
    change_json(folder / "tokenizer.json", normalizer={"type": "Prepend", "prepend": " "})
    load_tokenizer(folder)


@pytest.mark.parametrize("damaged", ([1], {"x": {"content": "a"}}, {"3": "a"}, {"3": {"text": 1}}))
def test_damaged_added_tokens_are_named(folder, damaged):
    change_json(folder / "tokenizer_config.json", added_tokens_decoder=damaged)
    with pytest.raises(ValueError, match="tokenizer_config.json: damaged added tokens"):
        load_tokenizer(folder)


def test_an_added_token_with_another_number_is_refused(folder):
    change_json(
        folder / "tokenizer_config.json", added_tokens_decoder={"900": {"content": "<new>"}}
    )
    with pytest.raises(ValueError, match="'<new>' should be token 900, but comes to be 320"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    (
        ("bos_token", 7, "a text, or an object"),
        ("eos_token", {"a": 1}, "a text, or an object"),
        ("add_prefix_space", "no", "true or false"),
        ("do_lower_case", 1, "true or false"),
        ("chat_template", 5, "a text, or several with names"),
        ("tokenizer_class", ["GPT2Tokenizer"], "a text"),
    ),
)
def test_a_setting_of_another_type_is_refused_by_name(folder, key, value, expected):
    change_json(folder / "tokenizer_config.json", **{key: value})
    with pytest.raises(ValueError, match=f"tokenizer_config.json.*: {key} must be {expected}"):
        load_tokenizer(folder)


def test_a_template_that_is_no_text_is_refused_by_name(folder):
    (folder / "chat_template.jinja").write_bytes(b"{{ \xff }}")
    with pytest.raises(ValueError, match="chat_template.jinja: not a text in UTF-8"):
        load_tokenizer(folder)
