"""The village's words: every name, value and noun is one English-like word. Knows nothing about who has which."""


def _words(text: str) -> list[str]:
    return text.split()


FEMALE = _words(
    "Ada Bella Clara Dora Edith Flora Greta Hilda Ida Julia Karen Laura Mabel Nora Olive Paula "
    "Rosa Sarah Tilda Ursula Vera Wilma Yvonne Zoe Alice Brenda Celia Doris Emma Frieda Gwen Helen"
)
MALE = _words(
    "Adam Ben Carl David Edgar Felix Gus Hugo Ian Jack Kurt Leo Max Ned Oscar Peter "
    "Ralph Simon Tom Urban Victor Walt Xavier Yuri Arthur Boris Cyril Dean Eric Frank Glen Henry"
)
LAST = _words(
    "Fenn Holt Marsh Abbot Barrow Carver Dalton Eaton Fletcher Garner Harrow Ingram Jarvis Keller Lowell Mercer "
    "Norris Osgood Pryor Quill Ramsey Selby Thorne Upton Vance Waller Yates Archer Becker Calder Draper Ellery "
    "Farley Gibbs Hadley Irving Jessop Kendal Lambert Morton Nash Ogden Parrish Quincy Radley Sawyer Talbot Usher "
    "Vickers Wexford Yardley Ashby Bixby Crosby Denby Enderby Farnham Goodwin Huxley Ives Jordan Kirby Langley Milner "
    "Newell Oakes Penrose Quigley Rowan Sutton Tennant Umber Vernon Winslow Yorke Aldous Bowman Cobb Dudley Emery "
    "Foster Grant Hobbs Ivory Jenner Knight Lister Monroe Nolan Orwell Pickett Rigby Stokes Tyler Varley Webster"
)

JOBS = _words(
    "baker miller tailor weaver potter mason carpenter blacksmith shepherd fisher sailor painter "
    "barber brewer butcher cook doctor nurse lawyer singer dancer gardener hunter clerk"
)
HOMES = _words(
    "Birchwood Clayton Dunmore Elmford Foxley Greenhill Hartwell Kingsbridge Longfield Millbrook Northcote Oakridge "
    "Pinewood Redcliff Stonebury Thornbury Underhill Westport Yewdale Ashton Bramley Copperton Deepdale Fairview "
    "Glenside Highgate Larkspur Moorgate Newbury Saltmarsh Tidewater Willowby"
)
PETS = _words("cat dog goat hen horse rabbit parrot pony duck sheep turtle mouse frog lamb goose pigeon")
FOODS = _words(
    "bread cheese plum soup honey rice fish cake apple pear butter cabbage "
    "carrot bean lentil mushroom pudding sausage noodle walnut cherry porridge salad pie"
)
MONTHS = _words("January February March April May June July August September October November December")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
INSTRUMENTS = _words(
    "fiddle flute drum harp lute piano trumpet guitar banjo cello horn pipe bugle viola zither tambourine"
)
TREASURES = _words(
    "coin ring key map pearl lantern mirror button feather shell candle book "
    "clock vase ribbon statue medal compass marble locket crown goblet whistle kite"
)
COLOURS = _words("red blue green yellow black white purple")
TOOLS = _words(
    "oven millstone needle loom wheel chisel saw hammer staff net rope brush "
    "razor barrel cleaver ladle lancet bandage seal mask slipper spade bow stamp"
)
RIVERS = _words("Alder Brent Cam Derwent Esk Frome Humber Severn")
REGIONS = _words("Eastmark Lowland Midshire Northmark Southvale Westmoor")

POOLS: dict[str, list[str]] = {
    "animal": PETS,
    "food": FOODS,
    "thing": TREASURES,
    "colour": COLOURS,
    "tool": TOOLS,
    "instrument": INSTRUMENTS,
}
NOUNS: list[str] = [noun for pool in POOLS.values() for noun in pool]

OPPOSITES: list[tuple[str, str]] = [
    ("hot", "cold"), ("big", "small"), ("tall", "short"), ("old", "young"), ("fast", "slow"), ("wet", "dry"),
    ("rich", "poor"), ("loud", "quiet"), ("light", "dark"), ("full", "empty"), ("open", "shut"), ("early", "late"),
    ("strong", "weak"), ("hard", "soft"), ("clean", "dirty"), ("happy", "sad"),
]  # fmt: skip
TOPICS: dict[str, list[str]] = {
    "sea": _words("wave gull tide anchor harbour sand storm reef island whale deck captain"),
    "farm": _words("field barn plough wheat hay fence tractor harvest mud orchard seed crop"),
    "school": _words("desk chalk lesson pupil paper pencil exam library ruler bell essay classroom"),
    "kitchen": _words("pot spoon plate stove flour sugar salt kettle recipe jug oil fork"),
    "forest": _words("tree moss path fern root leaf owl deer branch pine hollow nest"),
    "winter": _words("snow ice frost scarf sledge coat fire wind glove chimney icicle blanket"),
}
BOXES = _words("basket drawer chest jar bag crate bucket cupboard")
GOOD = _words("lovely tasty cheerful splendid charming pleasant")
BAD = _words("horrible stale gloomy dreadful boring nasty")
TEMPLATE_WORDS = _words(
    "All Difference Does Doubled Eater Let Out Read Rotate Swap Swapped Take but each end follow give have less much "
    "number phrase repeat reverse sorted stands swapped times twice two what where which who without"
)
"""Words that only held-out phrasings use: they stand among repeated random words, so that no phrasing has a new one."""
VALUES: dict[str, list[str]] = {
    "job": JOBS,
    "home": HOMES,
    "pet": PETS,
    "food": FOODS,
    "month": MONTHS,
    "market": DAYS,
    "instrument": INSTRUMENTS,
    "treasure": TREASURES,
    "river": RIVERS,
    "region": REGIONS,
    "dish": FOODS,
    "tool": TOOLS,
}


def all_words() -> list[str]:
    """Every word that must be one token, in a fixed order, without repeats."""
    words = [*FEMALE, *MALE, *LAST, *NOUNS, *JOBS, *HOMES, *MONTHS, *DAYS, *RIVERS, *REGIONS, *BOXES, *GOOD, *BAD]
    words += [word for pair in OPPOSITES for word in pair] + [word for topic in TOPICS.values() for word in topic]
    return list(dict.fromkeys(words))
