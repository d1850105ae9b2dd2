"""Tiny tokenizers with special tokens that only the files beside tokenizer.json name.

As in ``tokenizer_folders``: a function that writes a folder, and the ids of ``AutoTokenizer``.
"""

from functools import partial

from tests.interop.tokenizer_folders import PLAIN, gpt2

#: They get the next numbers, in an order of their names.
NAMED_TEXT = "<X>the <Y> fox<s>"
NAMED_IDS = (
    (
        "map_extra",
        partial(
            gpt2,
            spaced=False,
            kind=PLAIN,
            beside={"additional_special_tokens": ["<X>", "<Y>"], "bos_token": "<s>"},
        ),
        [265, 259, 220, 266, 262, 264],
    ),
    (
        "map_objects",
        partial(
            gpt2,
            spaced=False,
            kind=PLAIN,
            beside={"pad_token": {"content": "<Y>", "lstrip": True, "rstrip": True}},
        ),
        [27, 55, 29, 259, 264, 261, 27, 82, 29],
    ),
    (
        "map_beside_decoder",
        partial(
            gpt2, spaced=False, kind=PLAIN, added_tokens_decoder={}, beside={"bos_token": "<s>"}
        ),
        [27, 55, 29, 259, 220, 27, 56, 29, 262, 27, 82, 29],
    ),
    (
        "configuration_named",
        partial(gpt2, spaced=False, kind=PLAIN, pad_token="<X>", bos_token="<s>"),
        [265, 259, 220, 27, 56, 29, 262, 264],
    ),
    (
        "configuration_extra",
        partial(
            gpt2,
            spaced=False,
            kind=PLAIN,
            extra_special_tokens=["<Y>"],
            additional_special_tokens=["<X>"],
        ),
        [27, 55, 29, 259, 220, 264, 262, 27, 82, 29],
    ),
    (
        "configuration_older_extra",
        partial(
            gpt2,
            spaced=False,
            kind=PLAIN,
            additional_special_tokens=["<X>"],
            beside={"additional_special_tokens": ["<Y>"]},
        ),
        [264, 259, 220, 27, 56, 29, 262, 27, 82, 29],
    ),
    (
        "configuration_own",
        partial(
            gpt2,
            spaced=False,
            kind=PLAIN,
            image_token="<Y>",
            extra_special_tokens={"video_token": "<X>"},
            additional_special_tokens=["<s>"],
        ),
        [265, 259, 220, 264, 262, 266],
    ),
    (
        "class_has_it",
        partial(gpt2, spaced=False, kind="GPTNeoXTokenizer", pad_token="<Y>", bos_token=None),
        [27, 55, 29, 259, 220, 264, 262, 27, 82, 29],
    ),
    (
        "class_llama_of_bytes",
        partial(
            gpt2,
            spaced=False,
            kind="LlamaTokenizer",
            model="llama",
            add_bos_token=True,
            bos_token="<s>",
        ),
        [27, 55, 29, 259, 220, 27, 56, 29, 262, 264],
    ),
    (
        "older_files",
        partial(gpt2, bos_token="<s>", add_bos_token=True, beside={"pad_token": "<X>"}),
        [264, 265, 259, 220, 27, 56, 29, 262, 264],
    ),
    (
        "split",
        partial(gpt2, spaced=False, kind=PLAIN, bos_token="<s>", split_special_tokens=True),
        [27, 55, 29, 259, 220, 27, 56, 29, 262, 27, 82, 29],
    ),
    (
        "qwen2_named_object",
        partial(
            gpt2,
            spaced=False,
            kind="Qwen2Tokenizer",
            pad_token={"__type": "AddedToken", "content": "<Y>", "lstrip": True},
        ),
        [27, 55, 29, 259, 220, 264, 262, 27, 82, 29],
    ),
    (
        "cohere_defaults",
        partial(gpt2, spaced=False, kind="CohereTokenizer", cls_token="<X>"),
        [267, 259, 220, 27, 56, 29, 262, 27, 82, 29],
    ),
)

#: Name, writer, text, ids.
CASES = tuple((name, write, NAMED_TEXT, ids) for name, write, ids in NAMED_IDS)
