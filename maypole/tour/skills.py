"""What a tour teaches besides its corpus, and asks before and after: list tasks new to the base, and its old ones.

Knows nothing about training or reports.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from maypole.core.identity import digest
from maypole.core.seeds import derive
from maypole.data.rows import CHAT, COMPLETION, RowType
from maypole.engine.engine import Engine
from maypole.engine.request import Request, Sampling
from maypole.models.language_model import LanguageModel
from maypole.village.instruct import BASE_NAMES
from maypole.village.measures import MAX_NEW_TOKENS, Question, recall_questions, task_questions
from maypole.village.render import render
from maypole.village.world import World

NEW = ("rotate", "swap")
"""Tasks that no base mix contains."""
OLD = ("first", "last", "second", "reverse", "count", "category", "opposite", "sentiment")
"""Tasks of the base mix that it learns well: what there is to forget."""
FACTS = ("attribute/trained", "attribute/H1", "person/trained")
"""Groups of facts that the base recalls."""
OLD_SHARE = 0.6
"""Of the instructions: they keep the old tasks while the new ones are learnt."""
QUESTION_SEED = 2


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and the measure that it counts for."""

    measure: str
    question: Question


def instructions(lm: LanguageModel, rows: int, seed: int) -> tuple[Dataset, RowType]:
    """`rows` instructions, most of them old tasks; chats where the model has a template, completions elsewhere."""
    world, old = World(0), round(rows * OLD_SHARE)
    drawn = [
        *render(world, "instruct", rows - old, derive(seed, "new tasks"), tasks=NEW, split="train"),
        *render(world, "instruct", old, derive(seed, "old tasks"), tasks=BASE_NAMES, split="train"),
    ]
    chats = [row["messages"] for row in drawn]
    if lm.tokenizer.chat_template:
        made, kind = Dataset.from_dict({"messages": chats}), CHAT
    else:
        pairs = {"prompt": [plain(c[:-1]) for c in chats], "completion": [f" {c[-1]['content']}" for c in chats]}
        made, kind = Dataset.from_dict(pairs), COMPLETION
    made._fingerprint = digest("tour instructions", kind.name, str(rows), str(seed), *NEW)
    return made, kind


def questions(count: int, *, own: bool) -> list[Asked]:
    """About `count` questions on test inputs. Of maypole's own base: a third each on new tasks, old tasks and facts;
    of any other model, to which all tasks are new: half on each kind of task, as one measure."""
    world, part = World(0), count // 3 if own else count // 2
    new = task_questions(world, max(1, part // len(NEW)), QUESTION_SEED, NEW)
    old = task_questions(world, max(1, part // len(OLD)), QUESTION_SEED, OLD)
    if not own:
        return [Asked("task accuracy", question) for question in (*new, *old)]
    facts = [q for q in recall_questions(world, max(1, part // len(FACTS))) if q.group in FACTS]
    groups = {"new tasks": new, "old tasks": old, "facts recalled": facts}
    return [Asked(measure, question) for measure, asked in groups.items() for question in asked]


def fitting(asked: Sequence[Asked], engine: Engine) -> list[Asked]:
    """Those whose prompt and answer fit the model's context."""
    room = engine.max_length - MAX_NEW_TOKENS
    return [a for a in asked if len(engine.encode(_prompt(a.question, engine))) <= room]


def ask(engine: Engine, asked: Sequence[Asked]) -> list[str]:
    """Greedy answers to every question."""
    stop = () if engine.tokenizer.chat_template else ("\n",)
    sampling = Sampling(max_tokens=MAX_NEW_TOKENS, temperature=0.0, stop=stop)
    return [o.text for o in engine.generate([Request(_prompt(a.question, engine), sampling) for a in asked])]


def plain(messages: Sequence[dict[str, str]]) -> str:
    """A conversation as plain text, for models without a template."""
    return "\n".join(m["content"] for m in messages) + "\nAnswer:"


def _prompt(question: Question, engine: Engine) -> Any:
    templated = isinstance(question.prompt, str) or engine.tokenizer.chat_template
    return question.prompt if templated else plain(question.prompt)  # type: ignore[arg-type]
