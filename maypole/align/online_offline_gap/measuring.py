"""Where a policy stands during training: how far it has moved, how often it wins by either judge, and how well it tells
good answers from bad ones.

The rival is the policy before its first step: its answers are given, its log-probs come from its weights, which stand
in the module again for that long. Knows nothing about arms.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState

from maypole.align.judging import Judge
from maypole.align.measuring import said
from maypole.align.online_offline_gap.fixed import replies
from maypole.core.atomic import whole_file, write_atomic
from maypole.core.errors import UserError
from maypole.core.judge import OnJudgeError, call_reward
from maypole.engine import Engine, ScoreRequest
from maypole.evaluate.judges import is_preference
from maypole.evaluate.kl import divergence
from maypole.evaluate.win_rate import compared, outcomes, summary
from maypole.models.language_model import LanguageModel
from maypole.train.answers import answer_tree
from maypole.train.objective import Segment
from maypole.train.trainable import keep_trainable, standing_as

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Sign:
    """How often h = log π/π_ref (chosen) - log π/π_ref (rejected) is above 0, ties counting half, and how many tie."""

    accuracy: float
    ties: float

    @classmethod
    def of(cls, now: NDArray[np.float64], before: NDArray[np.float64]) -> "Sign":
        """now, before: (pairs, 2) summed log-probs of chosen and rejected under the policy and the reference."""
        h = np.sign((now[:, 0] - before[:, 0]) - (now[:, 1] - before[:, 1]))
        return cls(float((h.mean() + 1) / 2), float((h == 0).mean()))


class Contest:
    """One judge's word on answers to the same prompts, against a rival's answers that never change."""

    def __init__(
        self, judge: Judge, rows: Rows, rival: Rows, *, both_orders: bool, on_judge_error: OnJudgeError
    ) -> None:
        self._judge, self._rows, self._rival = judge, rows, rival
        self._both: bool = both_orders
        self._on_error: OnJudgeError = on_judge_error
        self._scores: NDArray[np.float64] | None = None

    def __call__(self, answers: Rows) -> tuple[NDArray[np.float64], float | None]:
        """(prompts,) 1, ½ or 0, or P(answer beats the rival's), NaN without a word; and a reward's mean score."""
        if is_preference(self._judge):
            texts = [answer["answer"] for answer in answers], [rival["answer"] for rival in self._rival]
            prompts = [row["prompt"] for row in self._rows]
            return outcomes(
                *texts, self._judge, prompts, self._columns, both_orders=self._both, on_judge_error=self._on_error
            ), None
        if self._scores is None:
            self._scores = self._scored(self._rival)
        ours = self._scored(answers)
        return compared(ours, self._scores), float(np.nanmean(ours)) if not np.isnan(ours).all() else None

    @property
    def _columns(self) -> dict[str, list[Any]]:
        names = [name for name in self._rows[0] if name != "prompt"]
        return {name: [row[name] for row in self._rows] for name in names}

    def _scored(self, answers: Rows) -> NDArray[np.float64]:
        judge: Any = self._judge
        prompts, texts = [row["prompt"] for row in self._rows], [answer["answer"] for answer in answers]
        columns = self._columns | {"completion_ids": [answer["ids"] for answer in answers]}
        return call_reward(judge, prompts, texts, columns, on_judge_error=self._on_error).array


def points(folder: Path) -> list[dict[str, Any]]:
    """What a `Standing` measured into `folder`, by step."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


class Standing:
    """The numbers of a policy at a step; `folder` keeps them and the answers, `work` the first weights until the end.

    rows: prompts to answer; held_out: pairs to tell apart, in the golden judge's order.
    """

    def __init__(
        self,
        rows: Rows,
        held_out: Rows,
        contests: Mapping[str, Contest],
        *,
        folder: Path,
        work: Path,
        max_tokens: int,
        seed: int,
    ) -> None:
        self._rows, self._held_out, self._contests = rows, held_out, contests
        self._folder, self._work, self._max_tokens, self._seed = folder, work, max_tokens, seed
        self._pairs: list[ScoreRequest] = []
        self._before: NDArray[np.float64] | None = None

    def begin(self, lm: LanguageModel) -> None:
        """The policy stands before its first step."""
        keep_trainable(lm.model, self._work / "initial")

    def at(self, step: int, lm: LanguageModel) -> None:
        path = self._folder / f"{step:06}.json"
        if path.is_file():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        answers, numbers = self._measured(lm)
        with whole_file(path.with_suffix(".parquet")) as part:
            pq.write_table(pa.Table.from_pylist(answers), part)
        write_atomic(path, json.dumps({"step": step} | numbers, indent=2) + "\n")

    def _measured(self, lm: LanguageModel) -> tuple[list[dict[str, Any]], dict[str, float]]:
        outputs = replies(lm, self._rows, self._max_tokens, seed=self._seed)
        self._pairs = self._pairs or _readable(self._held_out, lm)
        now = _sums(lm, self._pairs)
        with standing_as(lm, self._work / "initial", aside=self._work / "aside-standing"):
            if self._before is None:
                self._before = _sums(lm, self._pairs)
            engine = Engine(lm)
            asked = [ScoreRequest(row["prompt"], [output.token_ids]) for row, output in zip(self._rows, outputs)]
            before = [scored.logprobs for (scored,) in engine.score(asked)]
            engine.close()
        answers = [
            {"prompt": row["prompt"], "answer": said(row["prompt"], output.text), "ids": output.token_ids,
             "logprobs": output.logprobs, "initial_logprobs": logprobs, "finished": output.finish_reason == "stop"}
            for row, output, logprobs in zip(self._rows, outputs, before)
        ]  # fmt: skip
        moved = divergence([output.logprobs for output in outputs], before, seed=self._seed)
        sign = Sign.of(now, self._before)
        numbers: dict[str, float] = {
            "kl": moved.per_completion, "kl_low": moved.interval.low, "kl_high": moved.interval.high,
            "length": float(np.mean([len(output.token_ids) for output in outputs])),
            "finished": float(np.mean([answer["finished"] for answer in answers])),
            "pair_accuracy": sign.accuracy, "pair_ties": sign.ties,
        }  # fmt: skip
        for name, contest in self._contests.items():
            items, score = contest(answers)
            won = summary(items, seed=self._seed)
            numbers |= {f"{name}win_rate": won.rate, f"{name}win_rate_low": won.interval.low}
            numbers |= {f"{name}win_rate_high": won.interval.high} | ({} if score is None else {f"{name}score": score})
        return answers, numbers


class Watch(TrainerCallback):
    """For `fit`: the standing of `lm` before the first step is kept, and measured after every `every` steps."""

    def __init__(self, lm: LanguageModel, standing: Standing, every: int) -> None:
        self.lm, self.standing, self.every = lm, standing, every

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.standing.begin(self.lm)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            with torch.random.fork_rng():  # judges may draw, and training must not notice
                self.standing.at(state.global_step, self.lm)


def _readable(pairs: Rows, lm: LanguageModel) -> list[ScoreRequest]:
    """The pairs that have two answers and fit into the context of `lm`, as questions to an engine."""
    found: list[ScoreRequest] = []
    for row in pairs:
        tree = answer_tree(row, ("chosen", "rejected"), lm.tokenizer)
        if isinstance(tree, Segment):
            answers = [answer.ids for answer in tree.children]
            if len(tree.ids) + max(map(len, answers)) <= lm.max_length:
                found.append(ScoreRequest(tree.ids, answers))
    if not found:
        raise UserError(f"{lm.name} can read none of {len(pairs)} pairs", "held-out pairs", "shorter ones")
    return found


def _sums(lm: LanguageModel, asked: Sequence[ScoreRequest]) -> NDArray[np.float64]:
    """(pairs, 2)"""
    engine = Engine(lm)
    found = [[scored.sum for scored in pair] for pair in engine.score(asked)]
    engine.close()
    return np.array(found, dtype=np.float64)
