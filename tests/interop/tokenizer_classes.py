"""Tiny tokenizers of which a class of transformers makes parts anew.

As in ``tokenizer_folders``: a function that writes a folder, and the ids of ``AutoTokenizer``.
"""

from functools import partial

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from tests.interop.tokenizer_folders import (
    END,
    GPT2,
    PLAIN,
    bert,
    finish,
    gpt2,
    write_changed,
)

SPACED_SPECIAL = ("<unk>", "<s>", "</s>")
SPACED_MERGES = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("f", "o"), ("fo", "x"), ("▁", "fox")]
SPACED_PIECES = {
    text: index
    for index, text in enumerate(
        [
            *SPACED_SPECIAL,
            *(f"<0x{byte:02X}>" for byte in range(256)),
            *"▁abcdefghijklmnopqrstuvwxyz",
            *map("".join, SPACED_MERGES),
        ]
    )
}


def sentencepiece(folder, *, kind="LlamaTokenizer", model=None, change=None, **config):
    """BPE of characters with bytes to fall back on, as Llama 2's and Gemma's files have it."""
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=SPACED_PIECES,
            merges=SPACED_MERGES,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    if kind == "GemmaTokenizer":
        backend.normalizer = spaces
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    backend.add_special_tokens(list(SPACED_SPECIAL))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPACED_PIECES["<s>"])]
    )
    write_changed(folder, backend, change)
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<s>", "mask_token": "<s>"}
    finish(folder, kind, None, model, {"unk_token": "<unk>", **ends, **config})


def lower(described):
    described["normalizer"] = {"type": "Lowercase"}


def begin(described):
    """An end of a text in front of it."""
    described["post_processor"] = around(GPT2 - 1)


def around(number):
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": END, "type_id": 0}}, *text],
        "pair": [*text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {END: {"id": END, "ids": [number], "tokens": [END]}},
    }


def whole(described):
    described["pre_tokenizer"] = None


def by_chance(described):
    described["model"]["dropout"] = 0.9


def added(described):
    about = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    described["added_tokens"].append({"id": GPT2, **about, "content": "12"})


def long_words(described):
    described["model"]["max_input_chars_per_word"] = 2


#: What a class makes anew counts there, and not what tokenizer.json has; for the class that takes
#: it as it stands, and for models of Mistral's, the file counts.
PARTS_TEXT = "THE fox12!"
PARTS_IDS = (
    ("gpt2_lower", partial(gpt2, spaced=False, change=lower), [51, 39, 36, 262, 16, 17, 0]),
    ("gpt2_begin", partial(gpt2, spaced=False, change=begin), [263, 51, 39, 36, 262, 16, 17, 0]),
    ("gpt2_whole", partial(gpt2, spaced=False, change=whole), [51, 39, 36, 262, 16, 17, 0]),
    ("gpt2_by_chance", partial(gpt2, spaced=False, change=by_chance), [51, 39, 36, 262, 16, 17, 0]),
    (
        "gpt2_added_without_decoder",
        partial(gpt2, spaced=False, change=added),
        [51, 39, 36, 262, 264, 0],
    ),
    (
        "gpt2_added_that_its_decoder_lacks",
        partial(gpt2, spaced=False, change=added, added_tokens_decoder={}),
        [51, 39, 36, 262, 16, 17, 0],
    ),
    (
        "codegen_lower",
        partial(gpt2, spaced=False, kind="CodeGenTokenizer", change=lower),
        [51, 39, 36, 262, 16, 17, 0],
    ),
    (
        "neox_lower",
        partial(gpt2, spaced=False, kind="GPTNeoXTokenizer", change=lower),
        [51, 39, 36, 262, 16, 17, 0],
    ),
    (
        "neox_begin",
        partial(gpt2, spaced=False, kind="GPTNeoXTokenizer", change=begin),
        [51, 39, 36, 262, 16, 17, 0],
    ),
    (
        "neox_begin_by_its_model",
        partial(gpt2, spaced=False, kind=None, model="gpt_neox", change=begin),
        [51, 39, 36, 262, 16, 17, 0],
    ),
    (
        "qwen2_lower",
        partial(gpt2, spaced=False, kind="Qwen2Tokenizer", change=lower),
        [51, 39, 36, 262, 16, 17, 0],
    ),
    (
        "qwen2_begin",
        partial(gpt2, spaced=False, kind="Qwen2Tokenizer", change=begin),
        [263, 51, 39, 36, 262, 16, 17, 0],
    ),
    (
        "qwen2_whole",
        partial(gpt2, spaced=False, kind="Qwen2Tokenizer", change=whole),
        [51, 39, 36, 262, 16, 17, 0],
    ),
    (
        "qwen2_by_its_model",
        partial(gpt2, spaced=False, model="qwen2", add_prefix_space=True),
        [220, 51, 39, 36, 262, 220, 16, 220, 17, 220, 0],
    ),
    (
        "qwen3_5_by_its_model",
        partial(gpt2, spaced=False, kind=PLAIN, model="qwen3_5_moe_text", add_prefix_space=True),
        [220, 51, 39, 36, 262, 220, 16, 220, 17, 220, 0],
    ),
    (
        "cohere_digits",
        partial(gpt2, spaced=False, kind="CohereTokenizer", add_prefix_space=True),
        [220, 51, 39, 36, 262, 220, 16, 220, 17, 220, 0],
    ),
    ("plain_lower", partial(gpt2, spaced=False, kind=PLAIN, change=lower), [259, 262, 16, 17, 0]),
    (
        "plain_begin",
        partial(gpt2, spaced=False, kind=PLAIN, model="gpt_neox", change=begin),
        [263, 51, 39, 36, 262, 16, 17, 0],
    ),
    (
        "mistral_begin",
        partial(gpt2, spaced=False, kind="GPTNeoXTokenizer", model="mistral", change=begin),
        [263, 51, 39, 36, 262, 16, 17, 0],
    ),
    (
        "llama_of_bytes",
        partial(gpt2, spaced=False, kind="LlamaTokenizer", change=begin),
        [263, 51, 39, 36, 262, 16, 17, 0],
    ),
)

