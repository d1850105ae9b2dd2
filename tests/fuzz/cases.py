"""What is damaged, and what must not change where the damage does no harm.

Run as ``python -m tests.fuzz.cases FIRST LAST SEED``: prints a line of JSON per case.
"""

import dataclasses
import json
import os
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from icl_jax.interop.chat import render_messages
from icl_jax.interop.huggingface import load
from icl_jax.interop.saving import save
from icl_jax.interop.spans import read_prompts
from icl_jax.interop.template_process import PROCESS
from icl_jax.interop.tokenizer import load_tokenizer, save_tokenizer, train_bpe
from tests.fuzz import damage
from tests.fuzz.damage import Damage, Random, pick

GOLDEN = Path(__file__).parents[1] / "interop" / "golden"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{{ message['content'] | trim }}\n{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
TEXT = "The quick brown fox, café 🙂"
LINES = (
    {"remove": "The quick", "keep": " brown fox", "name": "texts"},
    {"spans": [{"text": "The", "keep": True}, {"text": " quick", "keep": False}], "name": "spans"},
    {"messages": [{**message, "keep": i == 1} for i, message in enumerate(MESSAGES)], "name": "m"},
    {"tokens": [1, 2, 3, 4], "keep": [0, 3], "name": "tokens"},
)
#: What bounds a template by itself: each of these asks for too much, or is no template.
BOMBS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ '%1000000000s' % 'a' }}",
    "{% set ns = namespace(t='ab') %}{% for i in range(70) %}{% set ns.t = ns.t * 2 %}{% endfor %}",
    "{{ 7 ** (7 ** 12) }}",
    "{{ 'a' | center(3000000000) }}",
    "{{ ''.__class__.__mro__ }}{{ cycler.__init__.__globals__ }}",
    "{{ messages[0].nothing.at_all }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% if %}",
    "{{ 'x' * 9000000 }}",
)

#: Options that a family reads, by what they say.
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "vocab_size",
    "n_embd",
    "n_head",
    "n_layer",
    "n_positions",
)
READ = (
    *SIZES,
    "architectures",
    "hidden_act",
    "activation_function",
    "hidden_activation",
    "layer_norm_epsilon",
    "layer_types",
    "model_type",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "tie_word_embeddings",
)
SPECIAL = ("bos_token", "eos_token", "chat_template", "add_prefix_space", "added_tokens_decoder")


def make_folders(folder: Path) -> dict[str, Path]:
    """Undamaged checkpoints: of several families, in one file and in several, with tokenizers."""
    tokenizer = train_bpe([TEXT, "fox and dog " * 20], 300)
    tokenizer = dataclasses.replace(tokenizer, chat_template=TEMPLATE)
    made = {}
    for family in ("llama", "gpt2", "mixtral", "gemma3"):
        made[family] = folder / family
        shutil.copytree(GOLDEN / family, made[family])
        (made[family] / "logits.npz").unlink()
    made["sharded"] = folder / "sharded"
    whole = load(made["llama"])
    save(made["sharded"], whole.model, whole.params, whole.config, max_shard_bytes=30_000)
    for one in made.values():
        save_tokenizer(one, tokenizer)
        change = {"chat_template": None, "add_prefix_space": False, "added_tokens_decoder": {}}
        settings = json.loads((one / "tokenizer_config.json").read_text()) | change
        settings["tokenizer_class"] = "GPT2Tokenizer"
        del settings["chat_template"]
        (one / "tokenizer_config.json").write_text(json.dumps(settings))
        (one / "chat_template.jinja").write_text(TEMPLATE)
        (one / "generation_config.json").write_text(
            json.dumps({"eos_token_id": [1], "temperature": 0.7, "top_p": 0.9, "do_sample": True})
        )
        lines = "\n".join(json.dumps(line) for line in LINES)
        (one / "prompts.jsonl").write_text(lines + "\n")
    return made


# What is read of a folder, and so what must be the same or refused.


