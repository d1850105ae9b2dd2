"""Tokens, texts and chat templates against those of transformers, where it is installed."""

import dataclasses
import importlib
import json
import pydoc_data.topics

import pytest
import tokenizers as hf
from tokenizers import pre_tokenizers, processors

transformers = pytest.importorskip("transformers", exc_type=ImportError)

from icl_jax.interop import tokenizer_classes  # noqa: E402
from icl_jax.interop.chat import render_chat  # noqa: E402
from icl_jax.interop.tokenizer import load_tokenizer, save_tokenizer, train_bpe  # noqa: E402
from tests.interop import tokenizer_classes as class_folders  # noqa: E402
from tests.interop import tokenizer_named  # noqa: E402
from tests.interop.templates import TEMPLATES  # noqa: E402
from tests.interop.tokenizer_folders import CASES  # noqa: E402

# transformers warns of its own affairs.
pytestmark = pytest.mark.filterwarnings("default")

REAL = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)[:6]]
TEXTS = [
    *(text[:1500] for text in REAL),
    "",
    "   two  spaces\n\n\tand a tab ",
    "Grüße, naïve café 🙂 Ⅷ ﬁ 中文 — d'accord, don't!",
    "control <|bos|> tokens <|eos|> within <|im_end|>",
]
TRAINED = train_bpe(REAL, 400)
CONVERSATIONS = {
    "question": [{"role": "user", "content": " Who are you?\n"}],
    "turns": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello! \n"},
        {"role": "user", "content": '{{ bos_token }} <é> & "quotes" <|bos|>'},
    ],
    "answered": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
    ],
    "system": [
        {"role": "system", "content": "  Be brief. "},
        {"role": "user", "content": "Hi"},
    ],
    "unordered": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
}


def change_json(file, **changes):
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps({**found, **changes}), encoding="utf-8")


def saved(folder, backend=None, **config):
    save_tokenizer(folder, TRAINED)
    if backend is not None:
        backend.save(str(folder / "tokenizer.json"))
    change_json(folder / "tokenizer_config.json", **config)


def copied():
    return hf.Tokenizer.from_str(TRAINED.backend.to_str())


def ours(folder):
    saved(folder)


def trimmed(folder):  # Llama 3
    backend = copied()
    template = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", TRAINED.bos_id)]
    )
    backend.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), template]
    )
    saved(folder, backend, add_bos_token=False)


