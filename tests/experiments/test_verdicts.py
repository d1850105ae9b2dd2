"""What reports say first, of small made-up records: every rival that does better is named."""

import numpy as np
import pytest

from experiments.language.composition import report as facts
from experiments.language.composition.run import Config as FactsConfig
from experiments.language.kept.report import _written, verdict
from experiments.language.kept.report import sections as kept_sections
from experiments.language.kept.run import Config as Kept
from experiments.language.language_model import Arrays as Learned
from experiments.language.language_model import sections as learned_sections
from experiments.linear_attention.von_oswald import report as von_oswald
from experiments.linear_attention.von_oswald.run import Config as OneLayer
from experiments.regression import alignment, training
from experiments.regression.composition import report as composition
from experiments.regression.composition.run import Config as Composition
from experiments.regression.descent import run as descent
from experiments.regression.descent.report import LOSSES, Arrays, Searched, losses_section
from experiments.regression.learner import LearnerConfig
from experiments.regression.reusable import report as reusable
from experiments.regression.reusable.run import Config as Reusable
from experiments.tools.comparisons import Measured
from icl_jax.report.page import write_page
from tests.browser.test_verdicts import sections as told_of
from tests.experiments.test_kept import task_of


@pytest.fixture
def bare(tmp_path):
    """The titles of sections whose verdict names nothing that its table or legend does."""

    def read(sections):
        file = tmp_path / "report.html"
        write_page(file, title="A page", introduction="Words.", sections=sections)
        found = [one for one in told_of(file.read_text()) if one.verdict]
        assert len(found) == len(sections)
        return [one.title for one in found if not one.beside]

    return read


def test_training_says_that_averaging_beats_the_learner():
    # As measured at N = 100, where tasks without noise give least squares its zero.
    losses = training.Losses(*map(np.array, (2.4, 0.0593, 0.0593, 2.2)))
    oracles = {
        "zero": 2.1,
        "averaging": 0.0586,
        "least_squares": 6e-12,
        "ridge": 1e-4,
        "nearest_neighbours": 1.2,
    }
    history = training.History(*np.ones((5, 3)))
    config = training.Config(learner=LearnerConfig(num_examples=100))
    arrays = training.Arrays(losses, {name: np.array(x) for name, x in oracles.items()}, history)
    (section,) = training.sections(config, arrays)
    assert section.verdict.startswith(
        "The learner's loss 0.0593 is worse than least squares, the best of 5 baselines, at "
        "6.0e-12, and than ridge regression (1.0e-04) and averaging (0.0586). Nearest of 2 nulls: "
        "unpatched, no context (2.20). Patched weights"
    )
    named = {row[0] for row in section.tables[0].rows}
    assert {"averaging", "ridge regression", "unpatched, no context"} <= named


def test_descent_says_that_fine_tuning_an_untrained_learner_beats_the_trained_one():
    # As measured at N = 50.
    means = dict.fromkeys(LOSSES, 3.0) | {
        "implicit": 0.19,
        "descent": 0.118,
        "least_squares": 6e-14,
        "averaging": 0.15,
        "untrained_descent": 0.0131,
        "random": 0.1185,
    }
    losses = {name: np.full((3, 4), mean) for name, mean in means.items()}
    searched = Searched(*np.zeros((3, 1)))
    arrays = Arrays(losses, {}, np.zeros(4), searched, searched, None)
    config = descent.Config(learner=LearnerConfig(num_examples=50), num_directions=1)
    summary = {f"{name}_loss": values.mean(axis=1) for name, values in losses.items()}
    summary |= dict.fromkeys(("learning_rate", "learning_rate_at_edge"), 0.1)
    section = losses_section(config, summary, arrays, "x")
    in_context, fine_tuned = section.verdict.split(" Fine-tuned, the loss ")
    assert in_context == (
        "In context, the loss 0.190 is worse than least squares, the best of 6 baselines, at "
        "6.0e-14, and than fine-tuned (0.118) and averaging (0.150). Nearest of 5 nulls: "
        "untrained, fine-tuned (0.0131), which beats it, as does random update (0.118)."
    )
    assert fine_tuned == (
        "0.118 is worse than least squares, the best of 6 baselines, at 6.0e-14. Nearest of 5 "
        "nulls: untrained, fine-tuned (0.0131), which beats it."
    )
    (table,) = section.tables
    assert {"untrained, fine-tuned", "random update"} <= {row[0] for row in table.rows}
    assert f"{LOSSES['training'][0]}: the loss that" in table.caption


def of(mean):
    """Squared errors of four cases."""
    return np.full(4, mean)


