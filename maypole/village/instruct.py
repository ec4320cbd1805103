"""Instruct rows and few-shot texts: a task, a phrasing, inputs of a split, and the right answer."""

from collections.abc import Sequence

from maypole.core.errors import ConfigError
from maypole.village.draws import Draws
from maypole.village.language_tasks import HELD_LANGUAGE_TASKS, LANGUAGE_TASKS
from maypole.village.list_tasks import HELD_LIST_TASKS, LIST_TASKS, RULE_TASKS
from maypole.village.names import POOLS
from maypole.village.questions import chat, check_split
from maypole.village.tasks import Task
from maypole.village.world import World

BASE_TASKS: tuple[Task, ...] = (*LIST_TASKS, *RULE_TASKS, *LANGUAGE_TASKS)
HELD_OUT_TASKS: tuple[Task, ...] = (*HELD_LIST_TASKS, *HELD_LANGUAGE_TASKS)
TASKS: dict[str, Task] = {task.name: task for task in (*BASE_TASKS, *HELD_OUT_TASKS)}
COPY_LIKE = ("first", "last", "second", "copy", "reverse", "sort", "remove", "after", "unique", "and")
"""The ten list tasks whose answers are words of the question: what the first phase of pretraining learns."""
BASE_NAMES = tuple(task.name for task in BASE_TASKS)


def instruct(
    world: World, draws: Draws, tasks: Sequence[str] = BASE_NAMES, split: str = "train", phrasing: int | None = None
) -> dict:
    """One row of one of `tasks`; `phrasing` 0 and 1 are for training (None draws one), 2 is the held-out one."""
    check_split(split)
    name = draws.pick(tasks)
    if name not in TASKS:
        raise ConfigError("tasks", name, TASKS)
    task = TASKS[name]
    chosen = draws.below(2) if phrasing is None else phrasing
    inputs = task.inputs(world, draws, split)
    question, answer = task.prompt(inputs, chosen), task.solve(inputs)
    return {
        "messages": chat(question, answer),
        "question": question,
        "answers": [answer],
        "task": name,
        "family": task.family,
        "metric": task.metric,
        "phrasing": chosen,
        "split": split,
    }


LABELS = ("alpha", "beta", "gamma")


def icl(world: World, draws: Draws, shots: int | None = None, ways: int | None = None) -> dict:
    """ "Input: x Output: y." repeated: a hidden two- or three-way labelling of noun kinds, or one list task."""
    count = draws.between(3, 10) if shots is None else shots + 1
    if ways is None and draws.chance(0.4):
        task = TASKS[draws.pick(COPY_LIKE[:5])]
        examples = []
        for _ in range(min(count, 6)):
            inputs = task.inputs(world, draws, "train")
            examples.append((inputs["x"], task.solve(inputs)))
    else:
        number = ways or draws.between(2, 3)
        kinds, labels = draws.sample(list(POOLS), number), draws.shuffled(LABELS)
        examples = []
        for _ in range(count):
            place = draws.below(number)
            examples.append((draws.pick(POOLS[kinds[place]]), labels[place]))
    text = " ".join(f"Input: {question} Output: {answer}." for question, answer in examples)
    prompt = text[: text.rindex(" Output: ")] + " Output:"
    return {"text": f" {text}", "question": prompt, "answers": [examples[-1][1]]}
