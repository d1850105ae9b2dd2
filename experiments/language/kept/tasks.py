"""Tasks: what is asked, and the context that says what to answer.

Most are taught by examples, which are pairs of the task itself. Three have a context of their own:
an instruction, a list of who likes what, and a page of text. Of the last two the questions are
the same facts in other words, one way after the other: with as many questions to fit as there are
facts (the default) those that are fitted ask for each in one way, new ones in another.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from experiments.language.kept.pairs import LINE, PAIRS


@dataclass(frozen=True)
class Task:
    """What is asked, and what stands in front of it.

    Attributes:
      pairs: what is asked for, and the answer.
      line: the words of a question, with a place for what is asked for.
      context: text; None where the first pairs, answered, are the context.
    """

    pairs: tuple[tuple[str, str], ...]
    line: str = LINE
    context: str | None = None

    def question(self, asked: str) -> str:
        """The text of a question."""
        return self.line.format(asked)

    def answered(self, asked: str, answer: str) -> str:
        """The same with its answer."""
        return f"{self.question(asked)} {answer}"

    def behind(self, shown: int) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The context, of so many pairs where it is made of them, and the pairs left to ask."""
        if self.context is not None:
            return self.context, self.pairs
        told = "".join(f"{self.answered(*pair)}\n" for pair in self.pairs[:shown])
        return told, self.pairs[shown:]


def _in_words(facts: Iterable[tuple[str, ...]]) -> tuple[tuple[str, str], ...]:
    """Questions and answers of facts, each (answer, one way to ask, another, ...): every fact in
    the first way, then every one in the second, and so on."""
    answers, *ways = zip(*facts, strict=True)
    return tuple(pair for way in ways for pair in zip(way, answers, strict=True))


#: English question -> one French word.
_IN_FRENCH = (
    ("What is the colour of snow?", "blanc"), ("What animal barks?", "chien"),
    ("What day comes after Sunday?", "lundi"), ("How many legs has a cat?", "quatre"),
    ("What do bees make?", "miel"), ("What is the opposite of big?", "petit"),
    ("What is the first month of the year?", "janvier"), ("What shines at night?", "lune"),
    ("What is the colour of grass?", "vert"), ("What do we drink when we are thirsty?", "eau"),
    ("What day comes after Monday?", "mardi"), ("How many days has a week?", "sept"),
    ("What do birds lay?", "oeufs"), ("What is the opposite of hot?", "froid"),
    ("Which season is cold?", "hiver"), ("What do we sleep in?", "lit"),
    ("What is the colour of blood?", "rouge"), ("What animal says meow?", "chat"),
    ("What day comes after Tuesday?", "mercredi"), ("How much is one and two?", "trois"),
    ("What do we read?", "livre"), ("What is the opposite of day?", "nuit"),
    ("What is the last month of the year?", "décembre"), ("What shines in the day?", "soleil"),
    ("What is the colour of coal?", "noir"), ("What animal gives milk?", "vache"),
    ("What day comes after Wednesday?", "jeudi"), ("How many fingers has a hand?", "cinq"),
    ("What do we cut bread with?", "couteau"), ("What is the opposite of new?", "vieux"),
    ("Which season is warm?", "été"), ("Where do children learn?", "école"),
    ("What is the colour of the sky?", "bleu"), ("What animal can you ride?", "cheval"),
    ("What day comes after Thursday?", "vendredi"), ("How much is five and five?", "dix"),
    ("What do we wear on our feet?", "chaussures"), ("What is the opposite of love?", "haine"),
    ("Which month comes after July?", "août"), ("What grows in a forest?", "arbres"),
    ("What is the colour of a lemon?", "jaune"), ("What animal swims in the sea?", "poisson"),
    ("What day comes after Friday?", "samedi"), ("How many eyes has a dog?", "deux"),
)  # fmt: skip

#: Name -> what it likes.
_LIKES = (
    ("Anna", "tiger"), ("Ben", "piano"), ("Carla", "bridge"), ("David", "sugar"),
    ("Emma", "rocket"), ("Frank", "garden"), ("Grace", "mirror"), ("Henry", "silver"),
    ("Ivan", "button"), ("Julia", "carpet"), ("Kevin", "doctor"), ("Laura", "engine"),
    ("Martin", "forest"), ("Nora", "hammer"), ("Oscar", "island"), ("Paula", "jacket"),
)  # fmt: skip

