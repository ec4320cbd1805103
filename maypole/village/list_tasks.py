"""Tasks on lists of words, rings, numbers and the calendar: all solved by rule from the words shown."""

from collections.abc import Callable

from maypole.village.draws import Draws
from maypole.village.names import DAYS, MONTHS, NOUNS
from maypole.village.tasks import Inputs, Task
from maypole.village.world import World


def _list(low: int, high: int) -> Callable[[World, Draws], Inputs]:
    def draw(world: World, draws: Draws) -> Inputs:
        return {"x": " ".join(draws.sample(NOUNS, draws.between(low, high)))}

    return draw


def _member(world: World, draws: Draws) -> Inputs:
    words = draws.sample(NOUNS, draws.between(3, 5))
    word = draws.pick(words) if draws.chance(0.5) else draws.pick_other(NOUNS, *words)
    return {"w": word, "x": " ".join(words)}


def _remove(world: World, draws: Draws) -> Inputs:
    words = draws.sample(NOUNS, draws.between(3, 5))
    return {"w": draws.pick(words), "x": " ".join(words)}


def _after(world: World, draws: Draws) -> Inputs:
    words = draws.sample(NOUNS, draws.between(3, 5))
    return {"w": words[draws.below(len(words) - 1)], "x": " ".join(words)}


def _unique(world: World, draws: Draws) -> Inputs:
    words = draws.sample(NOUNS, draws.between(2, 4))
    place = draws.below(len(words))
    return {"x": " ".join([*words[: place + 1], *words[place:]])}


def _unique_solution(inputs: Inputs) -> str:
    return " ".join(dict.fromkeys(inputs["x"].split()))


def _and_solution(inputs: Inputs) -> str:
    *front, last = inputs["x"].split()
    return f"{', '.join(front)} and {last}"


def _after_solution(inputs: Inputs) -> str:
    words = inputs["x"].split()
    return words[words.index(inputs["w"]) + 1]


def _ring(world: World, draws: Draws) -> Inputs:
    return {"n": str(draws.between(1, 9))}


def _numbers(top: int) -> Callable[[World, Draws], Inputs]:
    def draw(world: World, draws: Draws) -> Inputs:
        a = draws.between(0, top)
        return {"a": str(a), "b": str(draws.pick_other(range(top + 1), a))}

    return draw


def _subtract(world: World, draws: Draws) -> Inputs:
    a, b = sorted((draws.between(0, 49), draws.between(0, 49)))
    return {"a": str(b), "b": str(a)}


def _calendar(cycle: list[str]) -> Callable[[World, Draws], Inputs]:
    def draw(world: World, draws: Draws) -> Inputs:
        return {"n": str(draws.between(2, 9)), "d": draws.pick(cycle)}

    return draw


def _later(cycle: list[str]) -> Callable[[Inputs], str]:
    return lambda inputs: cycle[(cycle.index(inputs["d"]) + int(inputs["n"])) % len(cycle)]


def _rotate_solution(inputs: Inputs) -> str:
    first, *rest = inputs["x"].split()
    return " ".join([*rest, first])


def _swap_solution(inputs: Inputs) -> str:
    first, second, *rest = inputs["x"].split()
    return " ".join([second, first, *rest])


