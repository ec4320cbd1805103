"""Tasks on word meaning, short passages, formats, stories and the world's facts. Solvers read only what is shown,
except for facts, which come from the world."""

import json
from collections.abc import Callable

from maypole.village.draws import Draws
from maypole.village.names import (
    BAD,
    COLOURS,
    FEMALE,
    FOODS,
    GOOD,
    JOBS,
    MALE,
    OPPOSITES,
    POOLS,
    TREASURES,
    VALUES,
)
from maypole.village.phrases import WORDS
from maypole.village.stories import belief_question, tell, where_question
from maypole.village.tasks import Inputs, Task
from maypole.village.world import ATTRIBUTES, Fact, World

CATEGORY = {word: name for name, pool in POOLS.items() for word in pool}
FIRST_NAMES = [*FEMALE, *MALE]


def _category(world: World, draws: Draws) -> Inputs:
    return {"w": draws.pick(POOLS[draws.pick(list(POOLS))])}


def _odd(world: World, draws: Draws) -> Inputs:
    kind, other = draws.sample(list(POOLS), 2)
    return {"x": " ".join(draws.shuffled([*draws.sample(POOLS[kind], 3), draws.pick(POOLS[other])]))}


def _odd_solution(inputs: Inputs) -> str:
    words = inputs["x"].split()
    kinds = [CATEGORY[word] for word in words]
    return next(word for word, kind in zip(words, kinds) if kinds.count(kind) == 1)


def _opposite(world: World, draws: Draws) -> Inputs:
    pair = draws.pick(OPPOSITES)
    return {"w": pair[draws.below(2)]}


def _opposite_solution(inputs: Inputs) -> str:
    pair = next(pair for pair in OPPOSITES if inputs["w"] in pair)
    return pair[1] if inputs["w"] == pair[0] else pair[0]


def _sentiment(world: World, draws: Draws) -> Inputs:
    words = draws.sample(GOOD if draws.chance(0.5) else BAD, 2)
    food, thing = draws.pick(FOODS), draws.pick(TREASURES)
    return {"t": f"The {food} was {words[0]} and the {thing} was {words[1]}."}


def _three(world: World, draws: Draws, verb: str, pool: list[str]) -> tuple[list[str], list[str], str]:
    people, things = draws.sample(FIRST_NAMES, 3), draws.sample(pool, 3)
    return people, things, " ".join(f"{person} {verb} {thing}." for person, thing in zip(people, things))


def _read(world: World, draws: Draws) -> Inputs:
    people, _, text = _three(world, draws, "eats", FOODS)
    return {"t": text, "p": draws.pick(people)}


def _read_solution(inputs: Inputs) -> str:
    return next(s.split()[2] for s in inputs["t"].rstrip(".").split(". ") if s.split()[0] == inputs["p"])


def _who(verb: str, pool: list[str]) -> Callable[[World, Draws], Inputs]:
    def draw(world: World, draws: Draws) -> Inputs:
        _, things, text = _three(world, draws, verb, pool)
        return {"t": text, "v": draws.pick(things)}

    return draw


def _who_solution(inputs: Inputs) -> str:
    return next(s.split()[0] for s in inputs["t"].rstrip(".").split(". ") if s.split()[-1] == inputs["v"])


def _pronoun(world: World, draws: Draws) -> Inputs:
    pair = draws.shuffled([draws.pick(FEMALE), draws.pick(MALE)])
    pronoun = "She" if draws.chance(0.5) else "He"
    return {"t": f"{pair[0]} gave {pair[1]} the {draws.pick(TREASURES)}. {pronoun} was glad."}


def _pronoun_solution(inputs: Inputs) -> str:
    words = inputs["t"].split()
    return next(name for name in (words[0], words[2]) if (name in FEMALE) == ("She" in words))


def _entail(world: World, draws: Draws) -> Inputs:
    person, colour, thing = draws.pick(FIRST_NAMES), draws.pick(COLOURS), draws.pick(TREASURES)
    claim = thing if draws.chance(0.5) else draws.pick_other(TREASURES, thing)
    return {"t": f"{person} has a {colour} {thing}.", "h": f"{person} has a {claim}."}


def _entail_solution(inputs: Inputs) -> str:
    return "yes" if inputs["t"].split()[-1] == inputs["h"].split()[-1] else "no"


def _record(world: World, draws: Draws) -> Inputs:
    return {"p": draws.pick(FIRST_NAMES), "j": draws.pick(JOBS), "f": draws.pick(FOODS)}


def _triple_inputs(world: World, draws: Draws) -> list[tuple[str, str, str]]:
    people = draws.sample(FIRST_NAMES, 2)
    return [
        (person, *draws.pick([("eats", f) for f in FOODS] + [("finds", t) for t in TREASURES])) for person in people
    ]


def _sentences(world: World, draws: Draws) -> Inputs:
    return {"t": " ".join(f"{s} {r} {o}." for s, r, o in _triple_inputs(world, draws))}


def _triples(world: World, draws: Draws) -> Inputs:
    return {"t": " ; ".join(f"{s} | {r} | {o}" for s, r, o in _triple_inputs(world, draws))}


