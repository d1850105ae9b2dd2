"""One task: its context, its questions, and what each side answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language.compile.sides import Lessons, Patches
from experiments.language.kept.arrays import Answered
from experiments.language.kept.tasks import Task
from icl_jax.dims import Params
from icl_jax.interop.huggingface import Checkpoint
from icl_jax.interop.tokenizer import Tokenizer
from icl_jax.language.compile import static_logits
from icl_jax.language.prompt import full_logits
from icl_jax.language.study import self_study


@dataclass(frozen=True)
class Sizes:
    """How the pairs of a task are used, in this order.

    Attributes:
      shown: demonstrations, which are the context where the task has none of its own.
      calibration: questions that are fitted.
      held_out: questions on which weight, rate and the best rung are chosen.
      asked: questions that are reported.
      written: tokens that the model writes behind a calibration question.
    """

    shown: int
    calibration: int
    held_out: int
    asked: int
    written: int


@dataclass(frozen=True)
class Questions:
    """Questions, and the first token of the right answer to each."""

    texts: list[np.ndarray]
    answers: np.ndarray


@dataclass(frozen=True)
class Material:
    """What a task is compiled from (self-study), and questions of three kinds, none asked twice.

    Attributes:
      lessons: the context, and what the model writes behind it to the questions that are fitted.
      fitted: these questions.
      held_out: on which weight, rate and the best rung are chosen.
      asked: new ones.
    """

    lessons: Lessons
    fitted: Questions
    held_out: Questions
    asked: Questions


def material(
    checkpoint: Checkpoint, tokenizer: Tokenizer, task: Task, sizes: Sizes, bos: int, seed: int
) -> Material:
    """The context of a task as lessons, and its questions."""

    def tokens(text: str) -> np.ndarray:
        return tokenizer.encode(text, add_special=False).tokens_T

    def questions(part: Sequence[tuple[str, str]]) -> Questions:
        texts = [tokens(task.question(asked)) for asked, _ in part]
        whole = [tokens(task.answered(*pair)) for pair in part]
        answers = [int(one[len(text)]) for one, text in zip(whole, texts, strict=True)]
        return Questions(texts, np.asarray(answers))

    text, pairs = task.behind(sizes.shown)
    context = tokens(text)
    ends = np.cumsum((0, sizes.calibration, sizes.held_out, sizes.asked))
    fitted, held_out, asked = (
        questions(pairs[start:stop]) for start, stop in zip(ends[:-1], ends[1:], strict=True)
    )
    written = self_study(
        checkpoint.model,
        checkpoint.params,
        context,
        fitted.texts,
        sizes.written,
        jax.random.key(seed),
        bos=bos,
    )
    lessons = Lessons(context, written, [len(one) for one in fitted.texts], bos)
    return Material(lessons, fitted, held_out, asked)


def answer(
    checkpoint: Checkpoint,
    lessons: Lessons,
    questions: Questions,
    *,
    in_context: bool = False,
    patches: Patches | None = None,
    params: Params | None = None,
) -> Answered:
    """What the model says: behind the context, alone, patched, or with other parameters."""
    place = lessons.behind if in_context else lessons.without
    texts = [place(one) for one in questions.texts]
    read = [np.array([len(one) - 1]) for one in texts]
    params = checkpoint.params if params is None else params
    if patches is None:
        found = full_logits(checkpoint.model, params, texts, read)
    else:
        found = static_logits(checkpoint.model, params, texts, read, patches)
    logits_BV = jnp.concatenate(found)
    chances_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32), axis=-1)
    pick = (jnp.arange(len(texts)), jnp.asarray(questions.answers))
    right_B = np.asarray(jnp.argmax(logits_BV, axis=-1)) == questions.answers
    return Answered(np.asarray(chances_BV[pick]), right_B)