def test_the_optimum_has_a_rival_and_a_null(bare):
    rng = np.random.default_rng(0)
    drawn = rng.random((1, 4))
    nulls = dict.fromkeys(("untrained", "shuffled", "random", "another"), drawn + 1)
    measures = dict.fromkeys(("sensitivity_cosine", "model_difference"), Measured(drawn, nulls))
    means = {"trained": 0.5, "descent": 0.4, "interpolated": 0.45, "untrained": 2.0, "zero": 1.5}
    optimum = von_oswald.Optimum(
        of(1.04), of(1.0), of(1.25), of(3.0), np.array(1.0), np.array(True)
    )
    width = OneLayer().learner.input_width + 1
    arrays = von_oswald.Arrays(
        np.ones(1), {name: of(mean)[None] for name, mean in means.items()}, measures, drawn, drawn,
        np.array(0.5), np.array(False), np.zeros((width, width)), np.zeros(width), optimum,
    )  # fmt: skip
    loss, _, weights, best = von_oswald.sections(OneLayer(), arrays)
    assert bare([loss, weights, best]) == []
    assert loss.verdict == (
        "The trained layer's loss 0.500 is worse than one step of descent, the best of 3 "
        "baselines, at 0.400, and than mean of both weights (0.450). The null: untrained layer "
        "(2.00)."
    )
    assert weights.verdict.endswith(
        "differs from it by 1.00 of its kernel's norm (a kernel of zeros: 1)."
    )
    assert weights.tables[0].rows[1] == ("a kernel of zeros", 1)
    assert best.verdict == (
        "Training does not find the closed form of the best layer: the ratio of the two losses is "
        "1.0400 (1.04 to 1.00). Of rivals one step of descent has 1.25, of nulls the untrained "
        "layer 3.00."
    )
    assert [row[:2] for row in best.tables[0].rows][2:] == [
        ("one step of descent", 1.25),
        ("untrained layer", 3.0),
    ]
    assert "best on held-out tasks (at the edge of its search)." in best.text


@pytest.mark.parametrize(("another", "nearest"), [(1.5, "another"), (3.0, "nothing")])
def test_of_reusable_and_composed_patches_the_nearest_null_is_computed(another, nearest, bare):
    # Alone 2, with the context 0: shares of 0.25 and -0.5.
    named = {
        "another": "another context's ridge: 0.250 (0.250 to 0.250)",
        "nothing": "no context: 0",
    }
    config = Reusable(counts=(5,), shown=5, ranks=(1, 2))
    one = {"another": of(another)[None], **dict.fromkeys(reusable.LADDER, of(0.1)[None])}
    asked = reusable.Asked(
        of(2.0), of(0.0), one, np.stack([of(1.0), of(0.1)]), np.ones((1, 4)), one
    )
    ladder, ranks = reusable.sections(config, reusable.Arrays(asked, asked))
    for section in (ladder, ranks):
        assert f"The nearest null is {named[nearest]}; " in section.verdict
        labels = {str(row[0]) for row in section.tables[0].rows}
        assert {"another context's ridge", "no context"} <= labels
    assert "0.500 (0.500 to 0.500) at rank 1." in ranks.verdict

    # The same shares of a gap from 3 to 1, as its ends are drawn on a logarithmic axis.
    uses = {name: of(1.5) for name in (*composition.USES, *composition.SUMS, "shuffled")}
    uses |= {"another": of(another + 1), "stranger": of(4.0)}
    cosines = dict.fromkeys(composition.AGREED, of(0.9)) | {"another": of(0.2)}
    query = composition.OwnQuery(of(2.0), of(0.0), of(0.0))
    errors = np.stack([of(1.5), of(another + 1)])
    made = composition.Composed(
        of(3.0), of(1.0), uses, query, errors, errors, of(another + 1), errors, cosines
    )
    found = composition.sections(Composition(stacked=(1, 2)), composition.Arrays(made, made))
    assert bare([ladder, ranks, *found]) == []
    transfer, sums, order, stack, _ = (section.verdict for section in found)
    theirs = "another context's: 0.250" if nearest == "another" else "query alone: 0; "
    assert f"The nearest null is {theirs}" in transfer and f"The nearest null is {theirs}" in sums
    # An untrained learner's patch knows no order either.
    assert "The nearest null is another order's, untrained: 0.900 (" in order
    assert "; another context's: 0.200 (" in order
    theirs = "2 others', not its own: 0.250" if nearest == "another" else "nothing: 0; "
    assert f"The nearest null is {theirs}" in stack


