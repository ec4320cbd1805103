"""All runs of the experiments, side by side where wanted: first the rows that are made once, then the runs, then those
that learn from an online run's rows again. What is whole is never made again. Knows nothing about what it means.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset

from maypole.align.config import OnlineConfig
from maypole.align.judging import Judge
from maypole.align.measuring import said
from maypole.align.online import drawn_prompts, online
from maypole.align.online_offline_gap import fixed, replay
from maypole.align.online_offline_gap.cells import Cell, cells
from maypole.align.online_offline_gap.config import REPLAY, SHUFFLED, GapConfig, Labels, check_training
from maypole.align.online_offline_gap.fresh import FreshPairs, Winner
from maypole.align.online_offline_gap.measuring import Contest, Standing, Watch, points
from maypole.align.online_offline_gap.report import report
from maypole.align.preference import objective_of
from maypole.core.artifact import Artifact
from maypole.core.atomic import write_atomic
from maypole.core.errors import UserError
from maypole.core.identity import digest, identity
from maypole.core.ray_cluster import kept
from maypole.core.seeds import derive
from maypole.core.shards import map_shards
from maypole.data import PAIR, read
from maypole.evaluate import judges
from maypole.evaluate.pair_accuracy import pair_accuracy
from maypole.models.language_model import LanguageModel
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.objective import Objective
from maypole.train.ranks import join
from maypole.train.result import save_result

KIND = "online-offline-gap"
RUN = "gap-run"
EVALUATIONS = "evaluations"
PAIRS, HELD_OUT, FROZEN = "pairs", "held-out", "frozen"

Policy = LanguageModel | Callable[[], LanguageModel]
"""A model, or what loads it: several workers each hold their own."""


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What the experiments are made of.

    Parameters
    ----------
    policy
        The model before any preferences were learnt: every run begins with it and is held to it.
    prompts
        Rows with a prompt, for the online arms.
    pairs
        Rows with prompt, chosen and rejected for the offline arms; their labels are `judge`'s, not their own.
    proxy, judge
        Who labels the online arms' answers, and who labels the rest and says who wins. A text is what ``--judge``
        takes; several workers each load it.
    eval_prompts, held_out
        Prompts to be measured on, and pairs to tell apart.
    strong
        A better policy, of which `quality` has the answers.
    sizes
        Name -> further policies for `scale`.
    """

    policy: Policy
    prompts: Dataset
    pairs: Dataset
    proxy: Judge | str
    judge: Judge | str
    eval_prompts: Dataset
    held_out: Dataset
    strong: Policy | None = None
    sizes: Mapping[str, Policy] = field(default_factory=dict)


def gap(
    materials: Materials,
    config: GapConfig,
    train: TrainConfig,
    *,
    out: str | Path | Artifact,
    seed: int = 0,
    workers: int = 1,
    ray: str | None = None,
) -> Artifact:
    """Run the experiments that `config` names; the same call continues an interrupted run.

    ``OUT/cells/NAME`` is every run, a checkpoint or an adapter; ``table.parquet`` all measurements of all runs,
    ``report.json`` the envelopes of win rate by KL, what was over-optimised where, and the arms beside each other;
    ``report.html`` is that for people. The artifact that is returned is finished.
    """
    check_inputs(config, train, materials)
    if not isinstance(out, Artifact):
        parts = {"gap": config, "train": train}
        with Artifact.open(out, kind=KIND, config=parts, inputs=inputs_of(materials), seed=seed) as artifact:
            if artifact.finished:
                return artifact
            return gap(materials, config, train, out=artifact, seed=seed, workers=workers, ray=ray)
    bench = Bench(materials, config, train, seed, out.path, out.key)
    todo = cells(config, tuple(materials.sizes))
    made = [Rows(PAIRS), Rows(HELD_OUT), *(Rows(FROZEN, size) for size in dict.fromkeys(cell.size for cell in todo))]
    made += [Rows(name) for name in ("quality", "proximity") if name in config.arms]
    first, then = [cell for cell in todo if cell.of is None], [cell for cell in todo if cell.of is not None]
    run = partial(map_shards, bench.itself, out=out, workers=workers, ray=ray)
    with kept(ray, workers):
        counts = run(_make, {rows.file: rows for rows in made}, title="rows")
        found = run(_train, {_points(cell): cell for cell in first}, title="runs")
        found += run(_train, {_points(cell): cell for cell in then}, title="replays") if then else []
    for cell in todo:
        out.child(_folder(cell), **bench.describe(cell))
    facts = {"rows": {rows.file: count for rows, count in zip(made, counts)}, "proxy_accuracy": _accuracy(bench)}
    facts["replay_equals_online"] = {cell.name: _alike(out.path, cell) for cell in todo if cell.arm == REPLAY}
    return out.finish(report(out, config, list(chain.from_iterable(found)), facts))