_PAGE = (
    "Gull Rock is a small island in the north. The lighthouse on it was built in 1871 by Ada "
    "Brandt, who had drawn it in three days after the wreck of a ship called Marigold. It is "
    "painted in red and white stripes. Its lamp used to burn whale oil and has been electric for "
    "fifty years. The keeper is Tom Hale, who lives below the lamp with his dog Pepper. The people "
    "of the island keep goats and grow potatoes behind walls of stone. A boat brings letters and "
    "bread on Thursday. The bell at the harbour is made of bronze; it was rung all night in the "
    "storm of October 1903, which took the roof of the church. The highest hill is called Skelder, "
    "and puffins nest on its western side. The water of the well tastes of iron. Every year the "
    "islanders dance on the beach in June. Children go to school in the old mill, and visitors "
    "sleep at the house of the widow Moran. Whoever leaves for good plants an apple tree.\n\n"
)
#: Of the page: the answer, and three ways to ask for it.
_ON_THE_PAGE = (
    ("Ada", "The lighthouse was built by", "The name of the woman who drew the lighthouse was",
     "The tower on Gull Rock is the work of"),
    ("Marigold", "The ship that was wrecked was called", "Near Gull Rock lay the wreck of the",
     "The lighthouse was drawn after the loss of the"),
    ("red", "The stripes of the lighthouse are white and", "Beside white, the tower is painted in",
     "The two colours of the lighthouse are white and"),
    ("whale", "The lamp used to burn oil of the", "Before it was electric, the light was fed with",
     "In the old days the lamp burned"),
    ("Tom", "The name of the lighthouse keeper is", "The man who looks after the lamp is called",
     "Below the lamp lives a man named"),
    ("Pepper", "The keeper has a dog whose name is", "When he calls his dog, the keeper shouts",
     "The dog in the lighthouse is called"),
    ("goats", "The animals that the islanders keep are", "Milk on Gull Rock comes from",
     "On the meadows of the island there are"),
    ("potatoes", "Behind walls of stone the islanders grow", "In the fields of Gull Rock grow",
     "What the people of the island plant is"),
    ("Thursday", "The boat with the letters comes on", "Bread is brought to the island every",
     "The day of the week on which the mail arrives is"),
    ("bronze", "The bell at the harbour is made of", "The metal of the harbour's bell is",
     "They cast the bell of Gull Rock in"),
    ("October", "The great storm came in the month of", "The church lost its roof in",
     "In 1903 the bell was rung all night in"),
    ("Skelder", "The highest hill is called", "The name of the hill on the island is",
     "Whoever wants to see all of Gull Rock climbs up"),
    ("puffins", "The birds on the western side of the hill are", "On the side of the hill nest the",
     "The hill is the home of birds called"),
    ("iron", "The water of the well tastes of", "Whoever drinks from the well tastes",
     "The taste of the island's water is that of"),
    ("June", "They dance on the beach in the month of", "The dance of the islanders is held in",
     "Every year there is dancing on the beach in"),
    ("apple", "Whoever leaves for good plants a tree, an", "Those who go away plant an",
     "The fruit tree that leaving people plant is an"),
)  # fmt: skip

#: Task -> what it is.
TASKS: dict[str, Task] = {
    **{name: Task(pairs) for name, pairs in PAIRS.items()},
    # In French itself: models of this size follow it better than "Answer in French."
    "instruction": Task(
        _IN_FRENCH, context="Répondez à chaque question en français, avec un seul mot.\n"
    ),
    "recall": Task(
        _in_words(
            (
                thing,
                f"{name} likes the",
                f"What {name} likes is the",
                f"Q: What does {name} like?\nA: The",
            )
            for name, thing in _LIKES
        ),
        line="{}",
        context="".join(f"{name} likes the {thing}.\n" for name, thing in _LIKES),
    ),
    "page": Task(_in_words(_ON_THE_PAGE), line="{}", context=_PAGE),
}
