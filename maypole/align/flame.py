"""FLAME (arXiv 2405.01525): fine-tuning and preference training that do not teach a model to invent.

Instructions that ask for facts are answered by the model itself before it learns to answer them, and of its own answers
the truer ones are preferred, besides the ones that follow an instruction better. Everything is one artifact whose
finished parts are never made again. Knows nothing about how facts are checked or instructions judged.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset

from maypole.align.fact_based import Classify, classified
from maypole.align.fact_pairs import build_pairs
from maypole.align.flame_options import FlameConfig
from maypole.align.judging import Judge
from maypole.align.preference import Pairs
from maypole.align.preference_options import PreferenceOptions
from maypole.align.self_writing import Built, Writing, build_sft, demonstrated
from maypole.core.artifact import Artifact
from maypole.core.atomic import whole_file, write_atomic
from maypole.core.errors import UnsupportedCapability, UserError
from maypole.core.identity import plain
from maypole.core.judge import call_reward
from maypole.core.seeds import derive
from maypole.data import COMPLETION, PAIR, read
from maypole.engine import Engine, Request, Sampling
from maypole.evaluate.fact_report import FactReport, factscore
from maypole.evaluate.factuality import AtomicChecker, FactReward, text_of
from maypole.evaluate.judges import is_preference
from maypole.models.language_model import LanguageModel
from maypole.train.fit import fit
from maypole.train.ranks import join
from maypole.train.result import save_result
from maypole.train.supervised import Completions

BEFORE, SFT, AFTER = "before", "sft", "after"
REPORT = "facts.json"


def flame(
    lm: LanguageModel,
    data: Dataset,
    prompts: Dataset,
    judge: Judge,
    checker: AtomicChecker,
    classify: Classify,
    config: FlameConfig,
    *,
    out: str | Path | Artifact,
    seed: int = 0,
    eval_prompts: Dataset | None = None,
) -> Artifact:
    """Train `lm`, a base model, in place; the artifact is a checkpoint or adapter.

    ``sft.parquet`` and ``pairs.parquet`` are what was learnt, with a column that says where each row comes from,
    ``sft/`` is the model between the two, ``facts.json`` what was measured, ``facts/`` every answer with its facts.

    Parameters
    ----------
    data
        Instructions with answers (COMPLETION rows), to fine-tune on and to demonstrate.
    prompts
        Prompts that the fine-tuned model answers, with further columns that `judge` may want to see.
    judge
        How well an instruction is followed: a Reward or a Preference.
    checker
        Its precision is the reward for truth. Its model must not be `lm`, whose weights change.
    out
        A path: the artifact is opened, finished and returned. An open Artifact: finishing is its owner's.
    eval_prompts
        Prompts to measure on: `lm` as it came, which is shown demonstrations; after fine-tuning; and at the end. Those
        that ask for facts are checked; where `judge` is a Reward all are judged.
    """
    if join().size > 1:
        raise UnsupportedCapability("several processes cannot share this run", "align flame", "one process")
    if not isinstance(out, Artifact):
        inputs: dict[str, object] = {"model": lm, "data": data, "prompts": prompts, "judge": judge}
        inputs |= {"checker": checker, "classify": classify}
        inputs |= {} if eval_prompts is None else {"eval_prompts": eval_prompts}
        with Artifact.open(out, kind="flame", config=config, inputs=inputs, seed=seed) as artifact:
            flame(
                lm, data, prompts, judge, checker, classify, config, out=artifact, seed=seed, eval_prompts=eval_prompts
            )
            if not artifact.finished:
                save_result(lm, artifact, artifact.manifest["metrics"])
                artifact.finish()
            return artifact
    run = _Run(out, config, seed, judge, checker, classify, data, eval_prompts)
    if not out.finished:
        run.before(lm)
    run.fine_tune(lm)
    if not out.finished:
        run.draw_pairs(lm, prompts)
    run.prefer(lm)
    return out


class _Run:
    """The stages of one run; each leaves files that a resumed run finds."""

    def __init__(
        self,
        artifact: Artifact,
        config: FlameConfig,
        seed: int,
        judge: Judge,
        checker: AtomicChecker,
        classify: Classify,
        data: Dataset,
        eval_prompts: Dataset | None,
    ) -> None:
        self.artifact, self.config, self.seed = artifact, config, seed
        self.judge, self.checker, self.classify = judge, checker, classify
        self.data, self.eval_prompts = data, eval_prompts
        self.writing = Writing(
            demonstrations=config.demonstrations, samples=config.samples, temperature=config.writing_temperature,
            max_tokens=config.max_tokens,
        )  # fmt: skip

    def before(self, lm: LanguageModel) -> None:
        """What needs the model as it came: its own answers, and what it knows."""
        self._rows("sft", partial(build_sft, Engine(lm), self.data, self.classify, self.writing, seed=self.seed))
        if self.eval_prompts is not None:
            self._measure(BEFORE, lm, self._shown(lm))

    def fine_tune(self, lm: LanguageModel) -> None:
        path, config = self.artifact.path / "sft.parquet", self.config.sft
        child = self.artifact.child("sft", kind="train", config=config, inputs={"rows": path}, seed=self.seed)
        with child:
            fit(lm, read(path, COMPLETION), Completions(), config, out=child, seed=derive(self.seed, "sft"))
            if not child.finished:
                save_result(lm, child, child.manifest["metrics"])
                child.finish()
        lm.fingerprint = child.key

    def draw_pairs(self, lm: LanguageModel, prompts: Dataset) -> None:
        """What needs the fine-tuned model: pairs of its answers, and how true those are."""
        config = self.config
        sampling = Sampling(n=config.n, max_tokens=config.max_tokens, temperature=config.temperature)
        make = partial(
            build_pairs, Engine(lm), prompts, self.judge, FactReward(self.checker), self.classify, sampling,
            fact_pairs=config.fact_pairs, min_gap=config.min_gap, on_judge_error=config.on_judge_error, seed=self.seed,
        )  # fmt: skip
        self._rows("pairs", make)
        if self.eval_prompts is not None:
            self._measure(SFT, lm, list(self.eval_prompts["prompt"]))

    def prefer(self, lm: LanguageModel) -> None:
        path, config = self.artifact.path / "pairs.parquet", self.config
        objective = Pairs(PreferenceOptions(beta=config.beta))
        rows, seed = read(path, PAIR), derive(self.seed, "dpo")
        fit(lm, rows, objective, config.dpo, out=self.artifact, seed=seed, reference="initial")
        if self.artifact.finished:
            return
        if self.eval_prompts is not None:
            self._measure(AFTER, lm, list(self.eval_prompts["prompt"]))
            parts = {name: json.loads(self._facts(name).read_text()) for name in (BEFORE, SFT, AFTER)}
            write_atomic(self.artifact.path / REPORT, json.dumps(parts, indent=2) + "\n")
            self.artifact.manifest["metrics"] |= {
                f"{name}_{number}": part[number]
                for name, part in parts.items()
                for number in ("precision", "correct", "errors", "respond_ratio", "words")
            }

    def _rows(self, name: str, make: Callable[..., Built]) -> None:
        """NAME.parquet, and its counts among the metrics; made once."""
        path, counts = self.artifact.path / f"{name}.parquet", self.artifact.path / f"{name}.json"
        if not path.is_file():
            built = make(keep=self.artifact.checkpoints / name)
            write_atomic(counts, json.dumps(built.counts, indent=2) + "\n")
            with whole_file(path) as part:
                pq.write_table(built.rows.data.table, part)
        self.artifact.manifest["metrics"] |= json.loads(counts.read_text())

    def _facts(self, name: str) -> Path:
        return self.artifact.path / "facts" / f"{name}.json"

    def _shown(self, lm: LanguageModel) -> list[str]:
        """The prompts of the evaluation with the demonstrations that a model without any training needs."""
        assert self.eval_prompts is not None
        known = [(text_of(p), text_of(c).strip()) for p, c in zip(self.data["prompt"], self.data["completion"])]
        return demonstrated(Engine(lm), list(map(text_of, self.eval_prompts["prompt"])), known, self.writing)

    def _measure(self, name: str, lm: LanguageModel, asked: Sequence[Any]) -> None:
        """Greedy answers to the prompts of the evaluation, asked so, judged and checked; once."""
        path = self._facts(name)
        if path.is_file() or self.eval_prompts is None:
            return
        path.parent.mkdir(exist_ok=True)
        sampling = Sampling(max_tokens=self.config.max_tokens, temperature=0.0)
        sampling = replace(sampling, stop=self.writing.stop) if name == BEFORE else sampling
        said = [output.text for output in Engine(lm).generate([Request(prompt, sampling) for prompt in asked])]
        prompts = list(self.eval_prompts["prompt"])
        factual = [i for i, fact in enumerate(classified(self.classify, prompts)) if fact]
        if not factual:
            raise UserError("no prompt asks for facts", "--eval-data", "some that do, to measure how true answers are")
        reports = self.checker.check([text_of(prompts[i]) for i in factual], [said[i] for i in factual])
        numbers = {**asdict(factscore(reports, self.config.gamma)), **self._judged(prompts, said)}
        lines = [_line(i, said[i], report) for i, report in zip(factual, reports)]
        write_atomic(path.with_suffix(".jsonl"), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        write_atomic(path, json.dumps(numbers, indent=2) + "\n")

    def _judged(self, prompts: Sequence[Any], said: Sequence[str]) -> Mapping[str, float]:
        """The mean reward of all answers; nothing where the judge compares instead of scoring."""
        judge: Any = self.judge
        if is_preference(judge) or self.eval_prompts is None:
            return {}
        names = [name for name in self.eval_prompts.column_names if name != "prompt"]
        columns = {name: list(self.eval_prompts[name]) for name in names}
        answers = [t if isinstance(p, str) else [{"role": "assistant", "content": t}] for p, t in zip(prompts, said)]
        scores = call_reward(judge, prompts, answers, columns, on_judge_error=self.config.on_judge_error).scores
        known = [score for score in scores if score is not None]
        return {"judged": sum(known) / len(known)} if known else {}


def _line(row: int, answer: str, report: FactReport) -> dict[str, Any]:
    facts: Any = plain(report)
    return {"row": row, "answer": answer, "precision": report.precision, **facts}
