"""Tiny tokenizers whose files do not say the same, and the token ids that transformers reads.

The ids are those of ``AutoTokenizer`` in transformers 5.24, written down; where it is installed,
``test_live_tokenizer.py`` asks it again. Vocabularies are written out, not trained: an id is the
same with every version of ``tokenizers``.
"""

import json
from functools import partial

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

END, ADDED, SECOND = "<|endoftext|>", "<|im_end|>", "don't"
#: Bytes are tokens 0 to 255, pairs of pieces follow, and the end of a text is the last.
MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("t", "he"), ("f", "o"), ("fo", "x"), ("Ġ", "fox")]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
PIECES = {text: index for index, text in enumerate([*BYTES, *map("".join, MERGES), END])}
#: How Qwen 2 cuts a text before bytes are looked at.
QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    *BERT_SPECIAL,
    "the",
    "The",
    "fox",
    "cafe",
    "café",
    "Café",
    "##s",
    "don",
    "'",
    "t",
    "<",
    ">",
)
WORD_PIECES = {text: index for index, text in enumerate(WORDS)}


def write_json(file, value):
    file.write_text(json.dumps(value), encoding="utf-8")


def decoder(*tokens):
    """What ``added_tokens_decoder`` says of tokens and their numbers."""
    return {str(number): {"content": text, **about} for number, text, about in tokens}


def gpt2(
    folder,
    *,
    spaced=None,
    kind="GPT2Tokenizer",
    added=None,
    model=None,
    change=None,
    beside=None,
    **config,
):
    """Byte-level BPE; in tokenizer.json where ``spaced`` says what it does, else in older files.

    ``change`` edits what stands in tokenizer.json; ``beside`` is special_tokens_map.json.
    """
    if spaced is None:
        write_json(folder / "vocab.json", PIECES)
        merges = "\n".join(map(" ".join, MERGES))
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    else:
        backend = tokenizers.Tokenizer(models.BPE(vocab=PIECES, merges=MERGES))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
        if kind == "Qwen2Tokenizer":
            backend.normalizer = normalizers.NFC()
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(tokenizers.Regex(QWEN_2), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=False),
                ]
            )
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([END])
        write_changed(folder, backend, change)
    finish(folder, kind, added, model, {"eos_token": END, "unk_token": END, **config})
    if beside is not None:
        write_json(folder / "special_tokens_map.json", beside)


