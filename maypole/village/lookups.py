"""Documents in which everything asked stands in the document: pairs of words asked again, passages with questions.

Words meet at random, so nothing can be known beforehand, and only answers count. Passages have two, four, five or six
statements: the tasks "read" and "who" have three, so no test input of theirs is among them, and nobody asks who eats
what, which is kept for the task "eater". Knows no model.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import count
from typing import TYPE_CHECKING

from maypole.village.draws import Draws
from maypole.village.language_tasks import FIRST_NAMES
from maypole.village.mix import ENDLESS, MAX_TOKENS, Document, interleave
from maypole.village.names import FOODS, INSTRUMENTS, NOUNS, PETS, TOOLS, TREASURES
from maypole.village.tokenizer import ASSISTANT, BOS, END, USER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Piece = tuple[str, float]
"""Some text or a special token, and the loss weight of its tokens."""
BETWEEN = (
    ("",),
    ("has", "finds", "likes", "sees", "wants", "eats", "hides", "keeps"),
    ("has the", "finds a", "looks for", "asks for", "thinks of"),
)
"""What stands between the two words of a pair, by the number of its words."""
VERBS: dict[str, tuple[str, list[str]]] = {
    "eats": ("eat", FOODS), "has": ("have", TREASURES), "finds": ("find", TREASURES), "keeps": ("keep", PETS),
    "likes": ("like", NOUNS), "wants": ("want", TOOLS), "sees": ("see", NOUNS), "plays": ("play", INSTRUMENTS),
}  # fmt: skip
WHAT = {
    "eats": ("What does {person} {plain}?", "Food of {person}:"),
    "finds": ("What does {person} {plain}?", "{person} {verb}"),
}
WHO = {"has": ("Who {verb} {thing}?", "Holder of {thing}:"), "finds": ("Who {verb} {thing}?",)}
"""How the thing and the person are asked for, by verb; other verbs as "finds"."""
STATEMENTS = (2, 4, 5, 6)
ASKED = 3.0
"""Loss weight of an answer: among other documents, whose every token counts, it would hardly be heard otherwise."""


def pairs(draws: Draws, between: int) -> list[Piece]:
    """Three to eight pairs told once, then twice as many times one of them again; its second word is asked."""
    middle = draws.pick(BETWEEN[between])
    number = draws.between(3, 8)
    keys = draws.sample(FIRST_NAMES if draws.chance(0.7) else NOUNS, number)
    values = draws.sample(NOUNS, number)
    said: list[Piece] = [(BOS, 0.0)]
    for turn in range(3 * number):
        place = turn if turn < number else draws.below(number)
        key = f" {keys[place]} {middle}".rstrip()
        said += [(key, 0.0), (f" {values[place]}", ASKED * (turn >= number)), (".", 0.0)]
    return said


def passage(draws: Draws) -> list[Piece]:
    """Who does what to which thing, then two to six turns that ask for the thing or for the person."""
    verb = draws.pick(list(VERBS))
    plain, things = VERBS[verb]
    number = draws.pick(STATEMENTS)
    told = list(zip(draws.sample(FIRST_NAMES, number), draws.sample(things, number)))
    text = " ".join(f"{person} {verb} {thing}." for person, thing in told) + " "
    said: list[Piece] = [(BOS, 0.0)]
    for _ in range(draws.between(2, 6)):
        person, thing = draws.pick(told)
        if verb != "eats" and draws.chance(0.5):
            question, answer = draws.pick(WHO.get(verb, WHO["finds"])), person
        else:
            question, answer = draws.pick(WHAT.get(verb, WHAT["finds"])), thing
        asked = question.format(person=person, verb=verb, plain=plain, thing=thing)
        said += [(USER, 0.0), (f" {text}{asked}", 0.0), (END, 0.0)]
        said += [(ASSISTANT, 0.0), (f" {answer}", ASKED), (END, ASKED)]
        text = ""
    return said


KINDS: dict[str, tuple[float, Callable[[Draws], list[Piece]]]] = {
    "adjacent pairs": (1.0, partial(pairs, between=0)),
    "a word between": (1.0, partial(pairs, between=1)),
    "two words between": (1.0, partial(pairs, between=2)),
    "passages": (3.0, passage),
}
"""Share of the tokens, and what draws a document."""


def lookups(tokenizer: "PreTrainedTokenizerFast", seed: int) -> Iterator[Document]:
    """Documents of all kinds, without end."""

    @cache
    def encoded(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def documents(kind: str, draw: Callable[[Draws], list[Piece]]) -> Iterator[Document]:
        for index in count():
            ids: list[int] = []
            weights: list[float] = []
            for text, weight in draw(Draws(seed, "lookups", kind, index)):
                ids += encoded(text)
                weights += [weight] * len(encoded(text))
            yield {"kind": kind, "ids": ids[:MAX_TOKENS], "weights": weights[:MAX_TOKENS]}

    return interleave({kind: (share, documents(kind, draw)) for kind, (share, draw) in KINDS.items()}, ENDLESS)
