"""Which instructions ask for facts about the world: asked of a language model, or of any function.

Knows nothing about what is done with the answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from maypole.core.errors import JudgeError
from maypole.core.identity import digest
from maypole.data.chat import Talk
from maypole.engine import Engine
from maypole.evaluate.fact_cache import FactCache
from maypole.evaluate.factuality import text_of
from maypole.evaluate.word_choice import ENDING, model_name, word_choice

Classify = Callable[[list[str]], Sequence[bool]]
"""Instructions -> whether each asks for facts about the world."""

TASK = "Does a good answer need knowledge of facts about the world, such as names, dates, places or events?"
DEMONSTRATIONS = (
    ("Who was Marie Curie?", True),
    ("Write a poem about rain.", False),
    ("When did the first people land on the moon, and who were they?", True),
    ("Make this sentence polite: Give me the salt.", False),
    ("What is 12 times 7?", False),
    ("Tell me about the history of the city of Ghent.", True),
    ("Suggest a name for my cat.", False),
    ("Which illnesses does a lack of vitamin C cause?", True),
)


@dataclass(frozen=True, slots=True)
class ModelClassifier:
    """Yes or no, whichever is likelier as the next word after a few demonstrations."""

    engine: Engine
    cache: FactCache | None = None

    @property
    def fingerprint(self) -> str | None:
        name = model_name(self.engine)
        return digest("fact based", name, _question("")) if name else None

    def __call__(self, instructions: list[str]) -> list[bool]:
        yes, no = word_choice(self.engine, [_question(i) for i in instructions], ("Yes", "No"), self.cache).T
        return (yes > no).tolist()


def classified(classify: Classify, prompts: Sequence[Talk]) -> list[bool]:
    """Whether each prompt asks for facts; JudgeError where the classifier gives no answer to that."""
    answers = list(classify([text_of(prompt) for prompt in prompts])) if len(prompts) else []
    if len(answers) != len(prompts):
        raise JudgeError(f"{len(prompts)} instructions were classified by {len(answers)} answers", "classify")
    for number, answer in enumerate(answers, start=1):
        if not isinstance(answer, bool | np.bool_):
            raise JudgeError(f"the classifier answered {str(answer)[:60]!r}", f"row {number}", "True or False")
    return list(map(bool, answers))


def _question(instruction: str) -> str:
    shown = "\n\n".join(f"{_asked(text)} {'Yes' if fact else 'No'}" for text, fact in DEMONSTRATIONS)
    return f"{TASK}\n\n{shown}\n\n{_asked(instruction)}"


def _asked(instruction: str) -> str:
    return f"Instruction: {' '.join(instruction.split())}\nYes or No? {ENDING}"
