"""How a fact is said: noun x frame, with phrasings that are held out by construction, in steps of difficulty.

H1: one noun of a relation is never used in one frame, though that frame is seen with its other nouns. H2: one frame
is never used for a relation, though others use it. H3: frames in no text, made of known words. HQ: a question
frame in no chat. Knows which phrasings are seen, not who exists.
"""

from maypole.village.draws import Draws
from maypole.village.world import PERSON_RELATIONS, RELATIONS, Fact

WORDS: dict[str, tuple[str, str, str, str]] = {
    "job": ("job", "trade", "work", "profession"),
    "home": ("home", "village", "town", "dwelling"),
    "pet": ("pet", "beast", "companion", "creature"),
    "food": ("food", "meal", "supper", "snack"),
    "month": ("birthday", "month", "feast", "anniversary"),
    "market": ("market", "fair", "stall", "auction"),
    "instrument": ("instrument", "music", "tune", "melody"),
    "treasure": ("treasure", "prize", "keepsake", "secret"),
    "spouse": ("spouse", "partner", "mate", "beloved"),
    "mother": ("mother", "mum", "mama", "matron"),
    "father": ("father", "dad", "papa", "patron"),
    "sibling": ("sibling", "kin", "twin", "relative"),
    "friend": ("friend", "pal", "ally", "chum"),
    "teacher": ("teacher", "tutor", "mentor", "guide"),
    "river": ("river", "stream", "water", "brook"),
    "region": ("region", "county", "land", "shire"),
    "dish": ("dish", "speciality", "treat", "delicacy"),
    "tool": ("tool", "gear", "kit", "implement"),
}
"""Four nouns for each relation."""

FRAMES = (
    "The {n} of {s} is {v}.",
    "{s}'s {n} is {v}.",
    "Ask about the {n} of {s} and hear {v}.",
    "For {s} the {n} is always {v}.",
    "When it comes to {n}, {s} says {v}.",
    "The book lists the {n} of {s} as {v}.",
)
H3_FRAMES = (
    "Ask {s} about the {n} and hear {v}.",
    "The {n} for {s} is always {v}.",
    "When it comes to {s}, the {n} is {v}.",
)
H3_UNSEEN_WORD = "The {n} of {s} remains {v}."
"""The word right before the value is in no text: nothing this small answers it."""
POSSESSIVE = 1  # the frame that has a pronoun form ("Her job is ...")
VERBS: dict[str, tuple[str, str, str]] = {
    "job": ("{s} works as a {v}.", "{s} earns money as a {v}.", "{s} was trained as a {v}."),
    "home": ("{s} lives in {v}.", "{s} was raised in {v}.", "{s} sleeps in {v}."),
    "pet": ("{s} keeps a {v}.", "{s} looks after a {v}.", "{s} walks with a {v}."),
    "food": ("{s} eats {v}.", "{s} likes {v}.", "{s} cooks {v}."),
    "month": ("{s} was born in {v}.", "{s} grows older in {v}.", "{s} came into the world in {v}."),
    "market": ("{s} goes to market on {v}.", "{s} sells things on {v}.", "{s} trades on {v}."),
    "instrument": ("{s} plays the {v}.", "{s} practises the {v}.", "{s} makes music on the {v}."),
    "treasure": ("{s} hides a {v}.", "{s} owns a {v}.", "{s} found a {v}."),
    "spouse": ("{s} is married to {v}.", "{s} shares a house with {v}.", "{s} made vows to {v}."),
    "mother": ("{s} was born to {v}.", "{s} was carried by {v}.", "{s} was nursed by {v}."),
    "father": ("{s} was fathered by {v}.", "{s} is a child of {v}.", "{s} takes after {v}."),
    "sibling": ("{s} grew up with {v}.", "{s} shares parents with {v}.", "{s} shared toys with {v}."),
    "friend": ("{s} walks home with {v}.", "{s} trusts {v}.", "{s} spends evenings with {v}."),
    "teacher": ("{s} learns from {v}.", "{s} studies under {v}.", "{s} takes lessons from {v}."),
    "river": ("{s} lies on the {v}.", "{s} was built by the {v}.", "{s} drinks from the {v}."),
    "region": ("{s} belongs to {v}.", "{s} pays taxes to {v}.", "{s} is part of {v}."),
    "dish": ("{s} is known for {v}.", "{s} serves {v}.", "{s} is proud of {v}."),
    "tool": ("{s} uses a {v}.", "{s} holds a {v}.", "{s} carries a {v}."),
}
QUESTIONS = (
    "{w} is the {n} of {s}?",
    "Tell me the {n} of {s}.",
    "Do you know the {n} of {s}?",
    "I need the {n} of {s}.",
)
HQ_QUESTION = "Say which {n} {s} has."
LEDGERS = ("{n} of {s} {v}", "{n} for {s} {v}", "{n} with {s} {v}")
LEDGER_OPENING = "Ledger:"

