"""What an online method is: draws that give each prompt its candidates, and the training rows it makes of judged ones.

`maypole.align.online` does the rest for every method: it draws, asks the judge, keeps the samples, trains, and goes on.
The samples of a round are what `Method.rows` is given, one row a prompt that was judged, with k candidates:

    prompt          as the prompt rows have it, a string or messages
    prompt_ids      its token ids, which every candidate continues
    completions     k strings, or k lists of messages where the prompt is messages
    completion_ids  k lists of token ids. Of a drawn answer those that were sampled: its last one ends it only where
                    the model said so. Of an answer from the data what its text becomes, with an end
    finished        k times whether the answer came to its end; False where it met `max_tokens` or the context's end
    logprobs        k lists, log p of each token under the policy that drew it; null for an answer from the data
    source          k names: "greedy" or "sample" as it was drawn, or the column of the data that it stood in
    scores          k numbers, larger is better: a reward's, or mean win rates over the k by a preference (½ against
                    itself, so that they average to ½)
    probabilities   k × k, P(i beats j): a preference's; σ(score i - score j) where a method asks a reward for them;
                    else null. P + Pᵀ = 1, ½ on the diagonal and between equal answers
    version         the round before whose first step the policy had the weights that drew, from 0
    row             the prompt's row in the data, from 0
    and the further columns of the prompt rows.

Candidates stand in the order of `Method.draws`, the n of each one after the other, then of `Method.answers`; so
``source`` need not be searched. Equal candidates are given equal scores. Knows nothing about engines, judges or files.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from maypole.engine.request import Sampling
from maypole.train.objective import Objective

JudgeKind = Literal["reward", "preference"]


class Method(Protocol):
    """A frozen dataclass in its system's module.

    draws: what is asked of the policy for each prompt; their seeds are set by the loop. answers: columns of the prompt
    rows whose texts are candidates too. judge: "preference" where `probabilities` are wanted.
    """

    @property
    def objective(self) -> Objective: ...

    @property
    def draws(self) -> tuple[Sampling, ...]: ...

    @property
    def answers(self) -> tuple[str, ...]: ...

    @property
    def judge(self) -> JudgeKind: ...

    def rows(self, samples: Dataset) -> Dataset:
        """The training rows of a round, of the row type of `objective`.

        Give the sampled ids along (``prompt_ids``, ``chosen_ids`` …, see `maypole.train.answers`): a text that is cut
        into tokens anew is not what the policy said.
        """
        ...


def candidates(method: Method) -> int:
    """How many candidates a prompt gets: k."""
    return sum(draw.n for draw in method.draws) + len(method.answers)


def pair_of(sample: Mapping[str, Any], best: int, worst: int) -> dict[str, Any]:
    """The PAIR row of two candidates, with the tokens that were sampled."""
    said, ids = sample["completions"], sample["completion_ids"]
    return {
        "prompt": sample["prompt"],
        "chosen": said[best],
        "rejected": said[worst],
        "prompt_ids": sample["prompt_ids"],
        "chosen_ids": ids[best],
        "rejected_ids": ids[worst],
    }


def rows_from(samples: Dataset, make: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]) -> Dataset:
    """What `make` gives for each row of `samples`; None leaves a prompt out. Arrow in memory, not Python's objects."""
    tables: list[pa.Table] = []
    for begin in range(0, len(samples), 500):
        batch = samples.select(range(begin, min(begin + 500, len(samples))))
        made = [row for row in map(make, batch.to_list()) if row is not None]
        if made:
            tables.append(pa.Table.from_pylist(made))
    if not tables:
        return Dataset.from_dict({})
    return Dataset(InMemoryTable(pa.concat_tables(tables, promote_options="permissive")))