def without_bos(folder):  # Qwen
    backend = copied()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(hf.Regex(r"\p{N}|[^\s\p{L}\p{N}]+|\s+|\p{L}+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.normalizer = hf.normalizers.NFC()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    saved(folder, backend, bos_token=None, add_bos_token=False)


def sentencepiece(folder):  # Llama 2, Gemma
    backend = hf.Tokenizer(hf.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = hf.normalizers.Sequence(
        [hf.normalizers.Prepend("▁"), hf.normalizers.Replace(" ", "▁")]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = hf.trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, show_progress=False, max_token_length=8
    )
    backend.train_from_iterator([line for text in REAL for line in text.split("\n")], trainer)
    backend.decoder = hf.decoders.Sequence(
        [
            hf.decoders.Replace("▁", " "),
            hf.decoders.ByteFallback(),
            hf.decoders.Fuse(),
            hf.decoders.Strip(" ", 1, 0),
        ]
    )
    # Bytes are tokens of the model, not special ones.
    described = json.loads(backend.to_str())
    described["added_tokens"] = described["added_tokens"][:3]
    backend = hf.Tokenizer.from_str(json.dumps(described))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    saved(folder, backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def older_gpt2(folder):
    model = json.loads(TRAINED.backend.to_str())["model"]
    change_json(folder / "vocab.json", **model["vocab"], **{"<|endoftext|>": 400})
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    change_json(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")


def older_gpt2_with_bos(folder):  # OPT
    older_gpt2(folder)
    change_json(
        folder / "tokenizer_config.json",
        add_bos_token=True,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
    )


def older_bert(folder):
    words = sorted({word for text in REAL for word in text.lower().split() if word.isalpha()})[:300]
    letters = [prefix + chr(letter) for letter in range(97, 123) for prefix in ("", "##")]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,!?'-<>|", *letters, "中", "文"]
    pieces = list(dict.fromkeys([*pieces, *words]))
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    change_json(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")


def added_in_its_configuration_only(folder):
    number = TRAINED.backend.get_vocab_size()
    tokens = {
        str(number): {"content": "café", "special": False, "normalized": False, "lstrip": True},
        str(number + 1): {"content": "<|im_end|>", "special": True},
    }
    saved(folder, added_tokens_decoder=tokens)


def added_in_a_file_only(folder):
    number = TRAINED.backend.get_vocab_size()
    saved(folder)
    change_json(folder / "added_tokens.json", **{"<|im_end|>": number, "don't": number + 1})
    change_json(folder / "special_tokens_map.json", additional_special_tokens=["<|im_end|>"])


def added_to_an_older_gpt2(folder):
    older_gpt2(folder)
    change_json(folder / "added_tokens.json", **{"<|im_end|>": 401, "don't": 402})
    change_json(folder / "special_tokens_map.json", additional_special_tokens=["<|im_end|>"])


def added_to_an_older_bert(folder):
    older_bert(folder)
    number = len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    change_json(folder / "added_tokens.json", **{"naïve": number, "<|im_end|>": number + 1})


def bert_in_both(folder, **config):
    """tokenizer.json and an option that it does not have."""
    older_bert(folder)
    load_tokenizer(folder).backend.save(str(folder / "tokenizer.json"))
    change_json(folder / "tokenizer_config.json", **config)


def bert_that_keeps_case(folder):
    bert_in_both(folder, do_lower_case=False)


def bert_that_keeps_accents(folder):
    bert_in_both(folder, strip_accents=False, tokenize_chinese_chars=False)


def distilbert_by_its_model(folder):
    bert_in_both(folder, tokenizer_class=None, do_lower_case=False)
    change_json(folder / "config.json", model_type="distilbert")


def spaced(folder, kind, in_file, **config):
    backend = copied()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=in_file)
    saved(folder, backend, tokenizer_class=kind, unk_token="<|bos|>", **config)


def gpt2_with_a_space(folder):
    spaced(folder, "GPT2Tokenizer", False, add_prefix_space=True)


def gpt2_with_a_space_in_its_file_only(folder):
    spaced(folder, "GPT2TokenizerFast", True)


def others_with_a_space_in_their_file(folder):
    spaced(folder, "PreTrainedTokenizerFast", True, add_prefix_space=False)


def others_with_a_space_in_their_configuration(folder):
    spaced(folder, "PreTrainedTokenizerFast", False, add_prefix_space=True)


def falcon_of_the_class_of_gpt2(folder):
    spaced(folder, "GPT2Tokenizer", False, add_prefix_space=True)
    change_json(folder / "config.json", model_type="falcon")


KINDS = (
    added_in_its_configuration_only,
    added_in_a_file_only,
    added_to_an_older_gpt2,
    added_to_an_older_bert,
    bert_that_keeps_case,
    bert_that_keeps_accents,
    distilbert_by_its_model,
    gpt2_with_a_space,
    gpt2_with_a_space_in_its_file_only,
    others_with_a_space_in_their_file,
    others_with_a_space_in_their_configuration,
    falcon_of_the_class_of_gpt2,
    ours,
    trimmed,
    without_bos,
    sentencepiece,
    older_gpt2,
    older_gpt2_with_bos,
    older_bert,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_tokens_and_texts_are_those_of_transformers(tmp_path, kind):
    kind(tmp_path)
    found, expected = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (found.bos_id, found.pad_id) == (expected.bos_token_id, expected.pad_token_id)
    for text in TEXTS:
        for special in (True, False):
            tokens = found.encode(text, add_special=special).tokens_T.tolist()
            assert tokens == expected.encode(text, add_special_tokens=special)
            assert found.decode(tokens, skip_special=special) == expected.decode(
                tokens, skip_special_tokens=special
            )


WRITTEN = (*CASES, *class_folders.CASES, *tokenizer_named.CASES)


@pytest.mark.parametrize(("write", "text", "ids"), [pytest.param(*c, id=n) for n, *c in WRITTEN])
def test_ids_that_are_written_down_are_those_of_transformers(tmp_path, write, text, ids):
    write(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).encode(text) == ids


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_transformers_writes_is_read_as_the_same(tmp_path, kind):
    kind(tmp_path)
    expected = load_tokenizer(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    found = load_tokenizer(tmp_path / "again")
    for text in TEXTS:
        assert (found.encode(text).tokens_T == expected.encode(text).tokens_T).all()
        assert (found.encode(text).offsets_T2 == expected.encode(text).offsets_T2).all()
    assert found.special_tokens == expected.special_tokens


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("style", TEMPLATES)
def test_conversations_are_those_of_transformers(tmp_path, style, conversation):
    save_tokenizer(tmp_path, dataclasses.replace(TRAINED, chat_template=TEMPLATES[style]))
    found, messages = load_tokenizer(tmp_path), CONVERSATIONS[conversation]
    transformed = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for prompted in (False, True):
        options = {"add_generation_prompt": prompted, "date_string": "26 Jul 2024"}
        try:
            expected = transformed.apply_chat_template(messages, tokenize=False, **options)
        except Exception as refused:
            with pytest.raises(ValueError, match=str(refused)):
                render_chat(found, messages, add_generation_prompt=prompted)
            continue
        text = render_chat(found, messages, add_generation_prompt=prompted)
        assert text == expected
        tokens = transformed.apply_chat_template(messages, return_dict=False, **options)
        assert found.encode(text, add_special=False).tokens_T.tolist() == tokens


def test_who_reads_the_tokenizer_of_a_model_is_as_in_transformers():
    from transformers.models.auto import tokenization_auto as auto

    theirs = {
        kind: name.removesuffix("Fast").replace("TokenizersBackend", "")
        for kind, name in auto.TOKENIZER_MAPPING_NAMES.items()
        if name is not None
    }
    assert tokenizer_classes.REGISTERED == theirs
    wrong = auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    assert {kind for kind in wrong if theirs[kind]} == tokenizer_classes.OWN


def test_every_class_of_transformers_is_known_or_refused():
    from transformers import PreTrainedTokenizerBase
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    # By its path: transformers has a function of this name, too.
    convert = importlib.import_module("transformers.convert_slow_tokenizer")
    names = {*dir(transformers), *convert.SLOW_TO_FAST_CONVERTERS}
    names = {name.removesuffix("Fast") for name in names if "Tokenizer" in name}
    made = {tokenizer_classes.ALIASES.get(name, name): name for name in sorted(names)}
    for known, name in made.items():
        found = tokenizer_class_from_name(name)
        if not isinstance(found, type) or not issubclass(found, PreTrainedTokenizerBase):
            continue
        plain = found.__name__ in ("TokenizersBackend", "PythonBackend", "PreTrainedTokenizerBase")
        assert plain or known in tokenizer_classes.MODELS or known in tokenizer_classes.OTHERS, name
