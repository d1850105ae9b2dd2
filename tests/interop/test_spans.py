"""Lines of a prompt file: which tokens they are, which stay, and what is wrong with the others."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from icl_jax.interop.spans import Prompt, check_prompt, parse_prompt, read_prompts
from icl_jax.interop.tokenizer import BOS, load_tokenizer, save_tokenizer, train_bpe
from tests.interop.templates import TEMPLATES

TRAINED = train_bpe(["the fox and the dog and the fox  \n" * 4], 300)
CHAT = dataclasses.replace(
    TRAINED, special_tokens={"bos_token": BOS}, chat_template=TEMPLATES["chatml"]
)
LLAMA = dataclasses.replace(CHAT, chat_template=TEMPLATES["llama3"])


def kept_text(prompt, tokenizer=TRAINED):
    """The text of the kept tokens, special ones too."""
    return tokenizer.decode(prompt.tokens[prompt.kept], skip_special=False)


def removed_text(prompt, tokenizer=TRAINED):
    removed = np.setdiff1d(np.arange(len(prompt.tokens)), prompt.kept)
    return tokenizer.decode(prompt.tokens[removed], skip_special=False)


def read(tmp_path, lines, tokenizer=TRAINED, **options):
    file = tmp_path / "prompts.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts), encoding="utf-8")
    return read_prompts(file, tokenizer, **{"vocab_size": 300, **options})


def test_the_whole_text_is_tokenised_as_the_model_reads_it():
    prompt = parse_prompt({"remove": "the fox and", "keep": " the dog", "name": "animals"}, TRAINED)
    np.testing.assert_array_equal(prompt.tokens, TRAINED.encode("the fox and the dog").tokens_T)
    assert prompt.tokens.dtype == prompt.kept.dtype == np.int32
    assert (prompt.name, prompt.text) == ("animals", "the fox and the dog")
    assert (kept_text(prompt), removed_text(prompt)) == (f"{BOS} the dog", "the fox and")


def test_bos_is_kept_or_removed_as_asked():
    line = {"remove": "the fox", "keep": " and"}
    assert parse_prompt(line, TRAINED).kept[0] == 0
    assert kept_text(parse_prompt(line, TRAINED, keep_bos=False)) == " and"
    kept_first = {"spans": [{"text": "the fox", "keep": True}, {"text": " and", "keep": False}]}
    assert kept_text(parse_prompt(kept_first, TRAINED, keep_bos=False)) == "the fox"


@pytest.mark.parametrize("keeps", ((True, False), (False, True)))
def test_a_token_across_a_border_is_kept_on_either_side(keeps):
    assert len(TRAINED.encode("the fox", add_special=False).tokens_T) == 2
    spans = [
        {"text": text, "keep": keep} for text, keep in zip(("the f", "ox"), keeps, strict=True)
    ]
    prompt = parse_prompt({"spans": spans}, TRAINED)
    expected = "the fox" if keeps[0] else " fox"
    assert kept_text(prompt) == BOS + expected
    # The border within the bytes of one character: none of its tokens is removed.
    spans = [{"text": "the\n", "keep": False}, {"text": "🙂", "keep": True}]
    assert kept_text(parse_prompt({"spans": spans}, TRAINED)) == f"{BOS}🙂"


def test_a_space_goes_with_the_part_that_it_is_written_in():
    before = parse_prompt({"remove": "fox ", "keep": "dog"}, TRAINED)
    assert kept_text(before) == f"{BOS} dog"  # One token with the space in it.
    alone = {"spans": [{"text": "fox", "keep": True}, {"text": " dog", "keep": False}]}
    assert kept_text(parse_prompt(alone, TRAINED)) == f"{BOS}fox"
    within = {"spans": [{"text": "fox ", "keep": True}, {"text": "dog", "keep": False}]}
    with pytest.raises(ValueError, match="nothing is removed"):
        check_prompt(parse_prompt(within, TRAINED), vocab_size=300)


def test_spaces_in_a_removed_part_are_removed_also_where_the_file_trims_them(tmp_path):
    save_tokenizer(tmp_path, TRAINED)
    backend = TRAINED.backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.save(str(tmp_path / "tokenizer.json"))
    prompt = parse_prompt({"remove": "the    fox \n  ", "keep": "\nand"}, load_tokenizer(tmp_path))
    assert (kept_text(prompt), removed_text(prompt)) == ("\nand", "the    fox \n  ")


@given(
    st.lists(
        st.tuples(st.text("the fox\né🙂", min_size=1, max_size=9), st.booleans()),
        min_size=1,
        max_size=5,
    )
)
def test_a_position_is_kept_just_if_one_of_its_characters_is(spans):
    line = {"spans": [{"text": text, "keep": keep} for text, keep in spans]}
    prompt = parse_prompt(line, TRAINED, keep_bos=False)
    flags = [keep for text, keep in spans for _ in text]
    offsets = TRAINED.encode("".join(text for text, _ in spans)).offsets_T2
    expected = [t for t, (begin, end) in enumerate(offsets) if any(flags[begin:end])]
    assert prompt.kept.tolist() == expected


def test_any_order_of_kept_and_removed_spans():
    texts = ("the fox", " and", " the dog", " and", " the fox")
    spans = [{"text": text, "keep": i % 2 == 0} for i, text in enumerate(texts)]
    prompt = parse_prompt({"spans": spans}, TRAINED)
    assert kept_text(prompt) == f"{BOS}the fox the dog the fox"
    assert removed_text(prompt) == " and and"


def test_what_stands_for_no_text_is_kept_behind_and_as_asked_in_front():
    backend = TRAINED.backend.from_str(TRAINED.backend.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", 0), ("<|eos|>", 1)]
    )
    line = {"spans": [{"text": "the", "keep": True}, {"text": " fox", "keep": False}]}
    # As BERT's: what stands in front is not called BOS.
    for bos_id in (0, None):
        tokenizer = dataclasses.replace(TRAINED, backend=backend, bos_id=bos_id)
        assert parse_prompt(line, tokenizer).kept.tolist() == [0, 1, 3]
        assert parse_prompt(line, tokenizer, keep_bos=False).kept.tolist() == [1, 3]


def test_token_ids_are_taken_as_they_are():
    prompt = parse_prompt({"tokens": [5, 0, 7, 9], "keep": [0, 3]}, None, keep_bos=False)
    assert (prompt.tokens.tolist(), prompt.kept.tolist()) == ([5, 0, 7, 9], [0, 3])
    assert prompt.text is None and prompt.name == ""


def message(role, content, keep):
    return {"role": role, "content": content, "keep": keep}


def test_messages_take_along_what_the_template_writes_around_them():
    messages = [
        message("system", "the fox", False),
        message("user", "the dog", False),
        message("assistant", "and", False),
        message("user", "and the fox", True),
    ]
    prompt = parse_prompt({"messages": messages}, CHAT)
    assert kept_text(prompt) == "<|im_start|>user\nand the fox<|im_end|>\n<|im_start|>assistant\n"
    # The template says which special tokens there are.
    np.testing.assert_array_equal(
        prompt.tokens, CHAT.encode(prompt.text, add_special=False).tokens_T
    )


def test_the_header_of_the_answer_to_come_is_kept():
    messages = [message("system", "the fox", True), message("user", "the dog", False)]
    prompt = parse_prompt({"messages": messages}, CHAT)
    assert removed_text(prompt) == "<|im_start|>user\nthe dog<|im_end|>\n"
    assert kept_text(prompt).endswith("<|im_start|>assistant\n")
    answered = [message("user", "the fox", False), message("assistant", "the dog", True)]
    prompt = parse_prompt({"messages": answered}, CHAT)
    assert kept_text(prompt) == "<|im_start|>assistant\nthe dog<|im_end|>\n"


def test_a_bos_that_the_template_writes_is_kept_or_removed_as_asked():
    line = {"messages": [message("system", "the", False), message("user", "fox", True)]}
    kept = parse_prompt(line, LLAMA)
    assert kept.tokens[:2].tolist().count(0) == 1 and kept.kept[0] == 0
    removed = parse_prompt(line, LLAMA, keep_bos=False)
    np.testing.assert_array_equal(removed.kept, kept.kept[1:])


def test_a_file_gives_every_prompt_with_a_name(tmp_path):
    lines = [
        {"remove": "the fox", "keep": " and", "name": "first"},
        "",
        {"tokens": [1, 2, 3], "keep": [2]},
        "  ",
    ]
    prompts = read(tmp_path, lines)
    assert [prompt.name for prompt in prompts] == ["first", "line 3"]
    assert prompts[0].text == "the fox and"


def test_line_ends_within_a_text_end_no_line(tmp_path):
    text = "the\u2028fox\x85and"
    line = json.dumps({"remove": text, "keep": "the"}, ensure_ascii=False)
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n")
    (prompt,) = read_prompts(file, TRAINED, vocab_size=300)
    assert prompt.text == text + "the"


@pytest.mark.parametrize(
    "line, reason",
    (
        ("{'remove': 1}", "not JSON .*one object per line"),
        ("[1, 2]", "a prompt is an object with .*got list"),
        ({"remove": "the"}, r"nothing else, got \['remove'\]"),
        ({"remove": "the", "keep": "fox", "kep": 1}, r"got \['keep', 'kep', 'remove'\]"),
        ({"remove": "", "keep": "fox"}, '"remove" must be a text that is not empty'),
        ({"remove": "the", "keep": 3}, '"keep" must be a text that is not empty, got 3'),
        ({"remove": "the", "keep": "fox", "name": 3}, '"name" must be a text'),
        ({"remove": "the", "keep": "fox", "name": "a\0b"}, r"no control characters, got 'a\\x00b'"),
        ({"tokens": [1, 2], "keep": [0], "name": "a\n"}, r"control characters, got 'a\\n', which"),
        ({"remove": "the", "keep": "\ud800"}, '"keep" has half a character'),
        ({"spans": []}, r'"spans" must be a list of \{"text": "...", "keep": true or false\}'),
        ({"spans": ["the"]}, 'entry 1 of "spans" must be .*got str'),
        (
            {"spans": [{"text": "the", "keep": True, "keeps": False}]},
            r"entry 1 of .* got \['keep', 'keeps', 'text'\]",
        ),
        ({"spans": [{"text": "the", "keep": 1}]}, '"keep" must be true or false, got 1'),
        ({"spans": [{"text": "", "keep": True}]}, 'entry 1 of "spans": "text" must be a text'),
        ({"spans": [{"text": "the fox", "keep": True}]}, "nothing is removed"),
        ({"messages": [{"role": "user", "content": "x"}]}, 'entry 1 of "messages" must be'),
        ({"messages": [message("user", "fox", True)]}, "the checkpoint has no chat template"),
        ({"tokens": [1, 2.0], "keep": [0]}, '"tokens" must be a list of whole numbers'),
        ({"tokens": [1, True], "keep": [0]}, '"tokens" must be a list of whole numbers.*got True'),
        ({"tokens": [1, 2], "keep": 0}, '"keep" must be a list of whole numbers.*got 0'),
        ({"tokens": [1, 300], "keep": [0]}, "token 300 is not in the model's vocabulary of 300"),
        ({"tokens": [1, 2**40], "keep": [0]}, f'"tokens" must be a list .* got {2**40}'),
        ({"tokens": [1, -1], "keep": [0]}, '"tokens" must be a list .* got -1'),
        ({"tokens": [], "keep": []}, "the prompt is empty"),
        ({"tokens": [1, 2], "keep": []}, "nothing is kept"),
        ({"tokens": [1, 2], "keep": [0, 1]}, "nothing is removed"),
        ({"tokens": [1, 2, 3], "keep": [3]}, "increase and lie in 0 to 2, got .3"),
        ({"tokens": [1, 2, 3], "keep": [1, 0]}, "increase and lie in 0 to 2"),
        ({"tokens": [1, 2, 3], "keep": [1, 1]}, "increase and lie in 0 to 2"),
        ({"tokens": list(range(9)), "keep": [0]}, "9 tokens are more than .* room for, 8"),
    ),
)
def test_a_wrong_line_is_named_with_its_file_and_number(tmp_path, line, reason):
    fine = {"tokens": [1, 2], "keep": [1]}
    with pytest.raises(ValueError, match=f"prompts.jsonl, line 2: .*{reason}"):
        read(tmp_path, [fine, line], max_length=8)


def test_nothing_is_kept_if_only_bos_could_be_and_is_removed():
    line = {"spans": [{"text": "the fox", "keep": False}]}
    check_prompt(parse_prompt(line, TRAINED), vocab_size=300)
    with pytest.raises(ValueError, match="nothing is kept"):
        check_prompt(parse_prompt(line, TRAINED, keep_bos=False), vocab_size=300)


def test_text_without_a_tokenizer_is_refused_and_token_ids_are_not(tmp_path):
    (prompt,) = read(tmp_path, [{"tokens": [1, 2], "keep": [1]}], tokenizer=None)
    assert isinstance(prompt, Prompt)
    with pytest.raises(
        ValueError, match="line 1: the checkpoint has no tokenizer that can be read.*token ids"
    ):
        read(tmp_path, [{"remove": "the", "keep": " fox"}], tokenizer=None)


def test_files_without_prompts_or_with_one_name_twice_are_refused(tmp_path):
    with pytest.raises(ValueError, match="prompts.jsonl: no prompts. Write one per line"):
        read(tmp_path, ["", " "])
    line = {"tokens": [1, 2], "keep": [1], "name": "same"}
    with pytest.raises(ValueError, match="several prompts are called 'same'"):
        read(tmp_path, [line, line])
    with pytest.raises(FileNotFoundError, match="nothing.jsonl: no such file"):
        read_prompts(tmp_path / "nothing.jsonl", TRAINED, vocab_size=300)
    (tmp_path / "latin.jsonl").write_bytes('{"remove": "é", "keep": "x"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="latin.jsonl, line 1: not JSON .*UTF-8"):
        read_prompts(tmp_path / "latin.jsonl", TRAINED, vocab_size=300)


@pytest.mark.parametrize(
    "line, key",
    (
        ('{"remove": "the", "keep": "fox", "keep": "dog"}', "keep"),
        ('{"spans": [{"text": "the", "keep": true, "keep": false}]}', "keep"),
        ('{"tokens": [1, 2], "tokens": [2, 3], "keep": [1]}', "tokens"),
    ),
)
def test_a_key_that_comes_twice_is_refused(tmp_path, line, key):
    with pytest.raises(ValueError, match=f'prompts.jsonl, line 1: .*"{key}" comes twice in one ob'):
        read(tmp_path, [line])


def test_a_line_that_is_nested_without_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match="prompts.jsonl, line 1: not JSON"):
        read(tmp_path, ['{"spans": ' + "[" * 100_000])