def check_inputs(config: GapConfig, train: TrainConfig, materials: Materials) -> None:
    """UserError for the first thing that an experiment needs and is not given, before anything runs."""
    check_training(train)
    if join().size > 1:
        expected = "--workers or --ray: runs go side by side, each in one process"
        raise UserError("a launch of several processes trains one model", "align gap", expected)
    for name in ("prompts", "pairs", "eval_prompts", "held_out"):
        if not len(getattr(materials, name)):
            raise UserError("there are no rows", name, "at least one")
    if "quality" in config.experiments and materials.strong is None:
        raise UserError("quality needs a better policy's answers", "--strong", "a model directory or hub id")
    if "scale" in config.experiments and not materials.sizes:
        raise UserError("scale needs policies of other sizes", "--sizes", "one or more model directories or hub ids")
    known = identity(materials.judge)
    if materials.proxy is materials.judge or (known is not None and known == identity(materials.proxy)):
        what = "proxy and judge are the same: wins would be counted by whom the policy was trained to please"
        raise UserError(what, "--proxy", "another judge, such as one that learnt from the judge's labels")
    drawn_prompts(len(materials.prompts), _rounds(config, train), 0)


def inputs_of(materials: Materials) -> dict[str, object]:
    """What decides the result, for the artifact's key."""
    found = {name: getattr(materials, name) for name in Materials.__dataclass_fields__}
    return {name: given for name, given in found.items() if given is not None and given != {}}