def _to_triples(inputs: Inputs) -> str:
    return " ; ".join(" | ".join(sentence.split()) for sentence in inputs["t"].rstrip(".").split(". "))


def _from_triples(inputs: Inputs) -> str:
    return " ".join(" ".join(triple.split(" | ")) + "." for triple in inputs["t"].split(" ; "))


def _where(world: World, draws: Draws) -> Inputs:
    story = tell(draws, draws.between(1, 3))
    return {"t": story.text, "q": where_question(story), "v": story.thing, "_answer": story.place}


def _belief(world: World, draws: Draws) -> Inputs:
    story = tell(draws, draws.between(1, 3))
    agent = draws.pick(story.agents)
    answer = story.beliefs[agent]
    return {"t": story.text, "q": belief_question(story, agent), "p": agent, "v": story.thing, "_answer": answer}


def _known_attribute(world: World, draws: Draws) -> Fact:
    person, relation = draws.pick(world.chat_people), draws.pick(ATTRIBUTES)
    return Fact(person.name, relation, world.lookup[person.name, relation])


def _factyn(world: World, draws: Draws) -> Inputs:
    fact = _known_attribute(world, draws)
    value = fact.object if draws.chance(0.5) else draws.pick_other(VALUES[fact.relation], fact.object)
    answer = "yes" if value == fact.object else "no"
    return {"n": WORDS[fact.relation][0], "s": fact.subject, "v": value, "_answer": answer}


def _factmc(world: World, draws: Draws) -> Inputs:
    fact = _known_attribute(world, draws)
    wrong = [value for value in VALUES[fact.relation] if value != fact.object]
    options = draws.shuffled([fact.object, *draws.sample(wrong, 3)])
    return {"n": WORDS[fact.relation][0], "s": fact.subject, "x": ", ".join(options), "_answer": fact.object}


def _told(inputs: Inputs) -> str:
    return inputs["_answer"]


LANGUAGE_TASKS = (
    Task("category", "language", ("What kind is {w}?", "Kind: {w}", "Say which kind {w} is."),
         _category, lambda i: CATEGORY[i["w"]], 0.18, finite=True),
    Task("odd", "language", ("Which one is odd in {x}?", "Odd one: {x}", "Give the word that is odd in {x}."),
         _odd, _odd_solution, 0.25),
    Task("opposite", "language", ("What is the opposite of {w}?", "Opposite: {w}", "Say the opposite of {w}."),
         _opposite, _opposite_solution, 0.05, finite=True),
    Task("sentiment", "language", ("Good or bad? {t}", "Review: {t}", "Is this good or bad: {t}"),
         _sentiment, lambda i: "good" if any(w in i["t"].replace(".", "").split() for w in GOOD) else "bad", 0.5),
    Task("read", "reading", ("{t} What does {p} eat?", "{t} Food of {p}:", "Read: {t} Say what {p} eats."),
         _read, _read_solution, 0.34),
    Task("who", "reading", ("{t} Who has {v}?", "{t} Holder of {v}:", "Read: {t} Say who has {v}."),
         _who("has", TREASURES), _who_solution, 0.34),
    Task("pronoun", "reading", ("{t} Who was glad?", "{t} The glad one:", "Read: {t} Say who was glad."),
         _pronoun, _pronoun_solution, 0.5),
    Task("entail", "reading", ("{t} So: {h} Yes or no?", "{t} Then: {h}", "Read: {t} Does it follow: {h}"),
         _entail, _entail_solution, 0.5),
    Task("json", "format",
         ("Write as JSON: name {p}, job {j}, food {f}.", "JSON: {p} {j} {f}", "Give {p}, {j}, {f} as JSON."),
         _record, lambda i: json.dumps({"name": i["p"], "job": i["j"], "food": i["f"]}), 0.0, metric="json"),
    Task("totriples", "format", ("Write as triples: {t}", "Triples: {t}", "Give this as triples: {t}"),
         _sentences, _to_triples, 0.0),
    Task("fromtriples", "format", ("Write as text: {t}", "Text: {t}", "Give this as text: {t}"),
         _triples, _from_triples, 0.0),
    Task("where", "story", ("{t} {q}", "{t} Place of the {v}:", "Read: {t} Say where the {v} is."),
         _where, _told, 0.15),
    Task("belief", "story",
         ("{t} {q}", "{t} What {p} thinks is the place of the {v}:", "Read: {t} Say where {p} thinks the {v} is."),
         _belief, _told, 0.15),
    Task("factyn", "knowledge",
         ("Is {v} the {n} of {s}?", "True or not: {n} of {s}, {v}", "Does {s} have the {n} {v}?"),
         _factyn, _told, 0.5),
    Task("factmc", "knowledge",
         ("Which is the {n} of {s}: {x}?", "Choose the {n} of {s}: {x}", "Out of {x}, give the {n} of {s}."),
         _factmc, _told, 0.25),
)  # fmt: skip
HELD_LANGUAGE_TASKS = (
    Task("eater", "reading", ("{t} Who eats {v}?", "{t} Eater of {v}:", "Read: {t} Say who eats {v}."),
         _who("eats", FOODS), _who_solution, 0.34, held_out=True),
)  # fmt: skip
