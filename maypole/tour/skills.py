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
from maypole.village.measures import MAX_NEW_TOKENS, Question, is_right, recall_questions, task_questions
from maypole.village.render import render
from maypole.village.world import World

NEW = ("rotate", "swap")
"""Tasks that no base mix contains."""
KEPT = ("first", "last", "second", "reverse", "count", "category", "opposite", "sentiment")
"""Tasks of the base mix that it learns well: what there is to forget."""
OLD_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Marks:
    """Right or wrong for each question, and what was answered."""

    questions: Sequence[Question]
    replies: Sequence[str]

    @property
    def right(self) -> list[float]:
        return [float(is_right(q, r)) for q, r in zip(self.questions, self.replies, strict=True)]

    def where(self, *groups: str) -> list[float]:
        """Marks of the questions whose group begins with one of `groups`."""
        return [m for q, m in zip(self.questions, self.right, strict=True) if q.group.startswith(groups)]


def instructions(lm: LanguageModel, rows: int, seed: int) -> tuple[Dataset, RowType]:
    """`rows` instructions, half of them old tasks; chats where the model has a template, completions elsewhere."""
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


def questions(count: int, facts: bool) -> list[Question]:
    """About `count` questions: half on new tasks, the rest on old ones and, with `facts`, on what the base knows."""
    world = World(0)
    each = max(2, count // (2 * len(NEW)))
    asked = task_questions(world, each, seed=2, tasks=NEW)
    kept = max(1, count // ((4 if facts else 2) * len(KEPT)))
    asked += task_questions(world, kept, seed=2, tasks=KEPT)
    if facts:
        known = ("attribute/trained", "attribute/H1", "person/trained")
        asked += [q for q in recall_questions(world, max(2, count // 12)) if q.group in known]
    return asked


def ask(lm: LanguageModel, asked: Sequence[Question]) -> Marks:
    """Greedy answers of `lm` to every question."""
    engine = Engine(lm)
    templated = bool(lm.tokenizer.chat_template)
    stop = () if templated else ("\n",)
    requests = []
    for question in asked:
        prompt: Any = question.prompt
        if not isinstance(prompt, str) and not templated:
            prompt = plain(prompt)
        sampling = Sampling(max_tokens=MAX_NEW_TOKENS, temperature=0.0, stop=stop)
        requests.append(Request(prompt=prompt, sampling=sampling))
    replies = [output.text for output in engine.generate(requests)]
    engine.close()
    return Marks(list(asked), replies)


def plain(messages: Sequence[dict[str, str]]) -> str:
    """A conversation as plain text, for models without a template."""
    return "\n".join(m["content"] for m in messages) + "\nAnswer:"
