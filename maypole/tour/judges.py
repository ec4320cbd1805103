"""Who judges answers in stage 3. A copy of this file lies beside what the stage made, and `maypole align online` takes
its functions as judges: ``--judge 03-align/judges.py:describes_better``.

Knows nothing about training.
"""

from functools import cache

from maypole.evaluate.metrics import rouge_l
from maypole.village.describe import NOUN_RELATION, clauses, gold_reward, oracle, subject_of
from maypole.village.world import World


def describes_better(prompts: list[str], a: list[str], b: list[str], **columns: list) -> list[float | None]:
    """P(description a beats description b), σ of the difference in `describes_well`."""
    return oracle(_world())(prompts, a, b)


def describes_well(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """Right clauses minus wrong ones minus repeated ones, of " Describe Ada Fenn:" and " job baker, home Glenside."."""
    return [gold_reward(_world(), subject_of(p), c) for p, c in zip(prompts, completions, strict=True)]


def in_clauses(prompts: list[str], completions: list[str]) -> dict[str, list[int]]:
    """How many clauses each description has, and how many of them are right."""
    said = [clauses(completion) for completion in completions]
    truths = _world().lookup
    right = [
        sum(truths.get((subject_of(p), relation)) == value for relation, value in found if relation)
        for p, found in zip(prompts, said, strict=True)
    ]
    return {"clauses": [len(found) for found in said], "right clauses": right}


def truth(prompt: str) -> str:
    """All that is right to say after " Describe Ada Fenn:"."""
    name = subject_of(prompt)
    return ", ".join(f"{noun} {_world().lookup[name, relation]}" for noun, relation in NOUN_RELATION.items())


def goes_on_like(
    prompts: list[str], completions: list[str], *, continuation: list[str], **columns: list
) -> list[float]:
    """ROUGE-L with the text that really follows, a column of the prompt rows."""
    return [rouge_l(c, [real]) for c, real in zip(completions, continuation, strict=True)]


@cache
def _world() -> World:
    return World(0)