LIST_TASKS = (
    Task("first", "list", ("Give the first word of {x}.", "First word: {x}", "Which word comes first in {x}?"),
         _list(3, 6), lambda i: i["x"].split()[0], 0.22),
    Task("last", "list", ("Give the last word of {x}.", "Last word: {x}", "Which word comes last in {x}?"),
         _list(3, 6), lambda i: i["x"].split()[-1], 0.22),
    Task("second", "list", ("Give the second word of {x}.", "Second word: {x}", "Which word comes second in {x}?"),
         _list(3, 6), lambda i: i["x"].split()[1], 0.22),
    Task("copy", "list", ("Copy {x}.", "Say again: {x}", "Write the words {x} once more."),
         _list(2, 5), lambda i: i["x"], 0.0),
    Task("reverse", "list", ("Reverse {x}.", "Say backwards: {x}", "Write the words {x} in reverse order."),
         _list(2, 4), lambda i: " ".join(reversed(i["x"].split())), 0.0),
    Task("sort", "list", ("Sort {x}.", "In order of the alphabet: {x}", "Write the words {x} sorted."),
         _list(2, 4), lambda i: " ".join(sorted(i["x"].split())), 0.24),
    Task("count", "list", ("Count the words of {x}.", "How many words: {x}", "Which number of words has {x}?"),
         _list(2, 7), lambda i: str(len(i["x"].split())), 0.17),
    Task("member", "list", ("Is {w} in {x}?", "Look for {w}: {x}", "Does the list {x} have {w}?"),
         _member, lambda i: "yes" if i["w"] in i["x"].split() else "no", 0.5),
    Task("remove", "list", ("Remove {w} from {x}.", "Without {w}: {x}", "Write the words {x} but leave out {w}."),
         _remove, lambda i: " ".join(w for w in i["x"].split() if w != i["w"]), 0.26),
    Task("after", "list",
         ("Which word follows {w} in {x}?", "After {w}: {x}", "Give the word that comes after {w} in {x}."),
         _after, _after_solution, 0.36),
    Task("unique", "list",
         ("Drop the repeated word of {x}.", "Each once: {x}", "Write the words {x} without the repeat."),
         _unique, _unique_solution, 0.36),
    Task("and", "list", ("Join {x}.", "With and: {x}", "Write the words {x} as a phrase with and."),
         _list(2, 5), _and_solution, 0.0),
)  # fmt: skip
RULE_TASKS = (
    Task("ring", "ring", ("Ring {n} bells.", "Bells: {n}", "Let me hear {n} bells."),
         _ring, lambda i: " ".join(["bell"] * int(i["n"])), 0.12, finite=True),
    Task("add", "number", ("Add {a} and {b}.", "Sum: {a} + {b}", "How much is {a} and {b}?"),
         _numbers(49), lambda i: str(int(i["a"]) + int(i["b"])), 0.02),
    Task("larger", "number",
         ("Which is larger, {a} or {b}?", "Larger: {a} {b}", "Give the larger number of {a} and {b}."),
         _numbers(99), lambda i: str(max(int(i["a"]), int(i["b"]))), 0.5),
    Task("dayplus", "calendar", ("Which day is {n} days after {d}?", "{d} + {n} days", "Add {n} days to {d}."),
         _calendar(DAYS), _later(DAYS), 0.15),
    Task("monthplus", "calendar",
         ("Which month is {n} months after {d}?", "{d} + {n} months", "Add {n} months to {d}."),
         _calendar(MONTHS), _later(MONTHS), 0.09),
)  # fmt: skip
HELD_LIST_TASKS = (
    Task("rotate", "list", ("Rotate {x}.", "First to the end: {x}", "Write the words {x} with the first one last."),
         _list(3, 5), _rotate_solution, 0.0, held_out=True),
    Task("swap", "list",
         ("Swap the first two of {x}.", "Swapped: {x}", "Write the words {x} with the first two swapped."),
         _list(3, 5), _swap_solution, 0.0, held_out=True),
    Task("dropfirst", "list",
         ("Drop the first of {x}.", "All but the first: {x}", "Write the words {x} from the second on."),
         _list(3, 5), lambda i: " ".join(i["x"].split()[1:]), 0.0, held_out=True),
    Task("double", "list", ("Say each word of {x} twice.", "Doubled: {x}", "Write the words {x}, each two times."),
         _list(2, 4), lambda i: " ".join(w for word in i["x"].split() for w in (word, word)), 0.0, held_out=True),
    Task("secondlast", "list",
         ("Give the last word but one of {x}.", "Last but one: {x}", "Which word stands before the last in {x}?"),
         _list(3, 6), lambda i: i["x"].split()[-2], 0.22, held_out=True),
    Task("subtract", "number", ("Take {b} from {a}.", "Difference: {a} - {b}", "How much is {a} less {b}?"),
         _subtract, lambda i: str(int(i["a"]) - int(i["b"])), 0.04, held_out=True),
    Task("daybefore", "calendar", ("Which day is {n} days before {d}?", "{d} - {n} days", "Go back {n} days from {d}."),
         _calendar(DAYS), lambda i: DAYS[(DAYS.index(i["d"]) - int(i["n"])) % 7], 0.15, held_out=True),
)  # fmt: skip