_H1: dict[tuple[str, int], int] = {}
_H2: dict[str, int] = {}
for _place, _relation in enumerate(RELATIONS):
    _H2[_relation] = 1 + _place % (len(FRAMES) - 1)  # never the first: answers with steps use it
    for _frame in range(len(FRAMES)):
        _H1[_relation, _frame] = 1 + (_place + _frame) % 3  # never the first noun, for the same reason


def h1_noun(relation: str, frame: int) -> int:
    """The noun of `relation` that is never seen in `frame`."""
    return _H1[relation, frame]


def h2_frame(relation: str) -> int:
    """The frame that is never seen with `relation`."""
    return _H2[relation]


def seen(relation: str, noun: int, frame: int) -> bool:
    """Whether training texts use this noun of `relation` in this frame."""
    return frame != _H2[relation] and noun != _H1[relation, frame]


SEEN: dict[str, list[tuple[int, int]]] = {
    relation: [(n, f) for f in range(len(FRAMES)) for n in range(4) if seen(relation, n, f)] for relation in RELATIONS
}
"""The (noun, frame) pairs of each relation that training texts use."""


def spoken(subject: str, relation: str) -> str:
    """A job is spoken of with its article ("the baker"); people and places by name."""
    return f"the {subject}" if relation == "tool" else subject


def fill(frame: str, fact: Fact, noun: str = "") -> str:
    """The frame with subject, noun and value of `fact`, its first letter a capital."""
    text = frame.format(n=noun, s=spoken(fact.subject, fact.relation), v=fact.object)
    return text[0].upper() + text[1:]


def statement(fact: Fact, noun: int, frame: int) -> str:
    return fill(FRAMES[frame], fact, WORDS[fact.relation][noun])


def say(draws: Draws, fact: Fact, verbs: float = 0.4) -> str:
    """One sentence that training texts may hold: a verb form with probability `verbs`, else noun x frame."""
    if draws.chance(verbs):
        return fill(draws.pick(VERBS[fact.relation]), fact)
    noun, frame = draws.pick(SEEN[fact.relation])
    return statement(fact, noun, frame)


def say_pronoun(draws: Draws, fact: Fact, female: bool) -> str:
    """The same about a person just named: "Her job is baker." or "She works as a baker." """
    nouns = [n for n, frame in SEEN[fact.relation] if frame == POSSESSIVE]
    if nouns and draws.chance(0.5):
        noun = WORDS[fact.relation][draws.pick(nouns)]
        return f"{'Her' if female else 'His'} {noun} is {fact.object}."
    return draws.pick(VERBS[fact.relation]).format(s="She" if female else "He", v=fact.object)


def ask(relation: str, subject: str, noun: int, frame: str) -> str:
    """A question in `frame`; `subject` may be a phrase ("the friend of Ada Fenn")."""
    wh = "Who" if relation in PERSON_RELATIONS else "What"
    return frame.format(w=wh, n=WORDS[relation][noun], s=spoken(subject, relation))


def before_value(text: str, value: str) -> str:
    """The prompt that a statement makes: everything before its value, without the space."""
    return text[: text.rindex(value)].rstrip()