def _rounds(config: GapConfig, train: TrainConfig) -> OnlineConfig:
    return OnlineConfig(
        rounds=config.steps // config.refresh_every, prompts_per_round=train.examples_per_step * config.refresh_every,
        both_orders=config.both_orders, on_judge_error=config.on_judge_error,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rows:
    """A file of rows that is made once; `size` says by which policy."""

    name: str
    size: str = ""

    @property
    def file(self) -> str:
        return f"rows/{'-'.join(filter(None, (self.size, self.name)))}.parquet"


@dataclass
class Bench:
    """What a worker has to make rows and runs with; it travels to another process as it was given."""

    materials: Materials
    config: GapConfig
    train: TrainConfig
    seed: int
    folder: Path
    key: str

    def itself(self) -> "Bench":
        return self

    @cached_property
    def proxy(self) -> Judge:
        return judges.load(self.materials.proxy) if isinstance(self.materials.proxy, str) else self.materials.proxy

    @cached_property
    def judge(self) -> Judge:
        return judges.load(self.materials.judge) if isinstance(self.materials.judge, str) else self.materials.judge

    def policy(self, size: str = "") -> LanguageModel:
        """A policy of weights that a run may change."""
        given = self.materials.sizes[size] if size else self.materials.policy
        return given.copy() if isinstance(given, LanguageModel) else given()

    def objective(self, cell: Cell) -> Objective:
        return Winner() if cell.beta is None else objective_of(self.config.preference(cell.beta))

    def method(self, objective: Objective, labels: Labels) -> FreshPairs:
        return FreshPairs(objective, self.config.max_tokens, labels, derive(self.seed, "labels"))

    def pairs(self, name: str) -> Dataset:
        return read(self.folder / Rows(name).file, PAIR)

    def describe(self, cell: Cell) -> dict[str, Any]:
        """What a run's artifact is made of."""
        parts = {"cell": cell, "gap": self.config, "train": self.train}
        return {"kind": RUN, "config": parts, "inputs": {"experiments": digest(self.key)}, "seed": self.seed}

    def standing(self, cell: Cell, artifact: Artifact) -> Standing:
        config = self.config
        settings: dict[str, Any] = {"both_orders": config.both_orders, "on_judge_error": config.on_judge_error}
        prompts, held_out = _dicts(self.materials.eval_prompts), _dicts(self.pairs(HELD_OUT))
        rival = pq.read_table(self.folder / Rows(FROZEN, cell.size).file).to_pylist()
        judges = {"": self.judge, "proxy_": self.proxy}
        contests = {name: Contest(judge, prompts, rival, **settings) for name, judge in judges.items()}
        return Standing(
            prompts, held_out, contests, folder=artifact.path / EVALUATIONS, work=artifact.checkpoints,
            max_tokens=config.max_tokens, seed=derive(self.seed, "standing"),
        )  # fmt: skip


def _make(bench: Bench, rows: Rows, path: Path) -> dict[str, Any]:
    """The file of `rows`, and how many there are and were left out."""
    materials, config, seed = bench.materials, bench.config, derive(bench.seed, rows.name)
    if rows.name == FROZEN:
        prompts = _dicts(materials.eval_prompts)
        outputs = fixed.replies(bench.policy(rows.size), prompts, config.max_tokens, seed=seed)
        answers = [
            {"prompt": row["prompt"], "answer": said(row["prompt"], output.text), "ids": output.token_ids}
            for row, output in zip(prompts, outputs)
        ]
        fixed.write(path, answers, rows.name)
        return {"rows": len(answers)}
    if rows.name in (PAIRS, HELD_OUT):
        given = materials.pairs if rows.name == PAIRS else materials.held_out
        labels = config.labels if rows.name == PAIRS else "hard"  # what is told apart is told by the likelier answer
        found, left_out = fixed.labelled(given, bench.judge, config, labels, seed=seed)
    else:
        policy = bench.policy()
        speaker = policy
        if rows.name == "quality":
            strong = materials.strong
            assert strong is not None
            speaker = strong if isinstance(strong, LanguageModel) else strong()
        shared = speaker.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
        method = bench.method(Winner(), config.labels)
        found, left_out = fixed.answered(
            speaker, materials.pairs, bench.judge, method, config, seed=seed, ids=shared
        )
    fixed.write(path, found, rows.name)
    return {"rows": len(found), "left_out": dict(left_out)}


def _train(bench: Bench, cell: Cell, path: Path) -> list[dict[str, Any]]:
    """One run: its artifact in the folder ``cells``, its measurements in the file and returned."""
    config, seed = bench.config, derive(bench.seed, "runs")
    with Artifact.open(bench.folder / _folder(cell), **bench.describe(cell)) as artifact:
        if not artifact.finished:
            lm, objective = bench.policy(cell.size), bench.objective(cell)
            train = config.training(bench.train, cell.rate)
            watch = Watch(lm, bench.standing(cell, artifact), config.eval_every)
            if cell.of is None and cell.rows is None:
                rounds, method = _rounds(config, train), bench.method(objective, config.fresh_labels)
                prompts = bench.materials.prompts
                online(lm, prompts, bench.proxy, method, rounds, train, out=artifact, seed=seed, callbacks=[watch])
            else:
                reference = "initial" if "reference" in objective.needs else None
                fit(
                    lm, _rows(bench, cell), objective, train, out=artifact, seed=seed, reference=reference,
                    callbacks=[watch],
                )  # fmt: skip
            last = points(artifact.path / EVALUATIONS)[-1]
            save_result(lm, artifact, artifact.manifest["metrics"] | last)
            artifact.finish(last)
    known = {"cell": cell.name, "arm": cell.arm, "beta": cell.beta, "rate": cell.rate, "size": cell.size}
    found = [
        known | point | _alikeness(artifact.path, config, point["step"])
        for point in points(artifact.path / EVALUATIONS)
    ]
    write_atomic(path, json.dumps(found, indent=2) + "\n")
    return found


def _rows(bench: Bench, cell: Cell) -> Dataset | replay.Recorded:
    if cell.rows is not None:
        return bench.pairs(cell.rows)
    assert cell.of is not None
    run, count = bench.folder / _folder(cell.of), bench.config.steps // bench.config.refresh_every
    if cell.arm == SHUFFLED:
        return replay.Shuffled(run, count, seed=derive(bench.seed, "runs"))
    return replay.Recorded(run, count)


def _alikeness(run: Path, config: GapConfig, step: int) -> dict[str, float]:
    """Of the rounds since the measurement before `step`: how many prompts got the same answer twice."""
    first, last = ((at) // config.refresh_every for at in (step - config.eval_every, step))
    files = [run / "rounds" / f"{number:03}" / "report.json" for number in range(first, last)]
    shares = [json.loads(file.read_text())["distinct"] for file in files if file.is_file()]
    return {"alike": 2 * (1 - sum(shares) / len(shares))} if shares else {}


def _accuracy(bench: Bench) -> float:
    """How often the proxy agrees with the judge on the held-out pairs."""
    rows = _dicts(bench.pairs(HELD_OUT))
    return pair_accuracy(rows, bench.proxy, on_judge_error=bench.config.on_judge_error, seed=bench.seed).accuracy


def _alike(folder: Path, cell: Cell) -> bool:
    """Whether a replay ended with the weights of its online run, bit for bit."""
    assert cell.of is not None
    ours, theirs = (sorted((folder / _folder(one)).glob("*.safetensors")) for one in (cell, cell.of))
    return [path.name for path in ours] == [path.name for path in theirs] and all(
        digest(a.read_bytes()) == digest(b.read_bytes()) for a, b in zip(ours, theirs)
    )


def _dicts(rows: Dataset) -> list[dict[str, Any]]:
    return [dict(row) for row in rows]


def _folder(cell: Cell) -> str:
    return f"cells/{cell.name}"


def _points(cell: Cell) -> str:
    return f"points/{cell.name}.json"
