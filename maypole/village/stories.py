"""Who moved what while who was away: stories with reality and first-order belief, and a witness register for more.

In plain stories an agent's belief is the last place put or seen while present. In the witness register every event
lists who saw it, and nested belief is the fold f(f(event, a1), a2)...: an event exists for a chain of agents if each
one saw it and knew of the next one's seeing (arXiv 2405.18870 asks for orders two to six). Knows no model.
"""

from dataclasses import dataclass

from maypole.core.errors import ConfigError
from maypole.village.draws import Draws
from maypole.village.names import BOXES, FEMALE, MALE, TREASURES
from maypole.village.world import World

FIRST_NAMES = [*FEMALE, *MALE]
REGISTERS = ("plain", "witness")


@dataclass(frozen=True, slots=True)
class Story:
    """`sentences` tell it; `place` is where the object is, `beliefs` where each agent thinks that it is."""

    sentences: tuple[str, ...]
    thing: str
    agents: tuple[str, str]
    place: str
    beliefs: dict[str, str]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


def tell(draws: Draws, moves: int) -> Story:
    """Two people and one object; each move is made by somebody present, and people leave and come back."""
    first, second = draws.sample(FIRST_NAMES, 2)
    agents, thing, place = (first, second), draws.pick(TREASURES), draws.pick(BOXES)
    sentences = [f"{first} and {second} are in the room.", f"The {thing} is in the {place}."]
    present = {first: True, second: True}
    beliefs = {first: place, second: place}
    for _ in range(moves):
        mover = draws.pick(agents)
        other = second if mover == first else first
        if not present[mover]:
            sentences.append(f"{mover} comes back.")
            present[mover] = True
        if present[other] and draws.chance(0.5):
            sentences.append(f"{other} leaves.")
            present[other] = False
        place = draws.pick_other(BOXES, place)
        sentences.append(f"{mover} moves the {thing} to the {place}.")
        for agent in agents:
            if present[agent]:
                beliefs[agent] = place
    return Story(tuple(sentences), thing, agents, place, beliefs)


def where_question(story: Story) -> str:
    return f"Where is the {story.thing}?"


def belief_question(story: Story, agent: str) -> str:
    return f"Where does {agent} think that the {story.thing} is?"


def story(
    world: World, draws: Draws, register: str = "plain", order: int | None = None, moves: int | None = None
) -> dict:
    """A story with one question; `order` 0 is reality, 1 belief ("plain" goes no further)."""
    if register not in REGISTERS:
        raise ConfigError("register", register, REGISTERS)
    if register == "witness":
        return witness_story(draws, draws.between(0, 3) if order is None else order, moves or draws.between(2, 5))
    wanted = draws.below(2) if order is None else order
    if wanted not in (0, 1):
        raise ConfigError("order", wanted, "0 or 1; higher orders use register='witness'")
    told = tell(draws, moves or draws.between(1, 3))
    agent = draws.pick(told.agents)
    question = belief_question(told, agent) if wanted else where_question(told)
    answer = told.beliefs[agent] if wanted else told.place
    return {
        "text": f" {told.text} {question} The {answer}.",
        "question": f"{told.text} {question}",
        "answers": [answer],
        "order": wanted,
        "reality": told.place,
    }


@dataclass(frozen=True, slots=True)
class Event:
    """A move to `place`; `seen` knew openly of each other, `hidden` watched without being known to watch."""

    place: str
    seen: frozenset[str]
    hidden: str | None


def known_to(events: list[Event], agent: str) -> list[Event]:
    """The events as `agent` has them: what it saw openly, without hidden watchers, and what it watched in hiding."""
    kept: list[Event] = []
    for event in events:
        if agent in event.seen:
            kept.append(Event(event.place, event.seen, None))
        elif agent == event.hidden:
            kept.append(event)
    return kept


def believed_place(start: str, events: list[Event], chain: tuple[str, ...]) -> str:
    """Where the first of `chain` thinks that the second thinks ... the object is; the empty chain is reality."""
    for agent in chain:
        events = known_to(events, agent)
    return events[-1].place if events else start


def witness_story(draws: Draws, order: int, moves: int) -> dict:
    """Terse and explicit: "Ben moves key to jar, seen Ada Ben, hidden Cal." with a chain of `order` agents."""
    agents = draws.sample(FIRST_NAMES, 4)
    thing, places = draws.pick(TREASURES), draws.sample(BOXES, 3)
    start = place = draws.pick(places)
    events: list[Event] = []
    sentences = [f"{thing} in {start}, seen {' '.join(agents)}."]
    for _ in range(moves):
        mover, place = draws.pick(agents), draws.pick_other(places, place)
        seen = [agent for agent in agents if agent == mover or draws.chance(0.5)]
        rest = [agent for agent in agents if agent not in seen]
        hidden = draws.pick(rest) if rest and draws.chance(0.3) else None
        events.append(Event(place, frozenset(seen), hidden))
        watching = f", hidden {hidden}" if hidden else ""
        sentences.append(f"{mover} moves {thing} to {place}, seen {' '.join(seen)}{watching}.")
    chain: tuple[str, ...] = ()
    while len(chain) < order:
        chain = (*chain, draws.pick_other(agents, chain[-1]) if chain else draws.pick(agents))
    think = "".join(f"{agent} thinks that " for agent in chain)
    question = f"{think}{thing} in"
    answer = believed_place(start, events, chain)
    text = " ".join(sentences)
    return {
        "text": f" {text} {question} {answer}.",
        "question": f"{text} {question}",
        "answers": [answer],
        "order": order,
        "reality": place,
    }
