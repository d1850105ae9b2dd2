"""Chat templates: the text that they make, and which part of it is whose."""

import dataclasses
import datetime
import re
import sys
import threading
import time
from pathlib import Path

import pytest

from icl_jax.interop.chat import DATE, render_chat, render_messages
from icl_jax.interop.template_process import PROCESS
from icl_jax.interop.tokenizer import train_bpe
from tests.interop.templates import TEMPLATES

TRAINED = dataclasses.replace(
    train_bpe(["chat"], 258), special_tokens={"bos_token": "<s>", "eos_token": "</s>"}
)
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi, who are you?"}
ANSWER = {"role": "assistant", "content": "A model."}
LAST = {"role": "user", "content": "user"}  # A content that also stands in headers.

#: What each style makes of system, user, answer, user: one part per message, then the header.
PARTS = {
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\n"
        "Today: 26 Jul 2024\n\nBe brief.<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\nHi, who are you?<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\nA model.<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\nuser<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n",
        "<|im_start|>user\nHi, who are you?<|im_end|>\n",
        "<|im_start|>assistant\nA model.<|im_end|>\n",
        "<|im_start|>user\nuser<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    "gemma": (  # It knows no system.
        "<s><start_of_turn>user\nHi, who are you?<end_of_turn>\n",
        "<start_of_turn>model\nA model.<end_of_turn>\n",
        "<start_of_turn>user\nuser<end_of_turn>\n",
        "<start_of_turn>model\n",
    ),
    "mistral": (  # The system's words go into the first turn.
        "<s>[INST] Be brief.",
        "\n\nHi, who are you? [/INST]",
        " A model.</s>",
        "[INST] user [/INST]",
        "",
    ),
}


def tokenizer(template):
    return dataclasses.replace(TRAINED, chat_template=template)


def conversation(style):
    return [USER, ANSWER, LAST] if style == "gemma" else [SYSTEM, USER, ANSWER, LAST]


@pytest.mark.parametrize("style", TEMPLATES)
def test_every_style_gives_its_text_and_every_part_goes_to_its_message(style):
    text, ends = render_messages(tokenizer(TEMPLATES[style]), conversation(style))
    assert text == "".join(PARTS[style])
    parts = [text[begin:end] for begin, end in zip([0, *ends], [*ends, None], strict=True)]
    assert parts == list(PARTS[style])


@pytest.mark.parametrize("style", TEMPLATES)
def test_an_answer_in_the_end_is_followed_by_no_header(style):
    messages = conversation(style)[:-1]
    text, ends = render_messages(tokenizer(TEMPLATES[style]), messages)
    assert text == "".join(PARTS[style][:-2]) and ends[-1] == len(text)
    assert text == render_chat(tokenizer(TEMPLATES[style]), messages, add_generation_prompt=False)


@pytest.mark.parametrize("style", TEMPLATES)
def test_what_is_said_is_found_where_it_is_stripped_empty_or_looks_like_a_pattern(style):
    messages = [
        {"role": "user", "content": "  (.*) [INST] \n"},
        {"role": "assistant", "content": "model\n"},
        {"role": "user", "content": "{{ messages }} \\n"},
    ]
    text, ends = render_messages(tokenizer(TEMPLATES[style]), messages)
    first, second, third, _ = (
        text[begin:end] for begin, end in zip([0, *ends], [*ends, None], strict=True)
    )
    assert "(.*) [INST]" in first and "model" in second and "{{ messages }} \\n" in third


def test_a_template_without_a_clock_gets_the_same_day_every_day():
    asks = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}none{% endif %}"
    assert render_chat(tokenizer(asks), [USER]) == "none"
    takes = "{{ strftime_now('%d %b %Y') }}"
    assert render_chat(tokenizer(takes), [USER]) == "26 Jul 2024"
    day = datetime.datetime(2024, 7, 26)
    assert all(day.strftime(form) == text for form, text in DATE.items())
    with pytest.raises(ValueError, match="strftime_now knows %Y, .*, got '%Q'"):
        render_chat(tokenizer("{{ strftime_now('%Y %Q') }}"), [USER])


@pytest.mark.parametrize(
    "template, expected",
    (
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("a{% generation %}{{ messages[0].role }}{% endgeneration %}b", "auserb"),
        ("{% if tools is not none or documents is not none %}tools{% endif %}", ""),
        ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),
        ("{{ {'b': 2, 'a': 1} | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":1,"b":2}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{{ bos_token ~ eos_token ~ unk_token }}", "<s></s>"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "1"),
    ),
)
def test_templates_find_what_they_need(template, expected):
    assert render_chat(tokenizer(template), [USER]) == expected


@pytest.mark.parametrize(
    "template",
    (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__['re'] }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{% include '/etc/passwd' %}",
        "{{ range(999999999) | list }}",
    ),
)
def test_a_template_reaches_nothing_outside(template):
    with pytest.raises(ValueError, match="render_chat: the template refuses these messages"):
        render_chat(tokenizer(template), [USER])