def bert(
    folder, *, lower=None, kind="BertTokenizer", added=None, model=None, change=None, **config
):
    """WordPiece; in tokenizer.json where ``lower`` says what it does, else in vocab.txt."""
    if lower is None:
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    else:
        backend = tokenizers.Tokenizer(models.WordPiece(vocab=WORD_PIECES, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=lower)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        backend.add_special_tokens(list(BERT_SPECIAL))
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        write_changed(folder, backend, change)
    finish(folder, kind, added, model, config)


def write_changed(folder, backend, change):
    described = json.loads(backend.to_str())
    if change is not None:
        change(described)
    write_json(folder / "tokenizer.json", described)


def finish(folder, kind, added, model, config):
    if model is not None:
        write_json(folder / "config.json", {"model_type": model})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": kind, **config})
    if added is not None:
        write_json(folder / "added_tokens.json", added)
        write_json(folder / "special_tokens_map.json", {"additional_special_tokens": [ADDED]})


def in_decoder(first):
    """Two tokens with the numbers from ``first`` on, the second of which takes spaces with it."""
    about = {"lstrip": True, "normalized": False, "special": False}
    return decoder((first, ADDED, {"special": True}), (first + 1, SECOND, about))


def in_file(first):
    return {ADDED: first, SECOND: first + 1}


GPT2, BERT = len(PIECES), len(WORDS)  # The first numbers that are free: 264 and 17.
PLAIN = "PreTrainedTokenizerFast"  # The class that makes nothing anew.

#: Name, a function that writes a folder, and the ids of a text with tokens that one file alone has.
ADDED_TEXT = "the fox<|im_end|> the don't"
ADDED_IDS = (
    (
        "gpt2_decoder",
        partial(gpt2, spaced=False, added_tokens_decoder=in_decoder(GPT2)),
        [259, 262, 264, 258, 265],
    ),
    ("gpt2_file", partial(gpt2, spaced=False, added=in_file(GPT2)), [259, 262, 264, 258, 220, 265]),
    (
        "older_gpt2_decoder",
        partial(gpt2, added_tokens_decoder=in_decoder(GPT2)),
        [259, 262, 264, 258, 265],
    ),
    ("older_gpt2_file", partial(gpt2, added=in_file(GPT2)), [259, 262, 264, 258, 220, 265]),
    (
        "plain_decoder",
        partial(gpt2, spaced=False, kind=PLAIN, added_tokens_decoder=in_decoder(GPT2)),
        [259, 262, 264, 258, 265],
    ),
    (
        "plain_file",
        partial(gpt2, spaced=False, kind=PLAIN, added=in_file(GPT2)),
        [259, 262, 264, 258, 220, 265],
    ),
    # The decoder counts where both are there.
    (
        "decoder_beside_file",
        partial(
            gpt2,
            spaced=False,
            added_tokens_decoder=decoder((GPT2, ADDED, {"special": True})),
            added={SECOND: GPT2},
        ),
        [259, 262, 264, 258, 220, 67, 78, 77, 6, 83],
    ),
    (
        "bert_decoder",
        partial(bert, lower=True, added_tokens_decoder=in_decoder(BERT)),
        [2, 5, 7, 17, 5, 18, 3],
    ),
    ("bert_file", partial(bert, lower=True, added=in_file(BERT)), [2, 5, 7, 17, 5, 18, 3]),
    ("older_bert_file", partial(bert, added=in_file(BERT)), [2, 5, 7, 17, 5, 18, 3]),
)

#: The same of a text in which case and accents count: what BERT's tokenizer.json does to a text is
#: made anew from its configuration, and of no other class.
CASE_TEXT = "The Café foxs"
CASE_IDS = (
    ("bert_lower_but_not", partial(bert, lower=True, do_lower_case=False), [2, 6, 10, 7, 11, 3]),
    ("bert_cased_but_lower", partial(bert, lower=False, do_lower_case=True), [2, 5, 8, 7, 11, 3]),
    ("bert_cased_and_silent", partial(bert, lower=False), [2, 5, 8, 7, 11, 3]),
    ("bert_lower_and_lower", partial(bert, lower=True, do_lower_case=True), [2, 5, 8, 7, 11, 3]),
    ("bert_cased_and_cased", partial(bert, lower=False, do_lower_case=False), [2, 6, 10, 7, 11, 3]),
    (
        "plain_lower_but_not",
        partial(bert, lower=True, kind=PLAIN, do_lower_case=False),
        [2, 5, 8, 7, 11, 3],
    ),
    (
        "plain_cased_but_lower",
        partial(bert, lower=False, kind=PLAIN, do_lower_case=True),
        [2, 6, 10, 7, 11, 3],
    ),
    # The class of a model counts where no file names one.
    (
        "distilbert_by_its_model",
        partial(bert, lower=True, kind=None, model="distilbert", do_lower_case=False),
        [2, 6, 10, 7, 11, 3],
    ),
)

#: The same of a text that may get a space in front: byte-level classes take it from the
#: configuration, the others from tokenizer.json.
SPACE_TEXT = "the fox"
SPACE_IDS = (
    ("gpt2_space_in_configuration", partial(gpt2, spaced=False, add_prefix_space=True), [258, 262]),
    ("gpt2_space_in_file", partial(gpt2, spaced=True, add_prefix_space=False), [259, 262]),
    ("gpt2_space_in_file_and_silent", partial(gpt2, spaced=True), [259, 262]),
    ("gpt2_no_space", partial(gpt2, spaced=False, add_prefix_space=False), [259, 262]),
    (
        "qwen2_space_in_configuration",
        partial(gpt2, spaced=False, kind="Qwen2Tokenizer", add_prefix_space=True),
        [258, 262],
    ),
    ("qwen2_space_in_file", partial(gpt2, spaced=True, kind="Qwen2Tokenizer"), [259, 262]),
    (
        "neox_space_in_configuration",
        partial(gpt2, spaced=False, kind="GPTNeoXTokenizer", add_prefix_space=True),
        [258, 262],
    ),
    ("neox_space_in_file", partial(gpt2, spaced=True, kind="GPTNeoXTokenizer"), [259, 262]),
    (
        "plain_space_in_configuration",
        partial(gpt2, spaced=False, kind=PLAIN, add_prefix_space=True),
        [259, 262],
    ),
    (
        "plain_space_in_file",
        partial(gpt2, spaced=True, kind=PLAIN, add_prefix_space=False),
        [258, 262],
    ),
    (
        "falcon_of_the_class_of_gpt2",
        partial(gpt2, spaced=False, model="falcon", add_prefix_space=True),
        [258, 262],
    ),
    # Mistral's models have no class of their own: whatever a file names, tokenizer.json counts.
    (
        "mistral_of_the_class_of_gpt2",
        partial(gpt2, spaced=False, model="mistral", add_prefix_space=True),
        [259, 262],
    ),
    ("older_gpt2_space", partial(gpt2, add_prefix_space=True), [258, 262]),
    ("older_gpt2_no_space", partial(gpt2, add_prefix_space=False), [259, 262]),
)

#: Name, writer, text, ids.
CASES = tuple(
    (name, write, text, ids)
    for text, rows in ((ADDED_TEXT, ADDED_IDS), (CASE_TEXT, CASE_IDS), (SPACE_TEXT, SPACE_IDS))
    for name, write, ids in rows
)
