"""The one online loop: draw prompts, sample from the policy as it is, have the answers judged, train on what the method
makes of them, and again.

`fit` runs it as rows made on the way, so that one optimiser, one schedule and one artifact span all rounds. What is on
the disk is never made again: a chunk of samples is final when it is whole, first as it was drawn, then as it was
judged; a round's samples, and then its rows, before its first step. Killed anywhere, the same call goes on with the
same rows and ends with the same weights. Knows nothing about losses: methods are `maypole.align.method.Method`.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.table import InMemoryTable
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState

from maypole.align.config import OnlineConfig
from maypole.align.drawing import draw, schema_of
from maypole.align.history import GIVEN, ROUND, given_rows, joined
from maypole.align.judging import Judge, judged
from maypole.align.measuring import Evaluation, measured
from maypole.align.method import Method, candidates
from maypole.core.artifact import Artifact
from maypole.core.atomic import whole_file, write_atomic
from maypole.core.errors import ConfigError, DataError, JudgeError, UserError
from maypole.core.progress import track
from maypole.core.seeds import derive
from maypole.data import PROMPT, encode_prompt, read
from maypole.engine import Engine
from maypole.engine.updating import default_adapter
from maypole.models.language_model import LanguageModel
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.ranks import join
from maypole.train.result import save_result
from maypole.train.source import longest_row, nonempty

REPORT = "report.json"
CHUNK = 64
"""Prompts that are drawn together, always the same ones, so that a resumed run repeats what was cut off exactly."""

log = logging.getLogger(__name__)


def online(
    lm: LanguageModel,
    prompts: Dataset,
    judge: Judge,
    method: Method,
    config: OnlineConfig,
    train: TrainConfig,
    *,
    out: str | Path | Artifact,
    seed: int = 0,
    eval_prompts: Dataset | None = None,
    first_history: Dataset | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Artifact:
    """Train `lm` in place, round by round, on its own judged answers; the artifact is a checkpoint or adapter.

    ``OUT/rounds/NNN`` has the samples of a round (`maypole.align.method` says what they hold) and its training rows,
    ``OUT/rounds.json`` a line for each round with what `maypole.align.measuring` measured in it and after it.

    Parameters
    ----------
    prompts
        Rows with a prompt, and with the columns that the judge or the method wants to see.
    judge
        A Reward or a Preference; either serves any method.
    out
        A path: the artifact is opened, finished and returned. An open Artifact: finishing is its owner's.
    eval_prompts
        Rows like `prompts`, to measure the policy on after every round, against itself before the first.
    first_history
        Rows as the method's objective has them, for `config.history`: the first round has them for earlier ones.
    """
    drawn_prompts(len(prompts), config, seed)  # whether there are enough of them
    if candidates(method) < 2:
        raise UserError("one candidate for each prompt leaves nothing to compare", "n", "2 or more")
    for name in method.answers:
        if name not in prompts.column_names:
            what = f"the column is missing; found {', '.join(prompts.column_names)}"
            raise DataError(what, field=name, expected="an answer to stand beside the policy's")
    if first_history is not None and config.history == "none":
        raise ConfigError("history", config.history, "all or sample, where a first history is given")
    if config.max_kl is not None and eval_prompts is None:
        raise ConfigError("max_kl", config.max_kl, "nothing without prompts to measure it on")
    if not isinstance(out, Artifact):
        parts = {"online": config, "train": train}
        inputs: dict[str, object] = {"model": lm, "prompts": prompts, "judge": judge, "method": method}
        if eval_prompts is not None:
            inputs["eval_prompts"] = eval_prompts
        if first_history is not None:
            inputs["first_history"] = first_history
        ranks = join()
        begin = partial(Artifact.open, out, kind="online", config=parts, inputs=inputs, seed=seed)
        with ranks.together(), ranks.open(begin) as artifact, ranks.together():
            online(
                lm, prompts, judge, method, config, train, out=artifact, seed=seed, eval_prompts=eval_prompts,
                first_history=first_history, callbacks=callbacks,
            )  # fmt: skip
            if not artifact.finished:
                ranks.lead(lambda: save_result(lm, artifact, artifact.manifest["metrics"]))
                ranks.finish(artifact)
            return artifact
    if first_history is not None:  # what is wrong with it is said before anything is sampled
        length = longest_row(lm, train)
        join().in_turn(lambda: nonempty(first_history, method.objective, lm, length, "the first history"))
    rounds = OnlineRounds(
        prompts, judge, method, config, artifact=out, seed=seed, eval_prompts=eval_prompts, first_history=first_history
    )  # fmt: skip
    reference = (config.reference or "initial") if "reference" in method.objective.needs else None
    told = [_Lines(rounds), *callbacks]
    fit(lm, rounds, method.objective, train, out=out, seed=seed, reference=reference, callbacks=told)
    if not out.finished:
        join().lead(lambda: rounds.end(lm))
    return out


class _Lines(TrainerCallback):
    """What was measured before a round's first step stands in metrics.jsonl at that step."""

    def __init__(self, rounds: "OnlineRounds") -> None:
        self.rounds = rounds

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        steps = -(-state.max_steps // self.rounds.count)
        if (state.global_step - 1) % steps == 0 and state.is_world_process_zero:
            number = (state.global_step - 1) // steps
            self.rounds.artifact.metrics.log(state.global_step, **self.rounds.before(number))


def drawn_prompts(count: int, config: OnlineConfig, seed: int) -> list[NDArray[np.int64]]:
    """Of each round the rows, out of `count`, whose prompts it draws: pass after pass over all of them, each in an
    order of its own; or one pass shared out where no number is given."""
    wanted = config.prompts_per_round
    if wanted is None:
        if config.rounds > count:
            raise ConfigError("rounds", config.rounds, f"at most {count}, the number of prompts, or prompts_per_round")
        return np.array_split(_pass(count, seed, 0), config.rounds)
    if wanted > count:
        raise ConfigError("prompts_per_round", wanted, f"at most {count}, the number of prompts")
    found: list[NDArray[np.int64]] = []
    waiting = np.zeros(0, dtype=np.int64)
    number = 0
    while len(found) < config.rounds:
        if len(waiting) < wanted:
            waiting = np.concatenate([waiting, _pass(count, seed, number)])
            number += 1
        found.append(waiting[:wanted])
        waiting = waiting[wanted:]
    return found


def _pass(count: int, seed: int, number: int) -> NDArray[np.int64]:
    return np.random.default_rng(derive(seed, "prompts", number)).permutation(count)


def imagined(lm: LanguageModel, prompts: Dataset, method: Method, *, seed: int) -> Dataset:
    """Samples as a round might have them, every drawn answer of full length and no two alike: to plan with."""
    longest = max((draw.max_tokens for draw in method.draws), default=1)
    rng, size, k = np.random.default_rng(seed), len(lm.tokenizer), candidates(method)
    samples = []
    for number, row in enumerate(prompts):
        sample: dict[str, Any] = dict(row)
        ids = encode_prompt(sample["prompt"], lm.tokenizer)
        room = max(min(longest, lm.max_length - len(ids)), 1)
        answers = rng.integers(0, size, (k, room)).tolist()
        talk = isinstance(sample["prompt"], str)
        rates = np.linspace(0, 1, k)
        samples.append(
            {
                **sample,
                "prompt_ids": ids,
                "completions": [str(i) if talk else [{"role": "assistant", "content": str(i)}] for i in range(k)],
                "completion_ids": answers,
                "finished": [False] * k,
                "logprobs": [[0.0] * room] * k,
                "source": ["sample"] * (k - len(method.answers)) + list(method.answers),
                "scores": rates.tolist(),
                "probabilities": ((rates[:, None] - rates[None, :] + 1) / 2).tolist(),
                "version": 0,
                "row": number,
            }
        )
    return Dataset(InMemoryTable(pa.Table.from_pylist(samples, schema_of(prompts.features.arrow_schema))))


class OnlineRounds:
    """The rounds of an online run, for `fit`: folders in the artifact; chunks that are not yet a whole in its
    checkpoints."""

    def __init__(
        self,
        prompts: Dataset,
        judge: Judge,
        method: Method,
        config: OnlineConfig,
        *,
        artifact: Artifact,
        seed: int,
        eval_prompts: Dataset | None = None,
        first_history: Dataset | None = None,
    ) -> None:
        self.prompts, self.judge, self.method, self.config = prompts, judge, method, config
        self.artifact, self.seed = artifact, seed
        self.count = config.rounds
        self.schema = schema_of(prompts.features.arrow_schema)
        self.columns = [name for name in prompts.column_names if name != "prompt"]
        self._given: list[pa.Table] = []
        if first_history is not None:
            self._given = [given_rows(first_history, method.objective.rows, self.schema.field("prompt").type)]
        self._chosen = drawn_prompts(len(prompts), config, seed)
        self._engine: Engine | None = None
        self._base = 0
        self._evaluation: Evaluation | None = None
        if eval_prompts is not None:
            places = artifact.path / "evaluations", artifact.checkpoints
            self._evaluation = Evaluation(eval_prompts, judge, config, *places, seed)

    def folder(self, round: int) -> Path:
        return self.artifact.path / "rounds" / f"{round:03}"

    def __call__(self, round: int, lm: LanguageModel) -> Dataset | None:
        if self._evaluation is not None:
            self._evaluation(round, lm, partial(self.engine, lm))
            if self._too_far(round):
                return None
        path = self.folder(round) / "samples.parquet"
        if not path.is_file():
            self._sample(round, lm, path)
        samples = read(path, PROMPT)
        known = [i for i, scores in enumerate(samples.select_columns(["scores"])["scores"]) if scores is not None]
        if not known:
            raise JudgeError(f"it judged all candidates of none of {len(samples)} prompts", f"round {round}")
        samples = samples if len(known) == len(samples) else samples.select(known)
        made = self.method.rows(samples)
        rows = self._with_history(round, made) if self.config.history != "none" and len(made) else made
        counts = {"round": round, "prompts": len(self._chosen[round]), "judged": len(known), "rows": len(made)}
        if self.config.history != "none":
            counts["history"] = len(rows) - len(made)
        if self._given and len(made):
            counts["given"] = sum(number == GIVEN for number in rows.select_columns([ROUND])[ROUND])
        log.info("round %(round)d: %(judged)d of %(prompts)d prompts judged, %(rows)d rows", counts)
        write_atomic(self.folder(round) / REPORT, json.dumps(counts | measured(samples), indent=2) + "\n")
        return rows

    def _with_history(self, round: int, made: Dataset) -> Dataset:
        how = self.config.history
        assert how != "none"
        if how == "all" and round:  # which the round before has together already
            earlier = [pq.read_table(self.folder(round - 1) / "rows.parquet")]
        else:
            earlier = [*self._given, *(self._own_rows(number) for number in range(round))]
        return joined(made, earlier, how, round, seed=self.seed)

    def _own_rows(self, round: int) -> pa.Table:
        return pq.read_table(self.folder(round) / "rows.parquet", filters=[(ROUND, "==", round)])

    def _too_far(self, rounds: int) -> str:
        """Why the run ends after so many rounds, if it does."""
        bound, kl = self.config.max_kl, self._evaluation.numbers(rounds)["eval_kl"] if self._evaluation else 0.0
        if bound is None or kl <= bound:
            return ""
        return f"round {rounds - 1} left the policy {kl:.3g} nats from its start, more than {bound:g}"

    def before(self, round: int) -> dict[str, Any]:
        """What was measured before the first step of `round`."""
        seen = json.loads((self.folder(round) / REPORT).read_text())
        return seen | (self._evaluation.numbers(round) if self._evaluation else {})

    def end(self, lm: LanguageModel) -> None:
        """The policy is trained: measure it once more, and put all rounds into one table."""
        paths = [path for round in range(self.count) if (path := self.folder(round) / REPORT).is_file()]
        table = [json.loads(path.read_text()) for path in paths]
        if self._evaluation is not None:
            self._evaluation(len(table), lm, partial(self.engine, lm))
            table = [line | self._evaluation.numbers(round + 1) for round, line in enumerate(table)]
        write_atomic(self.artifact.path / "rounds.json", json.dumps(table, indent=2) + "\n")
        kept = {name: value for name, value in table[-1].items() if name not in ("round", "rows")}
        self.artifact.manifest["metrics"] |= kept
        if len(table) < self.count:
            why = self._too_far(len(table))
            log.warning("%s: the run ends here, %d of %d rounds done", why, len(table), self.count)
            self.artifact.manifest["metrics"] |= {"ended": why}

    def engine(self, lm: LanguageModel) -> Engine:
        """The engine with the policy as it is: weights are shared, an adapter's are copied."""
        if self._engine is None:
            self._engine = Engine(lm)
        elif lm.base_version == self._base and (adapter := default_adapter(lm)) is not None:
            self._engine.update(lm, adapter)
        else:
            self._engine.update(lm)
        self._base = lm.base_version
        return self._engine

    def _sample(self, round: int, lm: LanguageModel, path: Path) -> None:
        """All candidates of the round with the judge's word, on the disk as one file."""
        chosen = self._chosen[round]
        work = self.artifact.checkpoints / f"round-{round:03}"
        work.mkdir(exist_ok=True)
        engine: Engine | None = None
        parts: list[Path] = []
        with track(f"round {round}", len(chosen), "prompts") as step:
            for first in range(0, len(chosen), CHUNK):
                numbers = chosen[first : first + CHUNK]
                drawn, done = (work / f"{first:08}.{kind}.parquet" for kind in ("drawn", "judged"))
                if not drawn.is_file():
                    engine = engine or self.engine(lm)
                    engine.close()  # what it has read already must not decide who is computed with whom
                    rows = [dict(row) for row in self.prompts.select(numbers.tolist())]
                    made = draw(engine, rows, numbers.tolist(), self.method, seed=self.seed, round=round, first=first)
                    self._write(drawn, made)
                if not done.is_file():
                    self._write(done, self._judged(pq.read_table(drawn).to_pylist()))
                parts.append(done)
                step(len(numbers))
        if engine is not None:
            engine.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        tables = [pq.read_table(part) for part in parts]
        if not any(map(len, tables)):
            raise UserError("no prompt leaves the context room for an answer", f"round {round}", "shorter prompts")
        with whole_file(path) as part, pq.ParquetWriter(part, self.schema) as file:
            for table in tables:
                file.write_table(table)
        shutil.rmtree(work)

    def _judged(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        config = self.config
        return judged(
            samples, self.judge, self.method.judge, self.columns,
            both_orders=config.both_orders, on_judge_error=config.on_judge_error,
        )  # fmt: skip

    def _write(self, path: Path, samples: Iterable[dict[str, Any]]) -> None:
        table = pa.Table.from_pylist(list(samples), self.schema)
        with whole_file(path) as part:
            pq.write_table(table, part)