@pytest.mark.parametrize("nearest", ["none", "another"])
def test_of_facts_the_nearest_null_and_what_beats_a_facts_own_patch_are_computed(nearest, bare):
    chances = dict.fromkeys(facts.USES, of(-4.0)) | {nearest: of(-3.0), "together": of(-0.5)}
    chances |= {"own": of(-1.0), "context": of(-0.2)}
    cosines = np.full((2, 1), 0.5)
    stacked = np.array([-1.0, -2.0])
    arrays = facts.Arrays(
        chances, {name: of(1.0) for name in chances}, stacked, stacked, stacked,
        np.array([-3.5, -3.25]), np.array([[0.1], [0.2]]), np.array([0.3]),
        dict.fromkeys(facts.AGREED, cosines),
    )  # fmt: skip
    transfer, stack, sums, forgotten = facts.sections(FactsConfig(stacked=(1, 2)), arrays, 3)
    assert bare([transfer, stack, sums, forgotten]) == []
    other = {"none": "another", "another": "none"}[nearest]
    assert (
        f"2.00 (2.00 to 2.00) nats over the nearest null, {facts.USES[nearest]}, and 3.00 (3.00 "
        f"to 3.00) over {facts.USES[other]};"
    ) in transfer.verdict
    assert "More than its own (-1.00 nats) has one patch of all facts (-0.500)." in transfer.verdict
    first = "no context: -3.00" if nearest == "none" else "facts that are not in it: -3.25"
    assert f"The nearest null is {first}; " in stack.verdict
    assert "two facts', the null, 0.500" in sums.verdict
    assert "by 0.100 nats per token, 2 stacked by 0.200" in forgotten.verdict
    assert forgotten.tables[0].rows[0] == ("0, the plain model", 0.0, 0.0)


def test_kept_says_where_the_thought_vector_is_ahead_and_which_texts_are_another_tasks(bare):
    tasks = {"one": task_of(both=-2.0), "two": task_of(thought=-1.5)}
    assert verdict(tasks).endswith(
        "0.75 to 0.88 of the gap in log-probability and 0.50 to 0.50 of that in right answers (no "
        "context, the null: 0); at least as much as LoRA, same seconds on 2 of 2 tasks (as many "
        "right answers on 2); at least as much as LoRA, more seconds on 2 of 2 tasks (as many "
        "right answers on 2); the best of the others at least as much as thought vector on 1 of 2 "
        "tasks (as many right answers on 2), less on two (input side 0.50 against 0.88, of fitted "
        "questions 0.50 against 0.88: lost in capacity)."
    )
    section = _written({"smollm2": tasks})
    assert bare(kept_sections(Kept(), {"smollm2": tasks})) == []
    assert "the same 2 texts" in section.verdict
    assert section.verdict.endswith(
        "0 are said again in the same task; another task, the null, says 2 of them."
    )
    assert section.tables[0].rows == [("smollm2", "one", 1, 0, 1), ("smollm2", "two", 1, 0, 1)]


def test_what_a_model_writes_stands_beside_what_it_wrote_before_training(bare):
    losses = {"final": 4.25, "bigram": 3.0, "unigram": 4.0, "uniform": 6.0, "initial": 5.5}
    summary = {f"{name}_loss": loss for name, loss in losses.items()}
    summary |= dict.fromkeys(("num_parameters", "train_tokens"), 9.0)
    summary |= {"text": "a text", "bits_per_byte": 2.0, "reload_difference": 0.0}
    texts = {"greedy": "a", "greedy, before training": "b"}
    loss, written = learned_sections(summary, Learned(None, np.arange(3), np.ones(3)), texts)
    assert bare([loss, written]) == []
    assert loss.verdict.endswith(
        "4.25 is worse than counts of pairs, the best of 3 baselines, at 3.00, and than counts of "
        "tokens (4.00). The null: before training (5.50)."
    )
    assert "4.25 nats per token (before training: 5.50)" in written.verdict
    assert written.tables[0].rows[1] == ("greedy, before training", "b")


def test_blocks_stand_beside_random_updates_and_the_untrained_stack_in_words_and_table(bare):
    config = alignment.Config(num_prompts=4)
    depth = config.learner.stack.depth
    one = alignment.Aligned(
        np.full((depth, 3, 3), 0.5), np.full((depth, depth), 0.1), np.full((4, depth), 0.5),
        of(0.1), of(0.3), np.ones((4, depth)),
    )  # fmt: skip
    arrays = alignment.Arrays(one, one)
    tokens, blocks = alignment.sections(config, arrays)
    assert bare([tokens, blocks]) == []
    assert tokens.verdict.endswith("less than untrained (0.500).")
    assert blocks.verdict.endswith("less than random updates, the nearest null (0.300).")
    (table,) = tokens.tables
    assert table.header[0] == "block, from 0"
    assert [row[0] for row in table.rows] == list(map(str, range(depth)))
    rows = {row[0]: row[1] for row in blocks.tables[0].rows}
    assert rows == pytest.approx({"trained": 0.1, "untrained": 0.1, "random updates": 0.3})