#: A class also says whether marks join their letters.
MARKS_TEXT = "e\u0301 the"
MARKS_IDS = (
    (
        "gpt2_marks",
        partial(gpt2, spaced=False, kind="GPT2Tokenizer", change=whole),
        [68, 136, 223, 258],
    ),
    (
        "neox_marks",
        partial(gpt2, spaced=False, kind="GPTNeoXTokenizer", change=whole),
        [127, 102, 258],
    ),
    (
        "qwen2_marks",
        partial(gpt2, spaced=False, kind="Qwen2Tokenizer", change=whole),
        [127, 102, 258],
    ),
    (
        "cohere_marks",
        partial(gpt2, spaced=False, kind="CohereTokenizer", change=whole),
        [127, 102, 258],
    ),
)

#: Llama 2's and Gemma's: where a text begins with a space, and what follows an added token.
SPACED_TEXT = "the</s>fox Z"
SPACED_IDS = (
    ("llama", partial(sentencepiece), [1, 288, 2, 290, 259, 93]),
    ("llama_legacy", partial(sentencepiece, legacy=True), [1, 288, 2, 291, 259, 93]),
    ("llama_legacy_not", partial(sentencepiece, legacy=False), [1, 288, 2, 290, 259, 93]),
    ("llama_lower", partial(sentencepiece, change=lower), [1, 288, 2, 290, 259, 93]),
    ("llama_of_mistral", partial(sentencepiece, model="mistral"), [1, 288, 2, 291, 259, 93]),
    (
        "gemma_lower",
        partial(sentencepiece, kind="GemmaTokenizer", change=lower),
        [1, 279, 287, 2, 290, 259, 93],
    ),
    ("gemma", partial(sentencepiece, kind="GemmaTokenizer"), [1, 279, 287, 2, 290, 259, 93]),
    ("spaced_plain", partial(sentencepiece, kind=PLAIN), [1, 288, 2, 291, 259, 93]),
)

#: BERT's words, and what it puts around a text.
WORDS_TEXT = "THE fox"
WORDS_IDS = (
    ("bert_long_words", partial(bert, lower=True, change=long_words), [2, 5, 7, 3]),
    ("plain_long_words", partial(bert, lower=True, kind=PLAIN, change=long_words), [2, 1, 1, 3]),
    ("bert_sep", partial(bert, lower=True, sep_token="fox"), [2, 5, 7, 7]),
    (
        "electra",
        partial(bert, lower=True, kind="ElectraTokenizer", do_lower_case=False),
        [2, 1, 7, 3],
    ),
)

#: Name, writer, text, ids.
CASES = tuple(
    (name, write, text, ids)
    for text, rows in (
        (PARTS_TEXT, PARTS_IDS),
        (MARKS_TEXT, MARKS_IDS),
        (SPACED_TEXT, SPACED_IDS),
        (WORDS_TEXT, WORDS_IDS),
    )
    for name, write, ids in rows
)
