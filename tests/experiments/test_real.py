"""The experiment on real models, with tiny random ones in their place."""

import json

import jax
import pytest

from experiments.language.real import measure
from experiments.language.real import run as real
from experiments.language.real.prompts import QUESTIONS, TASKS, removal, task_prompts
from icl_jax.interop.huggingface import make_tiny
from icl_jax.interop.tokenizer import save_tokenizer, train_bpe
from icl_jax.tasks.text import reference_texts

CONFIG = real.Config(lengths=(29,), num_prompts=1, num_tokens=3, shown=3, asked=2, contexts=(4, 8))


@pytest.fixture(scope="module")
def tokenizer():
    texts = [f"{context}{question}" for context, question in QUESTIONS]
    return train_bpe([*texts, reference_texts()["with"]], 384)


@pytest.fixture(scope="module")
def outcome(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")

    def tiny(name, _):
        made = folder / name
        if not made.exists():
            family = "llama" if name == "smollm2" else "gemma3"
            make_tiny(family, made, jax.random.key(0), vocab_size=384)
            save_tokenizer(made, tokenizer)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "real_model", tiny)
        patch.setattr(measure, "parity", lambda *_: None)  # tests/real has transformers.
        real.run(CONFIG, folder / "run")
    return folder / "run"


@pytest.mark.slow
def test_the_summary_has_every_model_precision_and_policy(outcome):
    models = json.loads((outcome / "summary.json").read_text())["models"]
    assert list(models) == ["smollm2", "gemma3-270m"]
    for one in models.values():
        assert {"parity", "exactness", "generation", "tasks"} <= set(one)
        for dtype, bound in (("float32", 1e-5), ("bfloat16", 0.1)):
            exact = one["exactness"][dtype]
            assert exact["closed"]["auto"] < bound < exact["alone"]
            assert exact["open"]["auto"] < bound
            for task in one["tasks"][dtype].values():
                assert task["context"] == task["patched"]
                assert task["questions"] == 2
        assert one["generation"]["float32"]["auto"]["agreement"] == 1
        assert one["attribution"]["sum"] == pytest.approx(1, abs=1e-4)
    assert set(models["gemma3-270m"]["exactness"]["float32"]["closed"]) == {
        "auto", "scale", "balanced", "balanced+remainder",
    }  # fmt: skip
    for name in models:  # Fewer layers are another model.
        rows = json.loads((outcome / name / "float32" / "layers.json").read_text())["value"]
        assert len({row["alone"] for row in rows}) == len(rows) > 1
    assert (outcome / "report.html").stat().st_size > 10_000


def test_the_question_stays_and_the_context_goes(tokenizer):
    for context, question in QUESTIONS:
        prompt = removal(tokenizer, context, question)
        assert tokenizer.decode(prompt.tokens_T[prompt.kept_K]).strip() in question
        assert len(prompt.kept_K) < len(prompt.tokens_T)
        assert prompt.kept_K[-1] == len(prompt.tokens_T) - 1


def test_an_answer_is_the_token_after_its_question(tokenizer):
    for task in TASKS:
        prompts = task_prompts(tokenizer, task, shown=6, asked=16)
        assert len(prompts) == 16
        for (_, answer), (prompt, token) in zip(TASKS[task][6:22], prompts, strict=True):
            assert answer.startswith(tokenizer.decode([token]).strip())
            assert prompt.kept_K[-1] == len(prompt.tokens_T) - 1
