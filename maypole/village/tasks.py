"""An instruct task: a family, phrasings, a way to draw inputs and one to solve them. The lists of tasks stand apart.

Inputs are split nine to one by the hash of their content: a test input is in no training row, whatever the phrasing.
Each task has two training phrasings and one (HT) that no training row uses. Knows no model.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from maypole.village.draws import Draws, held_out
from maypole.village.world import World

Inputs = dict[str, str]
HELD_INPUTS = 0.1


@dataclass(frozen=True, slots=True)
class Task:
    """`phrasings`: two for training, then HT; each formats the inputs. `chance`: what the best guess without reading
    scores. `finite`: a table too small to split by input."""

    name: str
    family: str
    phrasings: tuple[str, str, str]
    draw: Callable[[World, Draws], Inputs]
    solve: Callable[[Inputs], str]
    chance: float
    metric: str = "exact"
    finite: bool = False
    held_out: bool = False

    def is_test(self, inputs: Inputs) -> bool:
        shown = (value for key, value in inputs.items() if not key.startswith("_"))
        return not self.finite and held_out(HELD_INPUTS, "task", self.name, *shown)

    def inputs(self, world: World, draws: Draws, split: str) -> Inputs:
        """Inputs of the split; a finite task has the same for both. Keys that start with "_" are never shown."""
        while True:
            drawn = self.draw(world, draws)
            if self.finite or self.is_test(drawn) == (split == "test"):
                return drawn

    def prompt(self, inputs: Inputs, phrasing: int) -> str:
        return self.phrasings[phrasing].format(**inputs)


def exact(reply: str, answer: str) -> bool:
    return reply.strip() == answer


def same_json(reply: str, answer: str) -> bool:
    """Equal as values, whatever the spaces and the order of keys."""
    try:
        return json.loads(reply) == json.loads(answer)
    except ValueError:
        return False


METRICS: dict[str, Callable[[str, str], bool]] = {"exact": exact, "json": same_json}
