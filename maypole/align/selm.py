"""SELM (arXiv 2405.19332): online preference training that also lowers what the policy would say anyway.

In every round the policy answers, a judge ranks its answers among those of the data, and the policy is trained on the
best against the worst; beside that pair stands the policy's own answer at the start of the round, whose log-prob is
lowered a little, so that the next round brings answers not seen yet. The term is `maypole.train.losses.optimism`, and
any pair loss with a reference can be beside it. Knows nothing about how answers are drawn or judged.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from maypole.align.method import JudgeKind, rows_from
from maypole.align.preference import CHOSEN, REJECTED, Pairs
from maypole.align.preference_options import LOSSES, WITHOUT_REFERENCE, PreferenceOptions
from maypole.align.rlhf_workflow import best_and_worst
from maypole.align.selm_options import SelmOptions
from maypole.core.errors import ConfigError
from maypole.data.chat import Dropped
from maypole.data.kinds import TEXT_OR_MESSAGES, TOKENS
from maypole.data.rows import PAIR, RowType
from maypole.engine.request import Sampling
from maypole.train.answers import answer_tree, without_repeats
from maypole.train.losses import optimism
from maypole.train.objective import Loss, Need, Segment, TokenBatch

REFERENCE = "reference_response"
"""The column, and the answer, that the optimism term lowers: y_r."""
BETA = 0.01
"""The paper's."""
DELTA = "optimism/delta"
FORGOTTEN = -20.0
"""Nats by which y_r may become less likely in the mean before it is said aloud."""
WITH_REFERENCE = tuple(loss for loss in LOSSES if loss not in (*WITHOUT_REFERENCE, "kto"))
OPTIMISTIC = RowType(
    "PAIR with reference_response",
    {**PAIR.columns, REFERENCE: TEXT_OR_MESSAGES.says},
    optional={**PAIR.optional, f"{REFERENCE}_ids": TOKENS.says},
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OptimisticPairs:
    """A pair loss, and αβ Δ_r on the reference's own answer: a prompt and its three answers are one tree.

    Answers that are the same are computed once. A pair that is a tie has no preference and is explored all the same.
    Where `alpha` is 0 the reference's answer is not computed, and the loss is that of `Pairs` to the last bit.
    """

    preference: PreferenceOptions
    alpha: float
    floor: float | None = None

    rows: ClassVar[RowType] = OPTIMISTIC
    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})
    unit: ClassVar[Literal["tokens", "rows"]] = "rows"
    linear: ClassVar[bool] = False
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "cut"
    columns: ClassVar[tuple[str, ...]] = ()

    def segments(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
        answers = (CHOSEN, REJECTED, REFERENCE) if self.alpha else (CHOSEN, REJECTED)
        tree = answer_tree(row, answers, tokenizer)
        return tree if isinstance(tree, Dropped) else without_repeats(tree)

    def __call__(self, batch: TokenBatch) -> Loss:
        pair = Pairs(self.preference)(batch)
        if not self.alpha:
            return pair
        response, reference = batch.sums(REFERENCE), batch.sums(REFERENCE, reference=True)
        weight = self.alpha * self.preference.parameters["beta"]
        term = optimism(response, reference, weight=weight, floor=self.floor).sum()
        found = {DELTA: (response.detach() - reference).sum(), "optimism/loss": term.detach()}
        return Loss(pair.sum + term, {**pair.metrics, **found})


@dataclass(frozen=True, slots=True)
class Selm:
    """The first candidate is the policy's own answer, greedy or drawn; best and worst are the pair, equal or not.

    `preference` names the pair loss, whose β the optimism term shares. Of `sampling`, `n` is not used and the
    temperature only for what is drawn.
    """

    options: SelmOptions = SelmOptions()
    preference: PreferenceOptions = PreferenceOptions(beta=BETA)
    sampling: Sampling = Sampling(max_tokens=1024)

    def __post_init__(self) -> None:
        if self.preference.loss not in WITH_REFERENCE:
            raise ConfigError("loss", self.preference.loss, WITH_REFERENCE)

    @property
    def objective(self) -> OptimisticPairs:
        return OptimisticPairs(self.preference, self.options.alpha, self.options.floor)

    @property
    def draws(self) -> tuple[Sampling, ...]:
        more = self.options.samples
        if self.options.optimism_sample == "sample":
            return (replace(self.sampling, n=1 + more),)
        greedy = replace(self.sampling, temperature=0.0, n=1)
        return (greedy, replace(self.sampling, n=more)) if more else (greedy,)

    @property
    def answers(self) -> tuple[str, ...]:
        return self.options.answers

    @property
    def judge(self) -> JudgeKind:
        return "reward"

    def rows(self, samples: Dataset) -> Dataset:
        log.info("of the policy's own answers %s", outcome(samples))
        return rows_from(samples, optimistic_pair)


def optimistic_pair(sample: Mapping[str, Any]) -> dict[str, Any] | None:
    """A row of a prompt's best, worst and first candidate; where the judge tells none apart the first is all three.

    An answer that did not come to its end is kept, and marked.
    """
    own, ids = sample["completions"][0], sample["completion_ids"][0]
    if not ids:
        return None
    tie = {"prompt": sample["prompt"], "prompt_ids": sample["prompt_ids"]}
    tie |= {CHOSEN: own, REJECTED: own, f"{CHOSEN}_ids": ids, f"{REJECTED}_ids": ids}
    tie |= {f"{answer}_score": sample["scores"][0] for answer in (CHOSEN, REJECTED)}
    pair = best_and_worst(sample) or tie
    return {**pair, REFERENCE: own, f"{REFERENCE}_ids": ids, f"{REFERENCE}_finished": sample["finished"][0]}


def outcome(samples: Dataset) -> dict[str, float]:
    """What became of the policy's own answers in a round, from its samples, as shares of the prompts.

    own_best, own_worst: it is the best candidate, or the worst. ties: the judge tells no candidates apart, or they are
    alike. unfinished: it did not come to its end.
    """
    sums = {"own_best": 0, "own_worst": 0, "ties": 0, "unfinished": 0}
    for one in samples:
        row: Mapping[str, Any] = dict(one)
        pair, own = best_and_worst(row), row["completion_ids"][0]
        sums["own_best"] += pair is not None and pair["chosen_ids"] == own
        sums["own_worst"] += pair is not None and pair["rejected_ids"] == own
        sums["ties"] += pair is None
        sums["unfinished"] += not row["finished"][0]
    return {name: count / len(samples) for name, count in sums.items()}


class DeltaWatch(TrainerCallback):
    """Says once that the policy is forgetting its own answers: nothing in the loss stops it."""

    def __init__(self) -> None:
        self.said = False

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        delta = (logs or {}).get(DELTA, 0.0)
        if delta < FORGOTTEN and not self.said:
            self.said = True
            log.warning(
                "the policy's own answers are %.0f nats less likely than when the round began (step %d): it may be "
                "forgetting how to answer; a smaller alpha or learning rate, or a floor",
                -delta, state.global_step,
            )  # fmt: skip
