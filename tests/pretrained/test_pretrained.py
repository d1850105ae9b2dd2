"""A loaded model: text in, text out, and nothing but the pure functions below."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icl_jax
from icl_jax.interop.generation_config import GenerationConfig
from icl_jax.interop.huggingface import make_tiny
from icl_jax.interop.spans import parse_prompt
from icl_jax.interop.tokenizer import save_tokenizer, train_bpe
from icl_jax.language.generation import generate, patched_generate
from icl_jax.language.observed import observe
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.language.sampling import GREEDY, Sampling

CONTEXT, QUESTION = "The lighthouse was built by Ada Brandt in 1871. ", "Who built the lighthouse?"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [{"role": "system", "content": CONTEXT.strip()}, {"role": "user", "content": QUESTION}]


def tiny(family, folder):
    make_tiny(family, folder, jax.random.key(0), vocab_size=300)
    tokenizer = train_bpe([CONTEXT + QUESTION], 300)
    save_tokenizer(folder, dataclasses.replace(tokenizer, chat_template=TEMPLATE))
    return icl_jax.load(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny("llama", tmp_path_factory.mktemp("llama") / "tiny")


@pytest.fixture(scope="module")
def sandwich(tmp_path_factory):
    """With norms on the outputs, and local and global layers."""
    return tiny("gemma3", tmp_path_factory.mktemp("gemma3") / "tiny")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """With settings of its makers, and without a tokenizer."""
    folder = tmp_path_factory.mktemp("settings") / "tiny"
    make_tiny("llama", folder, jax.random.key(0))
    settings = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return icl_jax.load(folder)


def same(first, second):
    return np.array_equal(first.tokens, second.tokens) and np.array_equal(first.kept, second.kept)


def test_all_ways_to_say_what_goes_say_the_same(model):
    text = CONTEXT + QUESTION
    line = model.prompt({"remove": CONTEXT, "keep": QUESTION})
    assert same(line, parse_prompt({"remove": CONTEXT, "keep": QUESTION}, model.tokenizer))
    for asked in (
        {"remove": CONTEXT},
        {"keep": QUESTION},
        {"remove": CONTEXT, "keep": QUESTION},
        {"remove": (0, len(CONTEXT))},
        {"keep": [(len(CONTEXT), len(text))]},
        {"remove": [CONTEXT[:10], (10, 20), CONTEXT[20:]]},
    ):
        assert same(model.prompt(text, **asked), line)
    assert model.prompt(line) is line
    assert line.kept[0] == 0, "BOS stays"
    assert model.prompt(text, remove=CONTEXT, keep_bos=False).kept[0] > 0


def test_messages_go_by_their_numbers(model):
    flagged = [{**one, "keep": number == 1} for number, one in enumerate(CHAT)]
    line = parse_prompt({"messages": flagged}, model.tokenizer)
    for asked in ({"remove": 0}, {"remove": [0]}, {"keep": -1}):
        assert same(model.prompt(CHAT, **asked), line)
    assert same(model.prompt(flagged), line)
    whole = model.prompt(CHAT)
    np.testing.assert_array_equal(whole.tokens, line.tokens)
    assert len(whole.kept) == len(whole.tokens)


@pytest.mark.slow
def test_token_ids_go_by_their_positions(llama):
    tokens = [3, 1, 4, 1, 5, 9]
    for one in (tokens, np.array(tokens), jnp.array(tokens)):
        assert llama.prompt(one, remove=[1, 2]).kept.tolist() == [0, 3, 4, 5]
        assert llama.prompt(one, keep=[0, 5]).kept.tolist() == [0, 5]
    assert len(llama.generate(tokens, 3, keep=[0, 5]).patched.tokens_N) == 3


@pytest.mark.wide(2)
@pytest.mark.parametrize("family", ("model", "sandwich"))
def test_the_verbs_are_the_pure_functions(family, request):
    model = request.getfixturevalue(family)
    prompt = model.prompt(CONTEXT + QUESTION, remove=CONTEXT)
    run = (model.model, model.params, prompt.tokens)
    bank = model.patches(CONTEXT + QUESTION, remove=CONTEXT)
    expected = prompt_patches(*run, prompt.kept)
    jax.tree.map(np.testing.assert_array_equal, bank, expected)
    logits = model.logits(prompt)
    np.testing.assert_array_equal(logits.full_KV, full_logits(*run, prompt.kept))
    np.testing.assert_array_equal(logits.patched_KV, patched_logits(*run, bank))
    np.testing.assert_array_equal(logits.alone_KV, alone_logits(*run, prompt.kept))
    np.testing.assert_allclose(logits.patched_KV, logits.full_KV, rtol=1e-3, atol=1e-4)
    seen = model.observe(QUESTION, capture=("final",))
    tokens_T = model.tokenizer.encode(QUESTION).tokens_T
    expected = observe(model.model, model.params, tokens_T, capture=("final",))
    jax.tree.map(np.testing.assert_array_equal, seen, expected)


def test_three_runs_write_and_two_of_them_the_same(model):
    prompt = model.prompt(CONTEXT + QUESTION, remove=CONTEXT)
    found = model.generate(prompt, 6)
    run = (model.model, model.params)
    stop = {"stop": model.stop}
    expected_N = generate(*run, prompt.tokens, 6, **stop)
    np.testing.assert_array_equal(found.full.tokens_N, expected_N)
    np.testing.assert_array_equal(found.patched.tokens_N, expected_N)
    alone_N = generate(*run, prompt.tokens[prompt.kept], 6, positions_T=prompt.kept, **stop)
    np.testing.assert_array_equal(found.alone.tokens_N, alone_N)
    patched = patched_generate(*run, prompt.tokens, prompt.kept, 6, **stop)
    np.testing.assert_array_equal(found.measured.kl_N, patched.kl_N)
    assert found.text == found.full.text == str(found.full) == model.tokenizer.decode(expected_N)
    assert "patched, without:" in repr(found) and "(100% of the tokens)" in repr(found)


def test_several_prompts_draw_what_each_of_them_draws(model):
    prompts = model.prompt([CONTEXT + QUESTION, CONTEXT + "Where?"], remove=[CONTEXT, CONTEXT])
    drawn = {"sampling": Sampling(1.0, top_k=20), "stop": ()}
    key = jax.random.key(3)
    for number, written in enumerate(model.generate(prompts, 4, key=key, **drawn)):
        one = prompts[number]
        alone_N = generate(
            model.model,
            model.params,
            one.tokens[one.kept],
            4,
            positions_T=one.kept,
            key=jax.random.fold_in(key, number),
            **drawn,
        )
        np.testing.assert_array_equal(written.alone.tokens_N, alone_N)


@pytest.mark.slow
def test_several_prompts_are_answered_one_by_one(model):
    texts = [CONTEXT + QUESTION, CONTEXT + "Where?"]
    prompts = model.prompt(texts, remove=[CONTEXT, CONTEXT])
    banks = model.patches(texts, remove=[CONTEXT, CONTEXT])
    assert [bank.kept_K.shape[0] for bank in banks] == [len(one.kept) for one in prompts]
    written = model.generate(prompts, 4)
    assert [one.alone.text for one in written] == [
        model.generate(one, 4).alone.text for one in prompts
    ]
    logits = model.logits([*prompts, QUESTION])
    assert [one.alone_KV is None for one in logits] == [False, False, True]
    alone = model.logits(prompts[1])
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5),
        (logits[1].full_KV, logits[1].patched_KV, logits[1].alone_KV),
        (alone.full_KV, alone.patched_KV, alone.alone_KV),
    )
    with pytest.raises(ValueError, match="nothing of prompt 1 is removed"):
        model.generate([prompts[0], QUESTION], 4)
    assert len(model.logits(texts)) == len(model.attribute(prompts)) == 2
    assert len(model.observe(texts, capture=("final",))) == 2


def test_writing_can_be_read_and_changed_by_name(model):
    plain = model.generate(QUESTION, 5, capture=("layers.1.output", "final"))
    length = len(model.prompt(QUESTION).tokens) + len(plain.full.tokens_N) - 1
    assert plain.activations["final"].shape == (length, model.model.width)
    edit = {"layers.1.output": lambda hidden: -hidden}
    assert model.generate(QUESTION, 5, edit=edit).text != plain.text
    with pytest.raises(ValueError, match="capture and edit are of one run"):
        model.generate(CONTEXT + QUESTION, 5, remove=CONTEXT, edit=edit)


def test_shares_of_removed_tokens_add_up_to_the_update(model):
    prompt = model.prompt(CONTEXT + QUESTION, remove=CONTEXT)
    found = model.attribute(prompt)
    totals_L = found.shares_LAT.sum(axis=(1, 2)) + found.remainder_L
    np.testing.assert_allclose(totals_L, 1, rtol=1e-3)
    assert not np.any(found.shares_LAT[:, :, prompt.kept])
    assert len(found.texts) == len(prompt.tokens)
    assert "".join(found.texts[1:]) == CONTEXT + QUESTION
    assert len(found.top(3, layer=0)) == 3


@pytest.mark.wide(4)
@pytest.mark.parametrize("form", ("checkpoint", "peft"))
@pytest.mark.parametrize("family", ("model", "sandwich"))
def test_an_export_is_read_back_and_answers_alone(family, form, request, tmp_path):
    model = request.getfixturevalue(family)
    prompt = model.prompt(CONTEXT + QUESTION, remove=CONTEXT)
    exported = model.export(prompt, tmp_path / form, form=form)
    assert exported.relative_error < 1e-3
    if form == "peft":
        assert (exported.folder / "adapter_model.safetensors").is_file()
        return
    again = icl_jax.load(exported.folder)
    logits_KV = again.logits(prompt.tokens[prompt.kept]).full_KV
    expected_V = model.logits(prompt).full_KV[-1]
    np.testing.assert_allclose(logits_KV[-1], expected_V, rtol=1e-2, atol=1e-3)


def test_settings_that_are_not_applied_are_said(llama):
    tokens = [3, 1, 4, 1, 5]
    every = ("do_sample = True", "temperature = 0.6", "top_k = 20", "repetition_penalty = 1.1")
    assert llama.generate(tokens, 2).not_applied == every
    assert llama.sampling == Sampling(0.6, 20, repetition_penalty=1.1)
    drawn = {"sampling": llama.sampling, "key": jax.random.key(0)}
    assert llama.generate(tokens, 2, **drawn).not_applied == ()
    # All of them are replaced by one's own.
    assert llama.generate(tokens, 2, sampling=Sampling(repetition_penalty=1.2)).not_applied == ()
    for shown in (repr(llama), repr(llama.generate(tokens, 2))):
        assert "generation_config.json, not applied: do_sample = True, temperature" in shown


def test_what_the_makers_mean_is_how_it_writes(llama):
    greedy = GenerationConfig(repetition_penalty=1.3, temperature=0.7)
    found = dataclasses.replace(llama.checkpoint, generation=greedy)
    mild = dataclasses.replace(llama, checkpoint=found)
    assert mild.sampling == Sampling(repetition_penalty=1.3)
    every = GenerationConfig(True, 0.7, 20, 0.9, 0.05, 1.3, others=(("of_tomorrow", 1),))
    found = dataclasses.replace(llama.checkpoint, generation=every)
    wild = dataclasses.replace(llama, checkpoint=found)
    assert wild.sampling == Sampling(0.7, 20, 0.9, 0.05, 1.3)
    again = wild.generate([3, 1, 4], 1, sampling=wild.sampling, key=jax.random.key(0))
    assert again.not_applied == ("of_tomorrow = 1",)
    tokens = [3, 1, 4, 1, 5]
    written = mild.generate(tokens, 8, sampling=mild.sampling)
    expected = generate(llama.model, llama.params, tokens, 8, sampling=mild.sampling)
    np.testing.assert_array_equal(written.full.tokens_N, expected)
    assert not written.not_applied
    assert written.text != mild.generate(tokens, 8).text


def test_what_ends_a_text_ends_it(model):
    stop = int(model.generate(QUESTION, 3).full.tokens_N[0])
    assert model.generate(QUESTION, 3, stop=[stop]).full.tokens_N.tolist() == [stop]
    assert model.stop == model.tokenizer.eos_ids
    assert model.checkpoint.generation == GenerationConfig() or model.sampling == GREEDY


def test_a_stop_token_that_the_model_does_not_have_is_named(llama):
    found = dataclasses.replace(llama.checkpoint, generation=GenerationConfig(eos_ids=(99999,)))
    odd = dataclasses.replace(llama, checkpoint=found)
    with pytest.raises(ValueError, match="eos_token_id = 99999 .* is no token of the model's voc"):
        odd.generate([1, 2, 3], 2)
    assert len(odd.generate([1, 2, 3], 2, stop=()).full.tokens_N) == 2


def test_token_ids_are_whole_numbers(llama):
    for asked in ({}, {"keep": [1]}):
        for bad in ([1, True], np.ones(2, bool)):
            with pytest.raises(TypeError, match="prompt: tokens must be integers, got"):
                llama.prompt(bad, **asked)
        with pytest.raises(ValueError, match="prompt: tokens must be token ids, from 0 to"):
            llama.prompt([1, 2**40], **asked)


def test_it_shows_itself_in_a_few_short_lines(model, llama):
    for one in (model, llama):
        lines = repr(one).splitlines()
        assert len(lines) <= 5 and max(map(len, lines)) <= 120
    assert "chat template" in repr(model) and "texts begin with BOS" in repr(model)
    assert "prompts are token ids" in repr(llama)
    prompt = model.prompt(CONTEXT + QUESTION, remove=CONTEXT)
    assert repr(prompt).startswith(f"Prompt({len(prompt.tokens)} tokens, ")
    for record in (model.logits(prompt), model.attribute(prompt), model.checkpoint):
        assert "Array(" not in repr(record) and len(repr(record)) < 600
    assert len(repr(model.tokenizer)) < 120


def test_a_notebook_shows_the_lines_and_a_tree_and_fetches_nothing(model):
    shown = model._repr_html_()
    assert shown.startswith("<pre>Pretrained(tiny: ") and "treescope" in shown
    assert "http://" not in shown and "https://" not in shown


@pytest.mark.parametrize(
    ("asked", "text"),
    (
        ({"remove": "lighthouse"}, "'lighthouse' is 2 times in the prompt"),
        ({"remove": "the lightouse"}, "'the lightouse' is not in the prompt"),
        ({"remove": ""}, "is empty"),
        ({"remove": (5, 900)}, r"the span \(5, 900\) is not in the text of"),
        ({"remove": CONTEXT, "keep": CONTEXT}, "share a part"),
        ({"remove": CONTEXT[:5], "keep": QUESTION}, "neither in remove nor in keep"),
        ({"keep": CONTEXT + QUESTION}, "is not in the prompt|nothing"),
    ),
)
def test_a_part_that_cannot_be_is_an_error(model, asked, text):
    prompt = CONTEXT + QUESTION
    with pytest.raises(ValueError, match=text):
        model.patches(prompt, **asked)


def test_other_mistakes_say_what_to_do(model, llama, tmp_path):
    with pytest.raises(ValueError, match="nothing is removed.*Say what goes: remove=TEXT"):
        model.patches(QUESTION)
    with pytest.raises(ValueError, match="nothing of prompt 1 is removed"):
        model.attribute([CHAT, QUESTION], remove=[0, None])
    with pytest.raises(ValueError, match="there is no number 7 among 2"):
        model.prompt(CHAT, remove=7)
    with pytest.raises(TypeError, match="of messages or token ids is a number"):
        model.prompt(CHAT, remove="system")
    with pytest.raises(TypeError, match="must be a text, messages, token ids"):
        model.prompt(3.5)
    with pytest.raises(ValueError, match="remove must be a list with that of each of the 2"):
        model.prompt([QUESTION, QUESTION], remove=CONTEXT)
    with pytest.raises(ValueError, match="leave remove and keep out"):
        model.prompt(model.prompt(CHAT, remove=0), remove=1)
    with pytest.raises(ValueError, match="give token ids instead of a text"):
        llama.generate("text", 3)
    with pytest.raises(ValueError, match="export: a folder holds one prompt"):
        model.export([CHAT, CHAT], tmp_path / "x", remove=[0, 0])
    with pytest.raises(ValueError, match="observe: bank is of one prompt, got 2 prompts"):
        model.observe([CHAT, CHAT], remove=[0, 0], bank=model.patches(CHAT, remove=0))
    with pytest.raises(ValueError, match="form must be one of 'checkpoint', 'peft'"):
        model.export(CHAT, tmp_path / "x", remove=0, form="lora")
    with pytest.raises(ValueError, match="run must be one of full, got 'patched'"):
        model.logits(QUESTION).top(run="patched")
