"""What the real models are asked: contexts with questions, and tasks that a context teaches."""

from dataclasses import dataclass

import numpy as np

from icl_jax.interop.tokenizer import Tokenizer
from icl_jax.tasks.text import reference_texts


@dataclass(frozen=True)
class Removal:
    """A prompt with a context to remove.

    Attributes:
      tokens_T: (T,), all of it, BOS first where the model has one.
      kept_K: (K,), what stays, increasing.
    """

    tokens_T: np.ndarray
    kept_K: np.ndarray


#: Context and question; the text goes on after the question.
QUESTIONS: tuple[tuple[str, str], ...] = (
    (
        "The lighthouse on Gull Rock was built in 1871 by Ada Brandt. She had drawn it in three "
        "days, after the wreck of the Marigold. It is painted in red and white stripes.\n\n",
        "The lighthouse was built by",
    ),
    (
        "Recipe for four people: two onions, one clove of garlic, 400 g of tomatoes, basil, salt. "
        "Fry the onions until they are golden, add the tomatoes, and cook for twenty minutes.\n\n",
        "First you have to",
    ),
    (
        "Dear colleagues, the office will be closed from Monday to Wednesday because the heating "
        "has to be replaced. Please work from home, and water the plants on Friday.\n\n",
        "In short: the office",
    ),
    (
        "Water boils at 100 degrees Celsius at the sea. On a mountain the air is thinner, so water "
        "boils at a lower temperature, and food takes longer to cook.\n\n",
        "On a mountain water boils",
    ),
    (
        "Tom has a grey cat whose name is Pepper. Lisa has two dogs, Rex and Bella. The dogs are "
        "afraid of the cat, and the cat is afraid of nobody.\n\n",
        "The name of the cat is",
    ),
    (
        "def area(width, height):\n    return width * height\n\n\ndef perimeter(width, height):\n"
        "    return 2 * (width + height)\n\n\n",
        "print(area(",
    ),
    (
        "Q: What is the colour of the sky?\nA: Blue.\nQ: What is the colour of grass?\nA: Green.\n"
        "Q: What is the colour of snow?\nA: White.\n",
        "Q: What is the colour of coal?\nA:",
    ),
    (
        "The old king had three daughters. The eldest loved gold, the second loved songs, and the "
        "youngest loved nothing so much as the garden behind the castle.\n\n",
        "One morning the youngest daughter",
    ),
    (
        "Minutes of the meeting. Present: Anna, Ben, Carla. Anna reports that the bridge will be "
        "finished in May. Ben asks for another 20,000 euros. Carla is against it.\n\n",
        "Summary: the bridge",
    ),
    (
        "Trains to Hamburg leave at 8:05, 10:05 and 12:05 from platform 4. Trains to Berlin leave "
        "at 8:35 and 11:35 from platform 7. Tickets are sold in the main hall.\n\n",
        "The first train to Berlin leaves at",
    ),
    (
        "In chess the bishop moves along diagonals, the rook along rows and columns, and the queen "
        "does both. The knight jumps in the shape of an L.\n\n",
        "In chess, the queen",
    ),
    (
        "English: good morning. French: bonjour.\nEnglish: good night. French: bonne nuit.\n"
        "English: thank you. French: merci.\n",
        "English: please. French:",
    ),
)

