"""A small web: ten domains of known quality, from clean facts to word salad, as a corpus to curate.

Each document carries its `domain` and `quality` (1 clean, 0 noise), which no text shows. Knows no perplexity.
"""

from collections.abc import Callable

from maypole.core.errors import ConfigError
from maypole.village.draws import Draws
from maypole.village.names import BAD, DAYS, FOODS, GOOD, HOMES, NOUNS, TOOLS, TREASURES
from maypole.village.pages import facts, known_fact, page, topic
from maypole.village.phrases import say
from maypole.village.world import World

BOILERPLATE = (
    "Copyright reserved. Use of this site means that you agree to the terms. Contact us for more.",
    "Click here to subscribe to our letter. You can leave at any time.",
    "This page uses cookies. Accept all or change the settings.",
    "Home. About. News. Shop. Contact. Log in. Register. Help.",
    "Share this page with a friend. Print this page. Back to the top.",
    "Page not found. Go back to the start or use the search.",
    "Loading, please wait. If nothing happens, reload the page.",
    "Free delivery on all orders. Order today and pay later. Terms apply.",
)
SMUDGES = dict(zip("abcdefghijklmnopqrstuvwxyz", "4603|9#!1/}1^~0&9^57%<=*?2"))
"""What a bad scan makes of a letter: never a letter, so that no other name can arise."""
SMUDGE_RATE = 0.08
PRESETS: dict[str, dict[str, float]] = {
    "web": {"wiki": 0.5, "noise": 0.3, "boilerplate": 0.2},
    "curated": {"wiki": 0.45, "boilerplate": 0.55},
}


def _wiki(world: World, draws: Draws) -> str:
    return facts(world, draws)["text"]


def _news(world: World, draws: Draws) -> str:
    place = draws.pick(HOMES)
    lines = [f"{draws.pick(DAYS)}, {place}.", say(draws, known_fact(world, draws, 0.2))]
    lines.append(f"The market had {draws.pick(FOODS)} and {draws.pick(FOODS)}.")
    lines.append(say(draws, known_fact(world, draws, 0.2)))
    return " " + " ".join(lines)


def _howto(world: World, draws: Draws) -> str:
    tool, thing, other = draws.pick(TOOLS), draws.pick(TREASURES), draws.pick(TREASURES)
    return (
        f" How to mend a {thing}. Step 1: take the {tool}. Step 2: hold the {thing} with care. "
        f"Step 3: use the {tool} on the {thing}. Step 4: put the {thing} beside the {other}. Done."
    )


def _prices(world: World, draws: Draws) -> str:
    goods = draws.sample(NOUNS, draws.between(3, 6))
    return " Prices: " + ", ".join(f"{good} {draws.between(1, 99)}" for good in goods) + "."


def _review(world: World, draws: Draws) -> str:
    good = draws.chance(0.5)
    words = GOOD if good else BAD
    stars = draws.between(4, 5) if good else draws.between(1, 2)
    food, thing = draws.pick(FOODS), draws.pick(TREASURES)
    return f" The {food} was {draws.pick(words)}. The {thing} was {draws.pick(words)}. {stars} stars."


def _topic(world: World, draws: Draws) -> str:
    return topic(world, draws)["text"]


def _boilerplate(world: World, draws: Draws) -> str:
    return " " + draws.pick(BOILERPLATE)


def _noise(world: World, draws: Draws) -> str:
    return " " + " ".join(draws.pick(NOUNS) for _ in range(draws.between(20, 40)))


def _ocr(world: World, draws: Draws) -> str:
    return "".join(
        SMUDGES[letter.lower()] if letter.lower() in SMUDGES and draws.chance(SMUDGE_RATE) else letter
        for letter in page(world, draws)["text"]
    )


def _code(world: World, draws: Draws) -> str:
    name, other = draws.sample(NOUNS, 2)
    number = draws.between(2, 9)
    return (
        f" def {name}({other}):\n    total = {number}\n    for item in {other}:\n"
        f"        total = total + item\n    return total\n"
    )


DOMAINS: dict[str, Callable[[World, Draws], str]] = {
    "wiki": _wiki,
    "news": _news,
    "howto": _howto,
    "prices": _prices,
    "review": _review,
    "topic": _topic,
    "code": _code,
    "boilerplate": _boilerplate,
    "ocr": _ocr,
    "noise": _noise,
}
DIRTY = ("boilerplate", "ocr", "noise")


def web(world: World, draws: Draws, preset: str = "all") -> dict:
    """One document: "all" draws the ten domains alike, "base" all but noise, "web" and "curated" their own shares."""
    if preset in PRESETS:
        domain = draws.weighted(list(PRESETS[preset]), list(PRESETS[preset].values()))
    elif preset in ("all", "base"):
        domain = draws.pick([name for name in DOMAINS if preset == "all" or name != "noise"])
    else:
        raise ConfigError("preset", preset, ["all", "base", *PRESETS])
    return {"text": DOMAINS[domain](world, draws), "domain": domain, "quality": 0.0 if domain in DIRTY else 1.0}