def read_weights(folder: Path) -> Any:
    """The model, all its numbers, and how it is meant to generate."""
    found = load(folder)
    numbers = jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), found.params)
    return found.model, numbers, found.generation, found.max_positions


def read_tokenizer(folder: Path) -> Any:
    """Tokens, and what begins and ends a text."""
    found = load_tokenizer(folder)
    tokens = found.encode(TEXT).tokens_T.tolist()
    return tokens, found.decode(tokens), found.bos_id, found.eos_ids, found.chat_template


def read_chat(folder: Path) -> Any:
    """A conversation as text, and where its messages end."""
    try:
        return render_messages(load_tokenizer(folder), MESSAGES)
    finally:
        PROCESS.close()  # So that its memory counts, too.


def read_lines(folder: Path) -> Any:
    """Prompts as tokens, and which are kept."""
    found = read_prompts(folder / "prompts.jsonl", load_tokenizer(folder), vocab_size=300)
    return [(p.name, p.tokens.tolist(), p.kept.tolist()) for p in found]


def replace_template(random: Random, file: Path) -> str:
    """A template that asks for too much."""
    text = pick(random, BOMBS)
    file.write_text(text)
    return f"{file.name}: {text[:60]}"


def strange_rotation(random: Random, file: Path) -> str:
    """Rotary options (of a family that has some) that are none."""
    found = json.loads(file.read_text())
    strange = (
        {"rope_type": "spiral"},
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "yarn", "factor": -2.0},
        {"rope_type": "yarn", "factor": 1e300},
        {"rope_type": "llama3", "factor": 8.0},
        {"rope_type": ["default"]},
        {"rope_theta": 0},
        {"rope_theta": "big"},
        {"rope_type": "default", "twist": 1},
    )
    found["rope_parameters"] = pick(random, strange)
    file.write_text(json.dumps(found))
    return f"{file.name}: rope_parameters = {found['rope_parameters']}"


def cut_template(random: Random, file: Path) -> str:
    """A template that ends before its loop does."""
    text = file.read_text()
    file.write_text(text[: int(random.integers(text.index("{% for") + 2, text.index("{% endfor")))])
    return f"{file.name} cut"