#: Task -> pairs; a prompt shows some and asks for another.
TASKS: dict[str, tuple[tuple[str, str], ...]] = {
    "translation": (
        ("cat", "chat"), ("dog", "chien"), ("house", "maison"), ("water", "eau"), ("bread", "pain"),
        ("book", "livre"), ("night", "nuit"), ("day", "jour"), ("sun", "soleil"), ("moon", "lune"),
        ("red", "rouge"), ("green", "vert"), ("white", "blanc"), ("black", "noir"),
        ("king", "roi"), ("tree", "arbre"), ("sea", "mer"), ("milk", "lait"), ("hand", "main"),
        ("heart", "coeur"), ("friend", "ami"), ("school", "école"), ("street", "rue"),
        ("world", "monde"),
    ),
    "antonyms": (
        ("hot", "cold"), ("big", "small"), ("up", "down"), ("fast", "slow"), ("old", "young"),
        ("rich", "poor"), ("happy", "sad"), ("light", "dark"), ("good", "bad"), ("open", "closed"),
        ("early", "late"), ("strong", "weak"), ("hard", "soft"), ("high", "low"), ("in", "out"),
        ("left", "right"), ("long", "short"), ("wet", "dry"), ("day", "night"), ("true", "false"),
        ("first", "last"), ("full", "empty"), ("clean", "dirty"), ("near", "far"),
    ),
    "capitals": (
        ("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Germany", "Berlin"),
        ("Japan", "Tokyo"), ("China", "Beijing"), ("Russia", "Moscow"), ("Egypt", "Cairo"),
        ("Greece", "Athens"), ("Austria", "Vienna"), ("Poland", "Warsaw"), ("Norway", "Oslo"),
        ("Sweden", "Stockholm"), ("Portugal", "Lisbon"), ("Ireland", "Dublin"),
        ("Hungary", "Budapest"), ("Finland", "Helsinki"), ("Canada", "Ottawa"),
        ("Cuba", "Havana"), ("Kenya", "Nairobi"), ("India", "New"), ("Peru", "Lima"),
        ("Turkey", "Ankara"), ("Denmark", "Copenhagen"),
    ),
    "labels": (
        ("The film was wonderful", "positive"), ("I hated every minute", "negative"),
        ("A dull and lazy book", "negative"), ("What a lovely surprise", "positive"),
        ("The food was awful", "negative"), ("She sang beautifully", "positive"),
        ("The best day of my life", "positive"), ("A terrible waste of time", "negative"),
        ("The service was rude", "negative"), ("We enjoyed the concert", "positive"),
        ("The room was filthy", "negative"), ("A brilliant idea", "positive"),
        ("I would go there again", "positive"), ("It broke after a day", "negative"),
        ("The worst hotel ever", "negative"), ("A charming little town", "positive"),
        ("He is a great teacher", "positive"), ("The plot makes no sense", "negative"),
        ("Delicious and cheap", "positive"), ("Boring from start to end", "negative"),
        ("The staff were friendly", "positive"), ("I want my money back", "negative"),
        ("It works perfectly", "positive"), ("The noise was unbearable", "negative"),
    ),
}  # fmt: skip

_LINES = {
    "translation": "English: {}. French:",
    "antonyms": "{} is the opposite of",
    "capitals": "The capital of {} is",
    "labels": "{}. Sentiment:",
}


def removal(tokenizer: Tokenizer, context: str, question: str, *, keep_bos: bool = True) -> Removal:
    """A prompt whose context goes; a token that has characters of both goes, too."""
    encoded = tokenizer.encode(context + question)
    starts_T, stops_T = encoded.offsets_T2.T
    of_question_T = (starts_T >= len(context)) & (stops_T > starts_T)
    special_T = stops_T == starts_T
    kept_T = of_question_T | (special_T & (np.arange(len(starts_T)) == 0) & keep_bos)
    return Removal(encoded.tokens_T, np.flatnonzero(kept_T))


def stretch(tokenizer: Tokenizer, length: int, kept: int, *, keep_bos: bool) -> Removal:
    """``length`` tokens of running English text, the last ``kept`` of them kept.

    The first token is kept or removed with ``keep_bos``, whether the model has a BOS or not.
    """
    tokens_T = tokenizer.encode(" ".join(reference_texts()["with"].split())).tokens_T[:length]
    last_K = np.arange(length - kept, length)
    return Removal(tokens_T, np.concatenate([[0], last_K]) if keep_bos else last_K)


def task_prompts(
    tokenizer: Tokenizer, task: str, *, shown: int, asked: int
) -> list[tuple[Removal, int]]:
    """Prompts of a task with the first token of each answer; the context are demonstrations.

    The first ``shown`` pairs are shown to all, and the next ``asked`` are asked for, one in each.
    """
    pairs, line = TASKS[task], _LINES[task]
    context = "".join(f"{line.format(x)} {y}\n" for x, y in pairs[:shown])
    prompts = []
    for x, y in pairs[shown : shown + asked]:
        prompt = removal(tokenizer, context, line.format(x))
        whole_T = tokenizer.encode(f"{context}{line.format(x)} {y}").tokens_T
        prompts.append((prompt, int(whole_T[len(prompt.tokens_T)])))
    return prompts