@pytest.mark.parametrize(
    "template, reason",
    (
        ("{{ raise_exception('Roles must alternate!') }}", "Roles must alternate!"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{% if %}", "line 1 of the chat template is damaged"),
        ("{% generation %}", "line 1 of the chat template is damaged"),
    ),
)
def test_a_template_that_refuses_is_quoted(template, reason):
    with pytest.raises(ValueError, match=reason):
        render_chat(tokenizer(template), [USER])


def test_a_checkpoint_without_a_template_is_told_to_take_texts():
    with pytest.raises(ValueError, match="no chat template. Give texts"):
        render_chat(tokenizer(None), [USER])


@pytest.mark.parametrize("message", ("hello", {"role": "user"}, {"role": 1, "content": "x"}))
def test_messages_are_checked(message):
    for render in (render_chat, render_messages):
        with pytest.raises(ValueError, match="message 2 must be"):
            render(tokenizer("x"), [USER, message])
        with pytest.raises(ValueError, match="there are no messages"):
            render(tokenizer("x"), [])


@pytest.mark.parametrize(
    "template, reason",
    (
        ("{{ messages[1].content }}", "message 1 .*does not write it once"),
        ("{{ messages[1].content }}{{ messages[0].content }}", "message 2 .*after the one before"),
        ("{% for m in messages %}{{ m.content * 2 }}{% endfor %}", "message 1 .*does not write"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes what they say"),
    ),
)
def test_text_that_cannot_be_told_apart_is_refused(template, reason):
    with pytest.raises(ValueError, match=rf'{reason}.*"spans"'):
        render_messages(tokenizer(template), [USER, ANSWER])


@pytest.mark.parametrize(
    "template, contents, end",
    (
        # Alone, the first message is followed by the end of the text, by other marks of the same
        # length, or by what the second begins with.
        ("{% for m in messages %}<{{ m.content }}>\n{% endfor %}</s>", ("hi", "you"), 3),
        (
            "{% for m in messages %}<{{ m.content }}{{ '!!' if loop.last else '>>' }}{% endfor %}",
            ("hi", "you"),
            3,
        ),
        ("{% for m in messages %}<{{ m.content }}>{% endfor %}<b", ("hi", "b you"), 3),
    ),
)
def test_where_nobody_can_say_whose_the_text_between_is_the_message_ends_with_its_content(
    template, contents, end
):
    messages = [{"role": "user", "content": content} for content in contents]
    text, ends = render_messages(tokenizer(template), messages)
    assert (ends[0], text[:end]) == (end, f"<{contents[0]}")


def test_a_missing_package_says_what_to_install(monkeypatch):
    PROCESS.close()
    for name in ("jinja2", "jinja2.exceptions", "jinja2.sandbox"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'jinja2 .*pip install "icl_jax\[huggingface\]"'):
        render_chat(tokenizer("never compiled before"), [USER])


@pytest.mark.parametrize(
    "template",
    (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ '%1000000000s' % 'a' }}",
        "{{ 'a' * 10**10 }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{% set ns = namespace(t='a') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}"
        "{% endfor %}{{ ns.t }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages | map(attribute='content') | join | length }}" + "{{ 'x' * 5000000 }}",
        "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    ),
)
def test_a_template_ends_in_time_and_takes_little_memory(template):
    render_chat(tokenizer("{{ messages[0].content }}"), [USER])  # The process is there.
    peaks = [0]
    status, done = Path(f"/proc/{PROCESS._process.pid}/status"), threading.Event()

    def watch():
        # Of the process itself: usage counts what its parent had when it began, too.
        over = False
        while not over:  # Once more when it is over: a process that lives has its peak still.
            over = done.wait(0.005)
            found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
            peaks.append(int(found[1]) if found else 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    reason = "render_chat: .*(takes more than|memory|writes|RecursionError|damaged)"
    try:
        with pytest.raises(ValueError, match=reason):
            render_chat(tokenizer(template), [USER])
    finally:
        done.set()
        watcher.join()
    assert time.monotonic() - start < 10
    assert max(peaks) < 600_000  # Kilobytes.
    assert max(peaks) > 0 or not Path("/proc/self/status").exists()
    # The next template is rendered all the same.
    assert render_chat(tokenizer("{{ messages[0].content }}"), [USER]) == USER["content"]


def test_one_process_renders_all_conversations_and_is_made_again_after_it_was_ended():
    assert render_chat(tokenizer("x"), [USER]) == "x"
    process = PROCESS._process
    assert render_chat(tokenizer("y"), [USER]) == "y" and PROCESS._process is process
    process.kill()
    process.wait()
    assert render_chat(tokenizer("z"), [USER]) == "z" and PROCESS._process is not process