def change_line(random: Random, file: Path) -> str:
    """A line of a prompt file in which something is of another type, missing or too much."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    line = pick(random, lines)
    key = pick(random, [key for key in line if key != "name"])
    kind = pick(random, ("type", "gone", "more", "absurd", "inner"))
    if kind == "type":
        line[key] = pick(
            random, [one for one in damage.STRANGERS if type(one) is not type(line[key])]
        )
    elif kind == "gone":
        del line[key]
    elif kind == "more":
        line["extra"] = 1
    elif kind == "absurd":
        line.clear()
        line.update(tokens=[1, 10**12, 3], keep=[0], name="x")
    else:
        line.clear()
        line.update(spans=[{"text": "a", "keep": "yes"}, {"text": 5, "keep": False}], name="x")
    file.write_text("\n".join(json.dumps(one) for one in lines))
    return f"{file.name}: {kind} of {key}"


def twice_in_line(random: Random, file: Path) -> str:
    """A key of a line that comes twice."""
    lines = file.read_text().splitlines()
    place = int(random.integers(len(lines)))
    key = pick(random, json.loads(lines[place]))
    lines[place] = "{" + json.dumps({key: 1})[1:-1] + ", " + lines[place][1:]
    file.write_text("\n".join(lines))
    return f"{file.name}: {key} twice in line {place + 1}"


def nest_line(random: Random, file: Path) -> str:
    """A line that is nested without end."""
    file.write_text('{"spans": ' + "[" * 100_000)
    return f"{file.name} nested"


Reader = Callable[[Path], Any]
JSON = (damage.truncate, damage.flip_text, damage.nest, damage.twice, damage.empty)
PLAN: tuple[tuple[int, Reader, str, tuple[Damage, ...]], ...] = (
    (26, read_weights, "config.json", (damage.change_type(READ),)),
    (22, read_weights, "config.json", (damage.make_absurd(SIZES),)),
    (14, read_weights, "config.json", JSON),
    (6, read_weights, "config.json", (strange_rotation,)),
    (14, read_weights, "model.safetensors", (damage.truncate, damage.empty)),
    (22, read_weights, "model.safetensors", (damage.flip_header,)),
    (20, read_weights, "model.safetensors", (damage.change_header,)),
    (8, read_weights, "model.safetensors.index.json", JSON),
    (5, read_weights, "generation_config.json", (*JSON, damage.change_type(("top_p",)))),
    (14, read_tokenizer, "tokenizer.json", JSON),
    (8, read_tokenizer, "tokenizer.json", (damage.change_type(("model", "pre_tokenizer")),)),
    (6, read_tokenizer, "tokenizer_config.json", JSON),
    (8, read_tokenizer, "tokenizer_config.json", (damage.change_type(SPECIAL),)),
    (6, read_weights, "", (damage.remove,)),
    (8, read_chat, "chat_template.jinja", (replace_template,)),
    (6, read_chat, "chat_template.jinja", (cut_template, damage.flip_text, damage.empty)),
    (14, read_lines, "prompts.jsonl", (*[change_line] * 5, *[twice_in_line] * 3, nest_line)),
    (7, read_lines, "prompts.jsonl", (damage.flip_text, damage.empty, damage.remove)),
)
COUNT = sum(number for number, *_ in PLAN)


def run(case: int, seed: int, folders: dict[str, Path], expected: dict[Any, Any]) -> dict[str, Any]:
    """Damages a copy as the case says, and reads it."""
    random = np.random.default_rng([seed, case])
    entries = [entry for number, *entry in PLAN for _ in range(number)]
    reader, name, ways = entries[case]
    sharded = "index" in name or (not name and case % 2)
    kind = "sharded" if sharded else pick(random, [one for one in folders if one != "sharded"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkpoint"
        shutil.copytree(folders[kind], folder)
        file = folder / name
        if not name:
            file = pick(random, [folder / "config.json", *sorted(folder.glob("*.safetensors"))])
        what = pick(random, ways)(random, file)
        start = _processor_time()
        outcome, good = _read(reader, folder, expected[kind, reader.__name__])
        seconds = _processor_time() - start
    # Kilobytes, of this process or of the largest that it has waited for.
    memory = max(_most_memory(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return {
        "case": case,
        "damage": f"{kind}/{what}",
        "outcome": outcome,
        "good": good,
        "seconds": seconds,
        "kilobytes": memory,
    }


def _most_memory() -> int:
    """Kilobytes of this program at most: usage counts what its parent had when it began, too."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [one for one in status.read_text().splitlines() if one.startswith("VmHWM:")]
        return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _processor_time() -> float:
    """Seconds of this process and of those that it has waited for: others may use the machine."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _read(reader: Reader, folder: Path, expected: Any) -> tuple[str, bool]:
    """What came of it, and whether that is right: the same as before, or an error of ours."""
    try:
        found = reader(folder)
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        ours = f"{os.sep}icl_jax{os.sep}" in last
        kind = type(error) in (ValueError, TypeError, FileNotFoundError, OSError)
        names = [path.name for path in folder.iterdir()]
        named = any(
            name in str(error) for name in (*names, folder.name, "render_chat", "render_messages")
        )
        text = f"{type(error).__name__} in {last}: {str(error)[:400]}"
        return text, ours and kind and named
    same = found == expected
    return "the same" if same else "A WRONG RESULT", same


def main() -> None:
    """Runs the cases from the first to before the last."""
    first, last, seed = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory() as temporary:
        folders = make_folders(Path(temporary))
        readers = {reader.__name__: reader for _, reader, *_ in PLAN}
        expected = {
            (kind, name): reader(folder)
            for kind, folder in folders.items()
            for name, reader in readers.items()
        }
        for case in range(first, last):
            print(json.dumps(run(case, seed, folders, expected)), flush=True)


if __name__ == "__main__":
    main()
