"""What a round's samples say about the policy, for nothing; and what its answers to other prompts say, where asked.

The rival is the policy before its first step. Its answers are drawn once; its log-probs come from its weights, which
stand in the module again for that long: there is no second model. Knows nothing about training.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from maypole.align.config import OnlineConfig
from maypole.align.judging import Judge
from maypole.core.atomic import whole_file, write_atomic
from maypole.core.judge import call_reward
from maypole.core.seeds import derive
from maypole.engine import Engine, Request, Sampling, ScoreRequest
from maypole.evaluate.judges import is_preference
from maypole.evaluate.kl import divergence
from maypole.evaluate.win_rate import compared, outcomes, summary
from maypole.models.language_model import LanguageModel
from maypole.train.trainable import keep_trainable, standing_as

CHUNK = 64
"""Prompts that are drawn together, always the same ones."""


def measured(samples: Dataset) -> dict[str, float]:
    """Of the judged samples of a round, their drawn answers alone:

    score, best_score   mean over all, and over the best of each prompt
    length, finished    mean tokens of an answer, and the share that came to an end
    nats_per_token      -log p of the sampled tokens: at temperature 1 an unbiased estimate of the entropy
    distinct            sampled answers to a prompt that differ, as a share of them
    """
    scores, best, lengths, ends, nats, tokens, distinct = [], [], [], [], 0.0, 0, []
    columns = ["source", "scores", "completion_ids", "finished", "logprobs"]
    for row in samples.select_columns(columns):
        sample: Mapping[str, Any] = dict(row)
        drawn = [i for i, source in enumerate(sample["source"]) if source in ("greedy", "sample")]
        free = [i for i in drawn if sample["source"][i] == "sample"]
        scores += [sample["scores"][i] for i in drawn]
        best.append(max(sample["scores"][i] for i in drawn))
        lengths += [len(sample["completion_ids"][i]) for i in drawn]
        ends += [sample["finished"][i] for i in drawn]
        if free:
            nats -= sum(sum(sample["logprobs"][i]) for i in free)
            tokens += sum(len(sample["logprobs"][i]) for i in free)
            distinct.append(len({tuple(sample["completion_ids"][i]) for i in free}) / len(free))
    found = {"score": scores, "best_score": best, "length": lengths, "finished": ends}
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return means | ({"nats_per_token": nats / tokens, "distinct": float(np.mean(distinct))} if tokens else {})


@dataclass(frozen=True)
class Evaluation:
    """Of the policy after each number of rounds, on prompts it does not learn from.

    `folder` keeps answers and numbers, ``NNN.parquet`` and ``NNN.json``; `work` the initial weights until the run ends.
    """

    prompts: Dataset
    judge: Judge
    config: OnlineConfig
    folder: Path
    work: Path
    seed: int

    def __call__(self, rounds: int, lm: LanguageModel, engine: Callable[[], Engine]) -> None:
        """Measure the policy `lm` after `rounds` rounds; `engine` gives one with the weights of `lm` as it is."""
        path = self.folder / f"{rounds:03}.json"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            if rounds == 0:
                keep_trainable(lm.model, self.work / "initial")
            answers = self._answers(lm, engine, rounds)
            with whole_file(path.with_suffix(".parquet")) as part:
                pq.write_table(pa.Table.from_pylist(answers), part)
            write_atomic(path, json.dumps(self._numbers(rounds, answers), indent=2) + "\n")

    def numbers(self, rounds: int) -> dict[str, float]:
        """KL from the initial policy in nats per answer, win rate against it, mean length, a reward's mean score."""
        return json.loads((self.folder / f"{rounds:03}.json").read_text())

    def _answers(self, lm: LanguageModel, engine: Callable[[], Engine], rounds: int) -> list[dict[str, Any]]:
        rows = [dict(row) for row in self.prompts]
        outputs: list[Any] = []
        sampling = Sampling(max_tokens=self.config.eval_max_tokens)
        running = engine()
        for first in range(0, len(rows), CHUNK):
            running.close()
            outputs += running.generate(
                [
                    Request(row["prompt"], replace(sampling, seed=derive(self.seed, "evaluation", first + i)))
                    for i, row in enumerate(rows[first : first + CHUNK])
                ]
            )
        found = [
            {"prompt": row["prompt"], "answer": said(row["prompt"], output.text), "ids": output.token_ids,
             "logprobs": output.logprobs, "finished": output.finish_reason == "stop"}
            for row, output in zip(rows, outputs)
        ]  # fmt: skip
        before = [answer["logprobs"] for answer in found]
        if rounds:
            with standing_as(lm, self.work / "initial", aside=self.work / "aside-evaluation"):
                asked = [ScoreRequest(row["prompt"], [answer["ids"]]) for row, answer in zip(rows, found)]
                before = [scored.logprobs for (scored,) in engine().score(asked)]
        scores: Sequence[float | None] = [None] * len(rows)
        if not is_preference(self.judge):
            judge: Any = self.judge
            texts, columns = [answer["answer"] for answer in found], self._columns(rows)
            ids = {"completion_ids": [answer["ids"] for answer in found]}
            scores = call_reward(
                judge, [row["prompt"] for row in rows], texts, columns | ids, on_judge_error=self.config.on_judge_error
            ).scores
        return [{**a, "initial_logprobs": b, "score": s} for a, b, s in zip(found, before, scores)]

    def _numbers(self, rounds: int, answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        moved = divergence([a["logprobs"] for a in answers], [a["initial_logprobs"] for a in answers], seed=self.seed)
        numbers = {
            "eval_kl": moved.per_completion,
            "eval_kl_low": moved.interval.low,
            "eval_kl_high": moved.interval.high,
            "eval_length": float(np.mean([len(a["ids"]) for a in answers])),
        }
        first = pq.read_table(self.folder / "000.parquet").to_pylist() if rounds else answers
        if is_preference(self.judge):
            rows = [dict(row) for row in self.prompts]
            items = outcomes(
                [a["answer"] for a in answers], [a["answer"] for a in first], self.judge,
                [row["prompt"] for row in rows], self._columns(rows),
                both_orders=self.config.both_orders, on_judge_error=self.config.on_judge_error,
            )  # fmt: skip
        else:
            ours, theirs = (
                np.array([np.nan if a["score"] is None else a["score"] for a in of], dtype=np.float64)
                for of in (answers, first)
            )
            items = compared(ours, theirs)
            numbers["eval_score"] = float(np.nanmean(ours))
        won = summary(items, seed=self.seed)
        return numbers | {
            "eval_win_rate": won.rate, "eval_win_rate_low": won.interval.low, "eval_win_rate_high": won.interval.high,
        }  # fmt: skip

    def _columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        names = [name for name in self.prompts.column_names if name != "prompt"]
        return {name: [row[name] for row in rows] for name in names}


def said(prompt: Any, text: str) -> Any:
    """An answer in the form that its prompt has."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
