"""FLAME's second step (arXiv 2405.01525): pairs of a model's own answers, ranked by two rewards.

How well an instruction is followed ranks the answers to every prompt, how true they are those to prompts that ask for
facts. Knows nothing about how rewards come about, and trains nothing.
"""

from pathlib import Path
from typing import Literal

import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from maypole.align.chunks import Rows, in_chunks
from maypole.align.drawing import draw, schema_of
from maypole.align.fact_based import Classify, classified
from maypole.align.judging import Judge, judged
from maypole.align.rlhf_workflow import IterativeDPO, best_and_worst
from maypole.align.self_writing import Built
from maypole.core.config import check
from maypole.core.errors import ConfigError, JudgeError
from maypole.core.judge import OnJudgeError
from maypole.engine import Engine, Sampling

IF, FACT = "if", "fact"
FOUR = Sampling(n=4)


def build_pairs(
    policy: Engine,
    prompts: Dataset,
    judge: Judge,
    facts: Judge,
    classify: Classify,
    sampling: Sampling = FOUR,
    *,
    fact_pairs: Literal["add", "replace"] = "add",
    min_gap: float = 0.0,
    on_judge_error: OnJudgeError = "stop",
    seed: int = 0,
    keep: Path | None = None,
) -> Built:
    """PAIR rows: of each prompt the answer that `judge` likes best against the one it likes least (kind "if"), and of
    a prompt that asks for facts the same by `facts` (kind "fact"); with "replace" that alone.

    Answers that are all as good make no pair. The two pairs of a prompt may contradict each other. Columns beyond those
    of PAIR: the two answers' scores, row (of the prompt) and kind.

    Parameters
    ----------
    judge, facts
        Rewards, or preferences: how well an instruction is followed, and how true an answer is.
    sampling
        ``n`` answers to a prompt, drawn from `policy`.
    min_gap
        How much truer, by `facts`, the chosen answer of a pair must be.
    keep
        A folder for what is drawn and judged: what lies there already is not drawn again.
    """
    check("fact_pairs", fact_pairs, ("add", "replace"))
    if sampling.n < 2:
        raise ConfigError("n", sampling.n, "2 or more: one answer has nothing to be compared with")
    schema_of(prompts.features.arrow_schema)  # whether the columns have names of their own
    columns = [name for name in prompts.column_names if name != "prompt"]
    factual = classified(classify, prompts["prompt"])

    def pair_up(numbers: list[int]) -> Rows:
        policy.close()  # what it has read already must not decide who is computed with whom
        rows = [dict(prompts[i]) for i in numbers]
        drawn = draw(policy, rows, numbers, IterativeDPO(sampling=sampling), seed=seed, round=0, first=numbers[0])
        samples = list(drawn)
        true = [sample for sample in samples if factual[sample["row"]]]
        good = [sample for sample in samples if fact_pairs == "add" or not factual[sample["row"]]]
        made: Rows = []
        for kind, reward, some, gap in ((IF, judge, good, 0.0), (FACT, facts, true, min_gap)):
            for sample in judged(some, reward, "reward", columns, on_judge_error=on_judge_error):
                pair = None if sample["scores"] is None else best_and_worst(sample)
                if pair is not None and pair["chosen_score"] - pair["rejected_score"] >= gap:
                    made.append({**pair, "row": sample["row"], "kind": kind})
        return sorted(made, key=lambda pair: pair["row"])  # the two of a prompt together

    made = in_chunks(range(len(prompts)), pair_up, keep, "pairs")
    if not made:
        raise JudgeError(f"no two answers to any of {len(prompts)} prompts differ in what they are worth")
    counts = {"prompts": len(prompts), "fact_based": sum(factual)}
    counts |= {f"{kind}_pairs": sum(pair["kind"] == kind for pair in made) for kind in (IF, FACT)}
    return Built(Dataset(InMemoryTable(pa.Table.from_pylist(made))), counts)
