"""A model with too little room for what it would read is told of before any work begins."""

import importlib

import pytest

from experiments.language.checkpoint.tiny import make_tiny
from experiments.language.room import check_room
from experiments.tools.flags import UsageError, parse
from icl_jax.language.ends import room
from icl_jax.pretrained.pretrained import load

LONG = "Ada built the lighthouse in 1871. " * 60


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model that is meant for 128 tokens, and a context that has some 1,500."""
    folder = tmp_path_factory.mktemp("room") / "tiny"
    make_tiny("llama", folder, 0)
    (folder / "long.txt").write_text(LONG)
    return folder


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("compile", ["--context={tiny}/long.txt"], r"--context: [\d,]+ tokens .* at most 128"),
        ("compile", ["--study=own", "--context={tiny}/long.txt"], r"--context: [\d,]+ tokens"),
        ("prompt_page", [f"--text={LONG}"], r"--text: [\d,]+ tokens .* at most 128"),
        ("classification", ["--quick"], r"--num_examples: [\d,]+ tokens .* at most 128"),
        (
            "checkpoint",
            ["--prompts={tiny}/prompts.jsonl", "--generate=500"],
            r"--generate: 502 tokens .* at most 128",
        ),
        (
            "checkpoint",
            ["--prompts={tiny}/prompts.jsonl", "--generate=100"],
            r"more than the model has room for, 28\. Shorten the prompt, or generate less",
        ),
    ],
)
def test_it_is_said_before_any_work(name, flags, said, tiny, tmp_path):
    module = importlib.import_module(f"experiments.{name}")
    arguments = [f"--checkpoint={tiny}", *(flag.replace("{tiny}", str(tiny)) for flag in flags)]
    parsed = parse(module.Config, [name, *arguments, f"--workdir={tmp_path / 'run'}"])
    with pytest.raises(UsageError, match=said):
        module.run(parsed.config, parsed.workdir)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_limit_has_room_for_anything(tiny):
    model = load(tiny).model
    assert room(model) == 128
    check_room("--text", model, 128)
    free = model.clone(max_positions=None)
    assert room(free) is None
    check_room("--text", free, 10**9)
    learned = free.clone(num_positions=64)
    assert room(learned.clone(max_positions=128)) == room(learned) == 64
    with pytest.raises(UsageError, match="--text: 65 tokens are needed"):
        check_room("--text", learned, 65)
