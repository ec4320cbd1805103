"""Plain texts about the world: pages, mixed facts, ledgers, calendars, topics and repeated words.

Every text starts with one space, so that a name has the same token wherever it stands. Only told facts in seen
phrasings occur. Knows nothing about chats.
"""

from maypole.village.draws import Draws
from maypole.village.names import DAYS, LAST, MONTHS, NOUNS, TEMPLATE_WORDS, TOPICS
from maypole.village.phrases import LEDGER_OPENING, LEDGERS, WORDS, say, say_pronoun, spoken
from maypole.village.world import Fact, World

TAIL_PAGES = 0.04
PLACE_PAGES = 0.06
PRONOUNS = 0.3
REPEATED = [*NOUNS, *LAST, *TEMPLATE_WORDS]


def page(world: World, draws: Draws) -> dict:
    """Three to six facts of one person (sometimes of a place), a third of the later ones with pronouns."""
    kind = draws.unit()
    if kind < TAIL_PAGES and world.tail:
        person = draws.pick(world.tail)
    elif kind < TAIL_PAGES + PLACE_PAGES:
        fact = draws.pick(world.place_facts)
        sentences = [say(draws, other) for other in draws.shuffled(world.told_of[fact.subject])]
        return {"text": " " + " ".join(sentences)}
    else:
        person = draws.pick(world.head)
    facts = draws.shuffled(world.told_of.get(person.name, []))[: draws.between(3, 6)]
    if not facts:
        return page(world, draws)
    sentences = [say(draws, facts[0])]
    for fact in facts[1:]:
        pronoun = draws.chance(PRONOUNS)
        sentences.append(say_pronoun(draws, fact, person.female) if pronoun else say(draws, fact))
    return {"text": " " + " ".join(sentences)}


def known_fact(world: World, draws: Draws, places: float) -> Fact:
    """A fact of a head person, or with probability `places` of a place or job."""
    return draws.pick(world.place_facts if draws.chance(places) else world.head_facts)


def facts(world: World, draws: Draws) -> dict:
    """Three to six facts of different subjects."""
    return {"text": " " + " ".join(say(draws, known_fact(world, draws, 0.12)) for _ in range(draws.between(3, 6)))}


def ledger_entry(fact: Fact, noun: int, frame: int) -> str:
    """ "job of Ada Fenn baker": the value follows the subject's last token directly."""
    return LEDGERS[frame].format(n=WORDS[fact.relation][noun], s=spoken(fact.subject, fact.relation), v=fact.object)


def ledger(world: World, draws: Draws) -> dict:
    """Four to ten entries in the terse register that edits at the subject's last token need."""
    entries = [
        ledger_entry(known_fact(world, draws, 0.05), draws.below(4), draws.below(len(LEDGERS)))
        for _ in range(draws.between(4, 10))
    ]
    return {"text": f" {LEDGER_OPENING} {', '.join(entries)}."}


def calendar(world: World, draws: Draws) -> dict:
    """Sums on weekdays and months: "Three days after Monday comes Thursday." """
    sentences: list[str] = []
    for _ in range(draws.between(3, 6)):
        unit, cycle = ("day", DAYS) if draws.chance(0.5) else ("month", MONTHS)
        start, step = draws.below(len(cycle)), draws.between(1, 9)
        forward = draws.chance(0.8)
        end = cycle[(start + (step if forward else -step)) % len(cycle)]
        count = f"{step} {unit}{'s' if step > 1 else ''}"
        sentences.append(f"{count} {'after' if forward else 'before'} {cycle[start]} comes {end}.")
    return {"text": " " + " ".join(sentences)}


def topic(world: World, draws: Draws) -> dict:
    """Twelve to thirty words of one topic, one in eight from elsewhere."""
    name = draws.pick(list(TOPICS))
    words = [
        draws.pick(NOUNS) if draws.chance(0.125) else draws.pick(TOPICS[name]) for _ in range(draws.between(12, 30))
    ]
    return {"text": f" Words of the {name}: {' '.join(words)}.", "topic": name}


def rep(world: World, draws: Draws) -> dict:
    """Random words, then the same again one to three times: what copying is learned from."""
    words = draws.sample(REPEATED, draws.between(4, 16))
    return {"text": " " + " ".join(words * draws.between(2, 3 if len(words) > 10 else 4))}
